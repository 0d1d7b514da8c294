"""What `kvstore top` draws. Names come from others: they are text, never markup of rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvstore.cli.output import format_duration, format_time
from kvstore.cli.overview import format_rate, largest_first, percent, saving_in_words
from kvstore.sizes import format_size
from kvstore.text import printable

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_POINTS: Final = 30
_EVENTS: Final = 6
_PREFIXES: Final = 5
_FRAME_LINES: Final = 14
"""Lines of a screen beside nodes, prefixes and events."""
_STYLES: Final = {"alive": "green", "dead": "bold red"}
_KEYS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "read": lambda node: -node["read_bytes_per_s"],
    "written": lambda node: -node["put_bytes_per_s"],
    "memory": lambda node: -node["used_bytes"] / max(1, node["capacity_bytes"]),
    "evicted": lambda node: -node["evictions_per_s"],
    "name": lambda node: node["node_id"],
}


def screen(found: dict[str, Any], order: str, height: int | None, trouble: str) -> RenderableType:
    """Draw the cluster.

    Args:
        found: overview, nodes, prefixes and events, as the console's paths answer.
        order: of the nodes.
        height: lines that there are; None: as many as it takes.
        trouble: why `found` is old; empty: it is not.
    """
    events = (found["events"] or [])[:_EVENTS]
    nodes = sorted(found["nodes"], key=lambda node: (_KEYS[order](node), node["node_id"]))
    prefixes = (found["prefixes"] or [])[:_PREFIXES]
    below = len(events) + (len(prefixes) + 2 if prefixes else 0)
    room = len(nodes) if height is None else max(1, height - _FRAME_LINES - below)
    parts: list[RenderableType] = [
        _heading(found["overview"], trouble),
        _figures(found["overview"]),
    ]
    parts += [Text(), _nodes(nodes[:room])]
    if len(nodes) > room:
        parts.append(Text(f"… and {len(nodes) - room} more nodes", style="dim"))
    if prefixes:
        parts += [Text(), _prefixes(prefixes)]
    if events:
        parts += [Text(), _events(events)]
    return Group(*parts)


def _heading(overview: dict[str, Any], trouble: str) -> Text:
    states = ", ".join(f"{count} {name}" for name, count in overview["nodes"].items() if count)
    text = Text.assemble(
        ("kvstore", "bold"),
        f"  cluster {printable(overview['cluster_id'])[:8]}, {states or 'no node'}, "
        f"up {format_duration(overview['uptime_ms'])}",
    )
    if overview["rebuilding"]:
        text.append("  rebuilding", style="yellow")
    if trouble:
        text.append(f"  not current: {printable(trouble)}", style="bold red")
    return text


def sparkline(values: Sequence[float | None], most: float) -> str:
    """Draw values as a line of blocks; blank where one is not known."""
    top = len(_BLOCKS) - 1
    return "".join(
        " "
        if value is None
        else _BLOCKS[min(top, round(top * value / most))]
        if most > 0
        else _BLOCKS[0]
        for value in values
    )


def _figures(overview: dict[str, Any]) -> Table:
    traffic, history = overview["traffic"], overview["history"]
    lengths = history["length_ms"]
    grid = Table.grid(padding=(0, 2))
    for style in ("dim", "bold", "cyan", ""):
        grid.add_column(style=style, no_wrap=style != "")

    def row(name: str, value: str, line: str, more: str) -> None:
        grid.add_row(name, value, line, Text(more))

    wanted = zip(history["hits"], history["misses"], strict=True)
    ratios = [
        hits / (hits + sum(missed.values())) if hits or any(missed.values()) else None
        for hits, missed in wanted
    ][-_POINTS:]
    ratio = traffic["hit_ratio"]
    row(
        "hit ratio",
        "-" if ratio is None else f"{100 * ratio:.1f} %",
        sparkline(ratios, 1),
        f"{traffic['hits']:,} read; not found: {largest_first(traffic['misses'])}",
    )
    for name, column in (("read", "read_bytes"), ("written", "put_bytes")):
        rates = [
            1000 * size / max(1, ms) for size, ms in zip(history[column], lengths, strict=True)
        ]
        row(
            name,
            format_rate(traffic[f"{column}_per_s"]),
            sparkline(rates[-_POINTS:], max(rates[-_POINTS:], default=0)),
            format_size(traffic[column]),
        )
    gone = [sum(causes.values()) for causes in history["evictions"]][-_POINTS:]
    row(
        "evictions",
        f"{sum(traffic['evictions'].values()):,}",
        sparkline(gone, max(gone, default=0)),
        largest_first(traffic["evictions"]),
    )
    row("saved", "", "", saving_in_words(overview["savings"], "saved"))
    row("wasted", "", "", saving_in_words(overview["savings"], "wasted"))
    row("fill", "", "", _fill(overview))
    return grid


def _fill(overview: dict[str, Any]) -> str:
    parts = [
        f"memory {format_size(overview['used_bytes'])} of "
        f"{format_size(overview['capacity_bytes'])} "
        f"({percent(overview['used_bytes'], overview['capacity_bytes']) or '-'})",
        f"index {percent(overview['index_entries'], overview['index_limit']) or '-'}",
    ]
    if overview["nvme_capacity_bytes"]:
        share = percent(overview["nvme_object_bytes"], overview["nvme_capacity_bytes"])
        parts.append(f"NVMe {format_size(overview['nvme_object_bytes'])} ({share})")
    return f"{', '.join(parts)}; {overview['objects']:,} objects"


def _nodes(nodes: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("memory", "index", "NVMe", "objects", "read", "written", "evicted/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in nodes:
        nvme = node["nvme"]
        state = node["state"]
        label = Text(printable(node["node_id"]))
        for problem in node["problems"]:
            label.append(f"\n  {printable(problem)}", style="yellow")
        table.add_row(
            label,
            Text(state, style=_STYLES.get(state, "yellow")),
            percent(node["used_bytes"], node["capacity_bytes"]),
            percent(node["index_entries"], node["index_limit"]),
            percent(nvme.get("object_bytes", 0), nvme["capacity_bytes"]) if nvme else "",
            f"{node['replicas']:,}",
            format_rate(node["read_bytes_per_s"]),
            format_rate(node["put_bytes_per_s"]),
            f"{node['evictions_per_s']:.1f}",
        )
    return table


def _prefixes(prefixes: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("most read prefix", no_wrap=True, overflow="ellipsis")
    table.add_column("of", no_wrap=True, overflow="ellipsis")
    table.add_column("objects/s", justify="right", no_wrap=True)
    table.add_column("read", justify="right", no_wrap=True)
    for one in prefixes:
        owner = one["tenant"] + (f" {one['namespace']}" if one["namespace"] else "")
        table.add_row(
            Text(printable(one["key"])),
            Text(printable(owner)),
            f"{one['reads_per_s']:,.1f}",
            format_rate(one["read_bytes_per_s"]),
        )
    return table


def _events(events: Sequence[dict[str, Any]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for event in events:
        count = f"{event['count']:,} " if event["count"] > 1 else ""
        grid.add_row(
            Text(format_time(event["unix_ms"])[11:], style="dim"),
            Text(event["kind"], style="yellow" if event["level"] == "warning" else ""),
            Text(f"{printable(event['node_id']) or 'cluster'} {count}{printable(event['text'])}"),
        )
    return grid
