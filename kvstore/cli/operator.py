"""`kvstore`: the operator's tool."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

import kvstore


class Entry(NamedTuple):
    """Where a command is, and the first sentence of its help."""

    module: str
    help: str


# A module is loaded when its command runs, not for a list of commands: grpc alone takes longer to
# load than `kvstore get` takes.
COMMANDS = {
    "put": Entry("data", "Store the bytes of FILE (default: standard input) under KEY."),
    "get": Entry("data", "Print the bytes stored under KEY; a miss says why."),
    "exists": Entry("data", "Show for each KEY whether it is present."),
    "rm": Entry("data", "Remove objects, by KEY or by prefix; they never come back."),
    "unpin": Entry(
        "data", "Remove the pin of each KEY; from then on it is evicted like any other object."
    ),
    "ls": Entry("data", "List keys that start with PREFIX, in no particular order."),
    "inspect": Entry(
        "describe", "Show the master's record of KEY: size, version, pin, times, replicas."
    ),
    "explain": Entry(
        "describe", "Show where KEY is or was: per node, when it was put, read and lost, and why."
    ),
    "status": Entry("overview", "Show the cluster's state, and what it did lately."),
    "top": Entry("top", "Watch the cluster: hit ratio, throughput, nodes, hot prefixes, events."),
    "nodes": Entry("overview", "List the known nodes with state, capacity and usage."),
    "namespaces": Entry(
        "namespaces",
        "List the namespaces with their objects and bytes, those with the most bytes first.",
    ),
    "flush": Entry("namespaces", "Make every object of a namespace unreachable, in constant time."),
    "drain": Entry(
        "leaving", "Copy a node's objects to other nodes while it continues to serve reads."
    ),
    "undrain": Entry("leaving", "End a drain: the node accepts writes again."),
    "forget": Entry(
        "leaving", "Drop a dead node: its objects, and the removes and flushes that wait for it."
    ),
    "snapshot": Entry(
        "cluster", "Write a node's DRAM-only objects to NVMe, most recently used first."
    ),
    "handover": Entry(
        "handover", "End the active master while another one stands by; wait until that serves."
    ),
    "doctor": Entry("doctor", "Check this host and the cluster, and say how to fix what is wrong."),
    "sessions": Entry(
        "sessions", "List the sessions of master and nodes, and the gRPC calls in progress."
    ),
    "token": Entry("token", "Mint short-lived tokens, and show what one may do."),
    "replay": Entry(
        "replay", "Replay a request trace: look up, get and verify, put missing blocks."
    ),
    "bench": Entry(
        "bench",
        "Time put, get and exists on a live cluster; medians over the rounds, bytes checked.",
    ),
    "plan": Entry("plan", "Estimate the hit rate with more memory, less memory or NVMe."),
    "size": Entry("size", "Show the bytes of a model's KV pages, and what to plan for them."),
    "support-bundle": Entry(
        "support",
        "Write what is needed to look into a problem to a file, without secrets and objects.",
    ),
    "config": Entry("config", "Check, show, start and convert configuration files."),
    "completion": Entry(
        "completion", "Print the completion script for SHELL; load it in the shell's start-up file."
    ),
    "version": Entry("version", "Print the version of this installation."),
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
        module = importlib.import_module(f"kvstore.cli.{COMMANDS[cmd_name].module}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' part of the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name, or an option of `kvstore` itself."""
        names = [
            CompletionItem(name, help=entry.help)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

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
