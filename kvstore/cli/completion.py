"""`kvstore completion`: the script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAMS = ("kvstore", "kvstore-master", "kvstore-node")


@click.command(epilog='Example: eval "$(kvstore completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option(
    "--program",
    type=click.Choice(_PROGRAMS),
    default=_PROGRAMS[0],
    show_default=True,
    help="Whose arguments to complete.",
)
def completion(shell: str, program: str) -> None:
    """Print the completion script for SHELL; load it in the shell's start-up file."""
    # click generates it without looking at the command: the program itself completes, when asked.
    kind = get_completion_class(shell)
    assert kind is not None
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    click.echo(kind(click.Command(program), {}, program, variable).source())
