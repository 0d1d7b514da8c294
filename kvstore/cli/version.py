"""`kvstore version`."""

from __future__ import annotations

import click

import kvstore
from kvstore.cli.output import print_json
from kvstore.cli.target import json_option


@click.command(epilog="Example: kvstore version --json")
@json_option
def version(as_json: bool) -> None:
    """Print the version of this installation."""
    if as_json:
        print_json({"version": kvstore.__version__})
    else:
        click.echo(kvstore.__version__)
