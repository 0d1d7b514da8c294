"""The command kvstore-master."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import click

from kvstore import logging
from kvstore.certificates import Certificates
from kvstore.cli.output import Exit, reports_errors
from kvstore.cli.serve import HELP, end_process, run, server_options, version_option
from kvstore.config import MasterConfig
from kvstore.discovery.source import Discovery
from kvstore.environment import silence_grpc
from kvstore.errors import InvalidArgumentError
from kvstore.logging import EventLogger
from kvstore.reload import Reloader
from kvstore.tasks import BackgroundTasks

_log = EventLogger("master")
_EPILOG = """\b
Example:
  kvstore-master --data-dir /var/lib/kvstore --port 50051
Without --data-dir the state is stored in $XDG_STATE_HOME/kvstore-master
(~/.local/state/kvstore-master). Exactly one master may use a data directory.
With --state it is stored in etcd, and further masters with the same --state stand by: /readyz says
"standby" until one of them takes over. An active master that loses its lease in etcd exits with 6,
or is killed by its timer (SIGKILL) if it cannot even do that; its supervisor should restart it.
SIGHUP, or a change of the config, token or TLS files, reloads the configuration: keys marked "yes"
in deploy/README.md apply at once, the others at the next start (listed in the log and in /readyz).
An invalid file is refused, and the running configuration stays in effect. SIGTERM and SIGINT stop
the master.

\b
While no master runs on it, its state can be checked, saved and restored:
  kvstore-master --data-dir /var/lib/kvstore --check --json
  kvstore-master --data-dir /var/lib/kvstore --export state.jsonl
  kvstore-master --data-dir /var/lib/kvstore --import state.jsonl
An export holds the cluster's secret. What was removed after it was made may come back with it.
"""


@click.command("kvstore-master", epilog=_EPILOG, context_settings=HELP)
@version_option("kvstore-master")
@server_options
@click.option("--grpc-port", type=int, help="Control plane; 0 for any.")
@click.option("--data-dir", type=click.Path(), help="Folder of the master's state.")
@click.option("--state", metavar="URL", help="State in etcd: etcd://HOST:2379[,HOST…]/PREFIX.")
@click.option(
    "--new-cluster",
    is_flag=True,
    help="Begin another cluster where the state is missing, lost or damaged.",
)
@click.option("--check", is_flag=True, help="Check the state instead of serving.")
@click.option("--export", "export_to", metavar="FILE", help="Write the state to FILE; - is stdout.")
@click.option("--import", "import_from", metavar="FILE", help="Read the state from FILE.")
@click.option("--force", is_flag=True, help="With --import: rename a state that is there.")
@reports_errors
def main(
    config_file: str | None,
    as_json: bool,
    new_cluster: bool,
    check: bool,
    export_to: str | None,
    import_from: str | None,
    force: bool,
    **flags: Any,
) -> None:
    """Run the master: it tracks which node holds which object and orders the writes of a key."""
    wanted = [check, export_to is not None, import_from is not None, new_cluster]
    if sum(wanted) > 1 or (force and import_from is None):
        raise InvalidArgumentError(
            "only one of --check, --export, --import and --new-cluster; --force needs --import"
        )
    reloader = Reloader(MasterConfig, config_file, flags, Discovery())
    settings = reloader.config
    logging.setup(settings.log_level, settings.log_format)
    silence_grpc()
    if any(wanted[:3]):
        from kvstore.cli import state

        if export_to is not None:
            state.export(settings, export_to, as_json)
        elif import_from is not None:
            state.import_(settings, import_from, force, as_json)
        else:
            state.check(settings, as_json)
        return
    from kvstore import _native
    from kvstore.master.server import MasterCoreFactory, MasterServer
    from kvstore.master.verifier import ProbeNode

    factory = cast(MasterCoreFactory, _native.MasterCore)
    tasks = BackgroundTasks()
    certificates = Certificates(settings.tls)
    probe = cast(ProbeNode, partial(_native.probe_node, tls=certificates.native))

    def deposed(why: str) -> NoReturn:
        _log.error("deposed", error=why)
        if settings.port_file:
            Path(settings.port_file).unlink(missing_ok=True)
        end_process(Exit.DEPOSED)

    server = MasterServer(
        settings, factory, probe, reloader.reloads, tasks, deposed, new_cluster, certificates
    )
    reloader.on_change(server.prepare)
    run("kvstore-master", server.serve, reloader, tasks, settings.port_file, as_json)


if __name__ == "__main__":
    main()
