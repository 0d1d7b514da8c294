"""`kvstore`: the operator's tool."""

from __future__ import annotations

import click

import kvstore
from kvstore.cli import bench, cluster, config, data, leaving, replay
from kvstore.cli.output import print_json
from kvstore.cli.target import json_option


@click.group(
    "kvstore",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 not found, 2 wrong usage, 3 unavailable, 4 refused, 5 failed. "
    "Example: KVSTORE_MASTER=10.0.0.1:50051 kvstore nodes",
)
def main() -> None:
    """Operate a kvstore cluster: objects, nodes, replays and benchmarks."""


@click.command(epilog="Example: kvstore version --json")
@json_option
def version(as_json: bool) -> None:
    """Print the version of this installation."""
    if as_json:
        print_json({"version": kvstore.__version__})
    else:
        click.echo(kvstore.__version__)


for command in (
    data.put,
    data.get,
    data.exists,
    data.rm,
    data.ls,
    data.inspect,
    data.explain,
    cluster.status,
    cluster.nodes,
    cluster.flush,
    leaving.drain,
    leaving.undrain,
    leaving.forget,
    cluster.snapshot,
    replay.replay,
    bench.bench,
    config.config,
    version,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
