"""Compares what `kvstore plan` says with replays at the sizes that it speaks of.

`python -m bench.planner` replays a trace on a fresh cluster of each size, asks `kvstore plan` there
for all the other sizes, and prints the errors: of each prediction, against the hit rate that the
replay at that size has found. Blocks are small: only their number matters.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvstore.replay.runner import Replay
from kvstore.replay.trace import Request, generate, read_trace
from tests.support.cluster import Cluster
from tests.support.processes import wait_for

BLOCK_BYTES = 4096
SHARES = (0.05, 0.1, 0.2, 0.4)  # of the trace's blocks


def segment_bytes(blocks: int) -> int:
    """Return a segment that holds so many blocks."""
    return blocks * BLOCK_BYTES * 65 // 64 + (256 << 10)


def one(requests: Sequence[Request], size: int, others: Sequence[int]) -> dict[str, Any]:
    """Replay on a cluster of one node, and ask it for other sizes."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-planner-"))
    cluster = Cluster(folder)
    try:
        cluster.start_node("a", segment_size=size)
        store = cluster.connect(timeout_ms=30_000)
        most = max(len(request.hash_ids) for request in requests)
        tally = Replay(store, BLOCK_BYTES, most).run(requests, lambda: None)
        wait_for(lambda: cluster.cli("plan")["uses"] >= tally.blocks * 0.999, "all uses", 30)
        options = [word for other in others for word in ("--memory", str(other))]
        said: dict[str, Any] = cluster.cli("plan", *options)
        return {**said, "replayed": tally.hit_rate, "segment_bytes": size}
    finally:
        cluster.close()
        shutil.rmtree(folder)


def measure(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Return a row for each size."""
    unique = len({block for request in requests for block in request.hash_ids})
    sizes = [segment_bytes(int(unique * share)) for share in SHARES]
    return [one(requests, size, sizes) for size in sizes]


def table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return the predictions, and their worst error."""
    truth = [row["replayed"] for row in rows]
    lines = [
        f"{name}: hit rate replayed "
        + ", ".join(f"{rate:.4f} ({share:g})" for rate, share in zip(truth, SHARES, strict=True)),
        "| measured at | " + " | ".join(f"at {share:g}" for share in SHARES) + " | master |",
        "|---|" + "---|" * (len(SHARES) + 1),
    ]
    worst = 0.0
    for share, row in zip(SHARES, rows, strict=True):
        errors = [plan["hit_rate"] - rate for plan, rate in zip(row["plans"], truth, strict=True)]
        worst = max(worst, *map(abs, errors))
        cost = row["master_busy_us"] / (10 * row["observed_ms"])
        lines.append(
            f"| {share:g} | "
            + " | ".join(f"{error:+.4f}" for error in errors)
            + f" | {row['master_memory_bytes']:,} B, {cost:.2f} % |"
        )
    return "\n".join([*lines, f"worst error: {worst:.4f}"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="a trace in the Mooncake format, beside chats")
    parser.add_argument("--conversations", type=int, default=1500, help="generated chats")
    parser.add_argument("--json", action="store_true", help="print every number")
    given = parser.parse_args(arguments)
    traces = {"generated chats": generate(1, given.conversations, turns=8)}
    if given.trace:
        traces = {given.trace.name: read_trace(given.trace), **traces}
    found = {}
    for name, requests in traces.items():
        found[name] = measure(requests)
        if not given.json:
            print(table(name, found[name]), flush=True)
    if given.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
