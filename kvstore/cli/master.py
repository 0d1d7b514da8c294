"""The command kvstore-master."""

from __future__ import annotations

from typing import Any, cast

import click

from kvstore import logging
from kvstore.cli.output import reports_errors
from kvstore.cli.serve import run, server_options
from kvstore.config import MasterConfig
from kvstore.reload import Reloader

_EPILOG = """\b
Example:
  kvstore-master --data-dir /var/lib/kvstore --port 50051
Without --data-dir the state is kept in $XDG_STATE_HOME/kvstore-master
(~/.local/state/kvstore-master). Exactly one master may use a data directory.
SIGHUP, or a change of the file or of the token file, is taken over while it runs: the keys that
deploy/README.md marks "yes" at once, the others at the next start (named in the log, in /readyz).
A file that is wrong is refused, and what ran before stays. SIGTERM and SIGINT end the master.
"""


@click.command(epilog=_EPILOG)
@server_options
@click.option("--grpc-port", type=int, help="Control plane; 0 for any.")
@click.option("--data-dir", type=click.Path(), help="Where the master keeps its state.")
@reports_errors
def main(config_file: str | None, as_json: bool, **flags: Any) -> None:
    """Run the master: it knows which node holds what and orders the writes of a key."""
    reloader = Reloader(MasterConfig, config_file, flags)
    settings = reloader.config
    logging.setup(settings.log_level)
    from kvstore import _native
    from kvstore.master.server import MasterCoreFactory, MasterServer

    factory = cast(MasterCoreFactory, _native.MasterCore)
    server = MasterServer(settings, factory, reloader.reloads)
    reloader.on_change(server.prepare)
    run("kvstore-master", server.serve, reloader, settings.port_file, as_json)


if __name__ == "__main__":
    main()
