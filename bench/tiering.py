"""Measures what the NVMe tier gains: the hit rate of a trace, and prefetching of chains.

`python -m bench.tiering --trace FILE` replays a trace on a node with little memory, without and
with the NVMe tier. `python -m bench.tiering --chains 64` writes chains of pages until the first
ones are on NVMe alone, and reads them back page by page, prefetching on and off in turns. Prints
JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kvstore
from kvstore.replay.runner import Replay
from kvstore.replay.trace import read_trace
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

BLOCK_BYTES = 4096
PAGE_BYTES = 256 << 10


def on_cluster(
    use: Callable[[kvstore.Store, Daemon], dict[str, Any]], nvme_size: int, **config: Any
) -> dict[str, Any]:
    """Run something on one node, with an NVMe tier unless its size is 0."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-tiering-"))
    cluster = Cluster(folder)
    try:
        if nvme_size:
            config |= {"nvme_dir": str(folder / "nvme"), "nvme_size": nvme_size}
        node = cluster.start_node("a", **config)
        return use(cluster.connect(timeout_ms=10_000), node)
    finally:
        cluster.close()
        shutil.rmtree(folder)


def segment_for(blocks: int) -> int:
    """A segment for so many blocks: with the rounding of the last chunks."""
    return blocks * BLOCK_BYTES + blocks * BLOCK_BYTES // 64 + (128 << 10)


def replay(trace: Path, dram_blocks: int, nvme_blocks: int) -> dict[str, Any]:
    """Replay a trace as fast as it goes, with room for `nvme_blocks` on NVMe."""
    requests = [request for request in read_trace(trace) if request.hash_ids]
    blocks = sum(len(request.hash_ids) for request in requests)

    def use(store: kvstore.Store, node: Daemon) -> dict[str, Any]:
        replayed = Replay(store, BLOCK_BYTES, max(len(r.hash_ids) for r in requests))
        started = time.monotonic()
        replayed.run(requests, lambda: None)
        return {
            "dram_blocks": dram_blocks,
            "nvme_blocks": nvme_blocks,
            "hit_rate": round(replayed.tally.hit_blocks / blocks, 4),
            "wrong_bytes": replayed.tally.wrong_bytes,
            "seconds": round(time.monotonic() - started, 1),
            "evicted_unwritten": metric(node, "kvstore_evicted_unwritten_total"),
        }

    size = segment_for(dram_blocks)
    return on_cluster(use, nvme_blocks * BLOCK_BYTES, segment_size=size)


def read_chains(chains: int, pages: int, depth: int) -> dict[str, Any]:
    """Read chains that only NVMe has, page by page, as a prefill does layer by layer."""
    names = [[f"chain/{c}/{p}" for p in range(pages)] for c in range(chains)]

    def use(store: kvstore.Store, node: Daemon) -> dict[str, Any]:
        for chain in names:
            for first in range(0, pages, 16):
                keys = chain[first : first + 16]
                parent = chain[first - 1] if first else None
                if first == 0:
                    store.put(keys[0], proof(keys[0], PAGE_BYTES))
                    parent, keys = keys[0], keys[1:]
                store.batch_put(keys, [proof(key, PAGE_BYTES) for key in keys], parent=parent)
                # Never faster than the disk: what it missed would be a miss below.
                wait_for(lambda: metric(node, "kvstore_unwritten_bytes") <= segment / 2, "NVMe", 60)
        cold = names[: chains * 2 // 3]
        times_us: list[float] = []
        for chain in cold:
            for key in chain:
                started = time.perf_counter_ns()
                found = store.get(key)
                times_us.append((time.perf_counter_ns() - started) / 1000)
                assert found == proof(key, PAGE_BYTES), key
                time.sleep(0.0005)  # what a page is read for takes its time, too
        times_us.sort()
        return {
            "prefetch_depth": depth,
            "reads": len(times_us),
            "p50_us": round(statistics.median(times_us)),
            "p99_us": round(times_us[len(times_us) * 99 // 100]),
            "read_from_nvme": metric(node, "kvstore_nvme_hits_total"),
            "prefetched": metric(node, "kvstore_nvme_prefetched_objects_total"),
            "used": metric(node, "kvstore_nvme_prefetch_used_total"),
            "wasted": metric(node, "kvstore_nvme_prefetch_wasted_total"),
        }

    total = chains * pages * PAGE_BYTES
    segment = total // 4
    return on_cluster(
        use, 2 * total, segment_size=segment, prefetch_depth=depth, prefetch_rate="1gb"
    )


def prefetching(chains: int, pages: int, rounds: int) -> dict[str, Any]:
    """Compare reads with prefetching off and on, in turns: medians of the rounds."""
    runs: dict[int, list[dict[str, Any]]] = {0: [], 16: []}
    for _ in range(rounds):
        for depth, found in runs.items():
            found.append(read_chains(chains, pages, depth))
    middle = {
        name: {key: statistics.median(run[key] for run in found) for key in ("p50_us", "p99_us")}
        for name, found in (("off", runs[0]), ("on", runs[16]))
    }
    return {
        **middle,
        "p50_ratio": round(middle["on"]["p50_us"] / middle["off"]["p50_us"], 3),
        "p99_ratio": round(middle["on"]["p99_us"] / middle["off"]["p99_us"], 3),
        "last_runs": [runs[0][-1], runs[16][-1]],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="file in the public Mooncake format")
    parser.add_argument("--dram-blocks", type=int, default=5859)
    parser.add_argument("--nvme-blocks", type=int, default=58_593)
    parser.add_argument("--chains", type=int, default=0)
    parser.add_argument("--pages", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    if given.trace:
        result["memory_alone"] = replay(given.trace, given.dram_blocks, 0)
        result["with_nvme"] = replay(given.trace, given.dram_blocks, given.nvme_blocks)
    if given.chains:
        result["prefetching"] = prefetching(given.chains, given.pages, given.rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
