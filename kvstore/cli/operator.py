"""`kvstore`: the operator's tool."""

from __future__ import annotations

import importlib

import click

import kvstore

# Where each command is. A module is loaded when its command runs: grpc alone takes longer to load
# than `kvstore get` takes.
COMMANDS = {
    "put": "data",
    "get": "data",
    "exists": "data",
    "rm": "data",
    "unpin": "data",
    "ls": "data",
    "inspect": "describe",
    "explain": "describe",
    "status": "overview",
    "nodes": "overview",
    "namespaces": "namespaces",
    "flush": "namespaces",
    "drain": "leaving",
    "undrain": "leaving",
    "forget": "leaving",
    "snapshot": "cluster",
    "replay": "replay",
    "bench": "bench",
    "config": "config",
    "completion": "completion",
    "version": "version",
}


class Commands(click.Group):
    """The commands of COMMANDS, each loaded on its first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"kvstore.cli.{COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; for a misspelt one, name the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None


@click.group(
    "kvstore",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 not found, 2 wrong usage, 3 unavailable, 4 refused, 5 failed, "
    "130 interrupted. Example: KVSTORE_MASTER=10.0.0.1:50051 kvstore nodes",
)
@click.version_option(kvstore.__version__, prog_name="kvstore")
def main() -> None:
    """Operate a kvstore cluster: objects, nodes, replays and benchmarks."""


if __name__ == "__main__":
    main()
