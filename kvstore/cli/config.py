"""`kvstore config`: conversion of other stores' configurations."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvstore.cli.output import print_json, reports_errors
from kvstore.cli.target import json_option
from kvstore.compat.mooncake.migrate import migrate as migration_of
from kvstore.compat.mooncake.settings import read_file
from kvstore.config import NodeConfig, load
from kvstore.errors import IoError


@click.group()
def config() -> None:
    """Work with configuration files."""


@config.command(epilog="Example: kvstore config migrate mooncake.json --output node.json")
@click.argument("file", type=click.Path())
@click.option("--output", type=click.Path(), help="Write the node's config.json to this file.")
@json_option
@reports_errors
def migrate(file: str, output: str | None, as_json: bool) -> None:
    """Convert a config.json of Mooncake to one of kvstore-node.

    Prints the result, and on standard error the settings that are not carried over, with reasons.
    """
    done = migration_of(read_file(file))
    if done.node:
        load(NodeConfig, None, done.node)  # check that kvstore-node accepts the result
    text = json.dumps(done.node, indent=2) + "\n"
    if output is not None:
        try:
            Path(output).write_text(text)
        except OSError as error:
            raise IoError(f"{output}: {error.strerror}") from error
    if as_json:
        print_json({"node": done.node, "remarks": done.remarks})
        return
    if output is None:
        click.echo(text, nl=False)
    for remark in done.remarks:
        click.echo(remark, err=True)
