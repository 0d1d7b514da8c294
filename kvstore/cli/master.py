"""The command kvstore-master."""

from __future__ import annotations

from typing import Any, cast

import click

from kvstore import logging
from kvstore.cli.output import reports_errors
from kvstore.cli.serve import HELP, run, server_options, version_option
from kvstore.config import MasterConfig, silence_grpc
from kvstore.reload import Reloader
from kvstore.tasks import BackgroundTasks

_EPILOG = """\b
Example:
  kvstore-master --data-dir /var/lib/kvstore --port 50051
Without --data-dir the state is stored in $XDG_STATE_HOME/kvstore-master
(~/.local/state/kvstore-master). Exactly one master may use a data directory.
SIGHUP, or a change of the config or token file, reloads the configuration: keys marked "yes" in
deploy/README.md apply at once, the others at the next start (listed in the log and in /readyz).
An invalid file is refused, and the running configuration stays in effect. SIGTERM and SIGINT stop
the master.
"""


@click.command("kvstore-master", epilog=_EPILOG, context_settings=HELP)
@version_option("kvstore-master")
@server_options
@click.option("--grpc-port", type=int, help="Control plane; 0 for any.")
@click.option("--data-dir", type=click.Path(), help="Folder of the master's state.")
@reports_errors
def main(config_file: str | None, as_json: bool, **flags: Any) -> None:
    """Run the master: it tracks which node holds which object and orders the writes of a key."""
    reloader = Reloader(MasterConfig, config_file, flags)
    settings = reloader.config
    logging.setup(settings.log_level, settings.log_format)
    silence_grpc()
    from kvstore import _native
    from kvstore.master.server import MasterCoreFactory, MasterServer

    factory = cast(MasterCoreFactory, _native.MasterCore)
    tasks = BackgroundTasks()
    server = MasterServer(settings, factory, reloader.reloads, tasks)
    reloader.on_change(server.prepare)
    run("kvstore-master", server.serve, reloader, tasks, settings.port_file, as_json)


if __name__ == "__main__":
    main()
