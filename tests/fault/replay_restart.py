"""Replays a trace while its node is stopped halfway and restarted; the replay never pauses.

`python -m tests.fault.replay_restart --trace FILE --way kill` prints the cost of the restart: the
same requests at the same rate are first replayed on an undisturbed node, and the results of both
are compared request by request. Ways: kill (SIGKILL), power-loss (SIGKILL, and the shared memory is
gone; NVMe with snapshots every 5 s is not), and upgrade, which is tests.fault.rolling: three nodes
get a package with another version number.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kvstore
from kvstore.replay.runner import Replay
from kvstore.replay.trace import Request, read_trace
from kvstore.sizes import parse_size
from tests.fault import rolling
from tests.support.cluster import Cluster
from tests.support.package import copy_package
from tests.support.processes import Daemon

ROOT = Path(__file__).resolve().parents[2]
BLOCK_BYTES = 4096


@dataclass
class Run:
    """What each request of one replay found, and when (seconds from the start)."""

    at_s: list[float] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    wrong_bytes: int = 0
    longest_call_s: float = 0.0
    worst_get_ms: float = 0.0
    worst_put_ms: float = 0.0
    failed_puts: int = 0
    put_statuses: dict[str, int] = field(default_factory=dict)


def replay(store: kvstore.Store, requests: Sequence[Request], rate: float) -> Run:
    """Replay `rate` requests per second; a slow answer delays no other request."""
    run = Run()
    replayed = Replay(store, BLOCK_BYTES, max(len(r.hash_ids) for r in requests))
    begin = time.monotonic()
    for i, request in enumerate(requests):
        time.sleep(max(0.0, begin + i / rate - time.monotonic()))
        before, started = replayed.tally.hit_blocks, time.monotonic()
        replayed.run([request], lambda: None)
        run.at_s.append(started - begin)
        run.hits.append(replayed.tally.hit_blocks - before)
        run.longest_call_s = max(run.longest_call_s, time.monotonic() - started)
    tally = replayed.tally
    run.wrong_bytes = tally.wrong_bytes
    run.worst_get_ms = round(max(tally.get_ns, default=0) / 1e6, 1)
    run.worst_put_ms = round(max(tally.put_ns, default=0) / 1e6, 1)
    run.put_statuses = tally.put_statuses
    run.failed_puts = sum(
        count
        for status, count in tally.put_statuses.items()
        if status not in ("Ok", "AlreadyExists")
    )
    return run


def other_version(folder: Path) -> Path:
    """Copy the package and give it another version number."""
    from kvstore import _native

    target = folder / "other-version"
    copy_package(target, Path(str(_native.__file__)))
    init = target / "kvstore" / "__init__.py"
    init.write_text(init.read_text() + '\n__version__ = "99.0.0"\n')
    return target


def restart(cluster: Cluster, node: Daemon, way: str) -> dict[str, Any]:
    """End the node and start it again; how long both took."""
    begun = time.monotonic()
    node.kill()
    if way == "power-loss":
        shutil.rmtree(cluster.segment_dirs["a"])
    ended = time.monotonic()
    started = cluster.start_node("a", wait=False, **cluster.configs["a"])
    started.wait_started()
    return {
        "end_s": round(ended - begun, 2),
        "start_s": round(time.monotonic() - ended, 2),
        "killed_at": begun,
    }


def segment_bytes(blocks: int) -> int:
    """Memory for so many blocks."""
    return blocks * BLOCK_BYTES + blocks * BLOCK_BYTES // 64 + (128 << 10)


def nvme_tier(folder: Path, segment: int) -> dict[str, Any]:
    """Configure an NVMe tier of twice the size of the memory."""
    return {
        "nvme_dir": str(folder / "nvme"),
        "nvme_size": 2 * segment,
        "snapshot_interval_ms": 5000,
    }


def measure(requests: Sequence[Request], blocks: int, rate: float, way: str) -> dict[str, Any]:
    """Replay twice, undisturbed and with a restart halfway, and compare."""
    segment = segment_bytes(blocks)
    runs: list[Run] = []
    cost: dict[str, Any] = {}
    for disturbed in (False, True):
        folder = Path(tempfile.mkdtemp(prefix="kvstore-replay-"))
        cluster = Cluster(folder)
        try:
            tier = nvme_tier(folder, segment) if way == "power-loss" else {}
            node = cluster.start_node("a", segment_size=segment, **tier)
            begin = time.monotonic()
            half_s = len(requests) / rate / 2

            def disturb(cluster: Cluster = cluster, node: Daemon = node) -> None:
                cost.update(restart(cluster, node, way))

            timer = threading.Timer(half_s, disturb) if disturbed else None
            if timer:
                timer.start()
            runs.append(replay(cluster.connect(timeout_ms=2000), requests, rate))
            if timer:
                timer.join()
                cost["killed_at_s"] = cost.pop("killed_at") - begin
        finally:
            cluster.close()
            shutil.rmtree(folder)
    return {"way": way, "requests_a_second": rate} | compare(requests, runs[0], runs[1], cost)


def compare(
    requests: Sequence[Request], calm: Run, disturbed: Run, cost: dict[str, Any]
) -> dict[str, Any]:
    """The outage ends with the first request that hits again; what comes later is compared."""
    sizes = [len(request.hash_ids) for request in requests]
    killed_s = cost.pop("killed_at_s")
    first = next(i for i, at in enumerate(disturbed.at_s) if at >= killed_s)
    last = next(i for i in range(first, len(sizes)) if disturbed.hits[i] > 0)
    outside = [*range(first), *range(last, len(sizes))]
    blocks = sum(sizes[i] for i in outside)
    return cost | {
        "hit_rate_undisturbed": round(sum(calm.hits) / sum(sizes), 4),
        "hit_rate_disturbed": round(sum(disturbed.hits) / sum(sizes), 4),
        "outage_s": round(disturbed.at_s[last] - killed_s, 2),
        "outage_requests": last - first,
        "outage_missed_blocks": sum(calm.hits[first:last]) - sum(disturbed.hits[first:last]),
        "outside_undisturbed": round(sum(calm.hits[i] for i in outside) / blocks, 4),
        "outside_disturbed": round(sum(disturbed.hits[i] for i in outside) / blocks, 4),
        "longest_call_s": round(disturbed.longest_call_s, 2),
        "wrong_bytes": calm.wrong_bytes + disturbed.wrong_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--way", choices=("kill", "upgrade", "power-loss"), default="kill")
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second")
    parser.add_argument("--limit", type=int, help="only the first N requests")
    parser.add_argument("--segment", type=parse_size, help="memory of each node, for upgrade")
    parser.add_argument("--cases", default=",".join(rolling.CASES), help="of upgrade")
    given = parser.parse_args()
    requests = [r for r in read_trace(given.trace)[: given.limit] if r.hash_ids]
    if given.way == "upgrade":
        segment = given.segment or segment_bytes(given.blocks // len(rolling.NODES))
        cases = given.cases.split(",")
        found = rolling.measure(requests, segment, given.rate, replay, other_version, cases)
    else:
        found = measure(requests, given.blocks, given.rate, given.way)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
