"""The embedded store beside the machine's memcpy: interleaved rounds, medians, ratios.

Absolute figures say little about another machine; the ratio to memcpy of the same size, measured in
the same run, does. Every byte that is read is compared with what was put.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

import kvstore
from kvstore.cli.output import print_table
from kvstore.clock import monotonic_ns
from kvstore.errors import Status
from kvstore.sizes import format_size

SHAPES = ((4 << 10, 128), (64 << 10, 128), (256 << 10, 64), (1 << 20, 16), (4 << 20, 4))


def seconds(call: Callable[[], None]) -> float:
    start = monotonic_ns()
    call()
    return (monotonic_ns() - start) / 1e9


def measure(store: kvstore.Store, size: int, batch: int, rounds: int) -> dict[str, Any]:
    data = [os.urandom(size) for _ in range(batch)]
    out = [memoryview(bytearray(size)) for _ in range(batch)]
    source = [memoryview(bytearray(block)) for block in data]
    times: dict[str, list[float]] = {"memcpy": [], "put": [], "get": [], "exists": []}

    def memcpy() -> None:
        for target, block in zip(out, source, strict=True):
            target[:] = block

    for number in range(rounds):
        keys = [f"bench/{size}/{number}/{i}" for i in range(batch)]

        def put(keys: list[str] = keys) -> None:
            assert store.batch_put(keys, data) == [Status.Ok] * batch

        def get(keys: list[str] = keys) -> None:
            assert store.batch_get_into(keys, out) == [size] * batch

        def exists(keys: list[str] = keys) -> None:
            assert all(store.batch_exists(keys))

        for name, call in (("memcpy", memcpy), ("put", put), ("get", get), ("exists", exists)):
            times[name].append(seconds(call))
        assert all(view == block for view, block in zip(out, data, strict=True)), "wrong bytes"
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "size": size,
        "batch": batch,
        "memcpy_gbps": size * batch / median["memcpy"] / 1e9,
        "put_ratio": median["memcpy"] / median["put"],
        "get_ratio": median["memcpy"] / median["get"],
        "exists_mkeys": batch / median["exists"] / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with kvstore.open(segment_size="1gb") as store:
        rows = [measure(store, size, batch, arguments.rounds) for size, batch in SHAPES]
    if arguments.json:
        print(json.dumps({"machine": platform.processor(), "rows": rows}))
        return
    print_table(
        ["size", "batch", "memcpy GB/s", "put / memcpy", "get / memcpy", "exists M keys/s"],
        [
            [
                format_size(row["size"]),
                row["batch"],
                round(row["memcpy_gbps"], 2),
                round(row["put_ratio"], 2),
                round(row["get_ratio"], 2),
                round(row["exists_mkeys"], 2),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
