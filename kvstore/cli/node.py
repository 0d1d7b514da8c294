"""The command kvstore-node."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import click

from kvstore import logging
from kvstore.certificates import Certificates
from kvstore.cli.output import reports_errors
from kvstore.cli.serve import HELP, end_process, run, server_options, version_option
from kvstore.config import NodeConfig
from kvstore.discovery.source import Discovery
from kvstore.environment import silence_grpc
from kvstore.reload import Reloader
from kvstore.tasks import BackgroundTasks

_EPILOG = """\b
Example:
  kvstore-node --config node.json --segment-size 4gb
with node.json:
  {"master_address": "10.0.0.1:50051", "node_id": "a", "host": "10.0.0.2"}
SIGHUP, or a change of the config, token or TLS files, reloads the configuration: keys marked "yes"
in deploy/README.md apply at once, the others at the next start (listed in the log and in /readyz).
An invalid file is refused, and the running configuration stays in effect. SIGTERM and SIGINT stop
the node.
"""


@click.command("kvstore-node", epilog=_EPILOG, context_settings=HELP)
@version_option("kvstore-node")
@server_options
@click.option("--master-address", help="The master's block port, HOST:PORT[,HOST:PORT...].")
@click.option("--node-id", help="Unique in the cluster.")
@click.option("--segment-size", help='Memory for objects: an integer or "4gb".')
@click.option("--segment-dir", type=click.Path(), help="Folder on tmpfs or hugetlbfs.")
@click.option(
    "--allow-cold-restart",
    is_flag=True,
    default=None,
    help="Start without room for a second index: a restart may then lose the objects.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Replace a living process that runs as this node with another segment.",
)
@click.option("--label", "labels", multiple=True, help="For placement: KEY=VALUE; repeatable.")
@reports_errors
def main(
    config_file: str | None,
    as_json: bool,
    master_address: str | None,
    labels: tuple[str, ...],
    take_over: bool,
    **flags: Any,
) -> None:
    """Run a node: it holds objects in shared memory and serves them."""
    flags["master_address"] = master_address.split(",") if master_address else None
    flags["labels"] = dict(map(_label, labels)) or None
    reloader = Reloader(NodeConfig, config_file, flags, Discovery())
    settings = reloader.config
    logging.setup(settings.log_level, settings.log_format)
    silence_grpc()
    from kvstore import _native
    from kvstore.node.core_api import NodeCoreFactory, Probe, SegmentFilesFactory
    from kvstore.node.rebuild import Announce, Rebuilds
    from kvstore.node.server import NodeServer

    tasks = BackgroundTasks()
    rebuilds = Rebuilds()
    certificates = Certificates(settings.tls)

    def create() -> NodeServer:
        server = NodeServer(
            reloader.config,
            cast(Probe, partial(_native.probe_master, tls=certificates.native)),
            cast(SegmentFilesFactory, _native.SegmentFiles),
            cast(NodeCoreFactory, _native.NodeCore),
            reloader.reloads,
            tasks,
            rebuilds,
            take_over,
            certificates,
        )
        reloader.on_change(server.prepare)
        return server

    first = create()

    async def serve(stop: asyncio.Event, announce: Announce) -> None:
        await rebuilds.serve(first, create, stop, announce)

    run("kvstore-node", serve, reloader, tasks, settings.port_file, as_json)
    end_process()


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--label")
    return name, value


if __name__ == "__main__":
    main()
