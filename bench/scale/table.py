"""The table of a run."""

from __future__ import annotations

from typing import Any


def _time(us: float) -> str:
    return f"{us / 1000:.1f} ms" if us >= 1000 else f"{us:.0f} µs"


def _share(row: dict[str, Any], name: str = "cpu") -> str:
    cpu = row[name]
    ports = cpu.get("block port", 0.0)
    return f"{cpu['process']:.1%} of a core ({ports:.1%} block port)"


def _lookups(row: dict[str, Any]) -> str:
    text = (
        f"{row['keys_per_s'] / 1e6:.2f} M keys/s, p50 {_time(row['p50_us'])}, "
        f"p99 {_time(row['p99_us'])}"
    )
    if "keys_per_s_of_a_core" in row:
        text += f"; {row['keys_per_s_of_a_core'] / 1e6:.2f} M keys/s of a core"
    return text


def _describe(name: str, row: dict[str, Any]) -> tuple[str, str]:
    if name == "join":
        return (
            f"registered after {row['registered_s']} s, {row['objects']:,} objects announced after "
            f"{row['announced_s']} s; {row['rss_bytes_an_object']} bytes of memory an object",
            f"{row['cpu_us_an_object']} µs an object",
        )
    if name == "heartbeats":
        return "", _share(row)
    if name == "restart":
        return (
            f"serves after {row['serves_s']} s, ready after {row['ready_s']} s with "
            f"{row['objects']:,} objects",
            f"{row['cpu_us_an_object']} µs an object",
        )
    if name.startswith("rack"):
        return (
            f"{row['nodes']} nodes, named for {row['named_for_ms'] / 1000:.1f} s more; "
            + _lookups(row),
            _share(row, "cpu_after") + " after it",
        )
    text = _lookups(row)
    if "claimed" in row:
        text += f"; {row['claimed'] / row['seconds']:,.0f} writes/s"
    if "watchers" in row:
        text += f"; {row['watchers']['events'] / row['seconds']:,.0f} events/s to watchers"
    return text, _share(row)


def table(found: dict[str, Any]) -> str:
    """Write the phases of a run as a table."""
    shape = found["shape"]
    lines = [
        f"{shape['nodes']:,} nodes, {shape['clients']:,} clients, {shape['objects']:,} objects, "
        f"{shape['watchers']} watchers; lookups in batches of 128.",
        "",
        "| Phase | Result | Processor time of the master |",
        "|---|---|---|",
    ]
    for name, row in found["phases"].items():
        lines.append("| {} | {} | {} |".format(name, *_describe(name, row)))
    return "\n".join(lines) + "\n"
