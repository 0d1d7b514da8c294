"""The command top: the cluster, live in a terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from kvstore import clock
from kvstore.cli.control import control
from kvstore.cli.output import Exit, is_terminal, print_json, reports_errors
from kvstore.cli.target import Target, json_option, target, target_options
from kvstore.cli.web import ask_console
from kvstore.errors import KvstoreError, PermissionDeniedError, UnsupportedError

ORDERS = ("read", "written", "memory", "evicted", "name")
_WINDOW_MS = 600_000


@click.command(epilog="Example: kvstore top --sort evicted")
@click.option("--once", is_flag=True, help="Print it once, as where the output is no terminal.")
@click.option(
    "--interval-s",
    type=click.FloatRange(0.5, 60),
    default=2.0,
    show_default=True,
    help="Time between two looks.",
)
@click.option(
    "--sort",
    "order",
    type=click.Choice(ORDERS),
    default="read",
    show_default=True,
    help="Which nodes come first.",
)
@json_option
@target_options
@reports_errors
def top(once: bool, interval_s: float, order: str, as_json: bool, **options: Any) -> None:
    """Watch the cluster: hit ratio, throughput, nodes, hot prefixes, events.

    Numbers are of the last ten minutes, rates of nodes of the last 10 to 20 seconds. Ctrl-C ends
    it. A prefix is a chain of keys, named by its first one. --json prints one document, with
    every node.
    """
    from kvstore._proto import master_pb2

    where = target(options)
    with control(where) as (master, call):
        endpoint = master.Status(master_pb2.StatusRequest(), **call).http_endpoint
    first = _look(where, endpoint)
    if as_json:
        print_json(first)
        return
    from rich.console import Console

    from kvstore.cli.top_screen import screen

    console = Console()
    if once or not is_terminal(of="stdout"):
        console.print(screen(first, order, None, ""))
        return
    try:
        _watch(where, endpoint, interval_s, order, first, console)
    except KeyboardInterrupt:
        sys.exit(Exit.OK)  # the way to end it


def _look(where: Target, endpoint: str) -> dict[str, Any]:
    """Ask for all that is shown: events are for operators of every tenant, prefixes for clients."""
    found = {
        "overview": ask_console(where, endpoint, "overview", window_ms=_WINDOW_MS, history=1),
        "nodes": ask_console(where, endpoint, "nodes")["nodes"],
        "prefixes": None,
        "events": None,
    }
    with suppress(PermissionDeniedError, UnsupportedError):  # or an older master
        found["prefixes"] = ask_console(where, endpoint, "prefixes")["prefixes"]
    with suppress(PermissionDeniedError):
        found["events"] = ask_console(where, endpoint, "events")["events"]
    return found


def _watch(
    where: Target, endpoint: str, interval_s: float, order: str, first: dict[str, Any], console: Any
) -> None:
    from rich.live import Live

    from kvstore.cli.top_screen import screen

    found, trouble = first, ""
    with Live(
        screen(found, order, console.height, trouble),
        console=console,
        screen=True,
        auto_refresh=False,
    ) as live:
        while True:
            clock.pause_s(interval_s)
            try:
                found, trouble = _look(where, endpoint), ""
            except KvstoreError as error:
                trouble = str(error)  # what was seen last stays
            live.update(screen(found, order, console.height, trouble), refresh=True)
