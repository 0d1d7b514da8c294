"""GPU memory against plain copies: `make test-gpu` runs it behind its checks. Prints JSON.

Each row is the time of pinned host memory copied by cudaMemcpyAsync, divided by the time of the
store for the same bytes: 1 is as fast, above 1 faster. Medians of rounds that alternate.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Literal

import kvstore
from tests.gpu.real_device import MB, why_not

ROUNDS = 11
COUNT = 64
PAGES, PAGE_BYTES = 4096, 16 << 10
# What a row should reach; "checksum" compares a get with and without, not with plain copies.
TARGETS = {
    "get 64 x 1 MiB": 0.9,
    "put 64 x 1 MiB": 0.85,
    "get 4096 pages of 16 KiB": 0.7,
    "get 64 objects of 64 pieces of 16 KiB": 0.7,
    "put 64 objects of 64 pieces of 16 KiB": 0.7,
    "checksum": 0.9,
}


def median_s(calls: list[Callable[[], None]]) -> list[float]:
    """Time each call in turns, after one that counts not."""
    import torch

    times: list[list[float]] = [[] for _ in calls]
    for turn in range(ROUNDS + 1):
        for row, call in enumerate(calls):
            torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if turn > 0:
                times[row].append(time.perf_counter() - started)
    return [statistics.median(one) for one in times]


class Bench:
    """Objects, tensors and streams of one size."""

    def __init__(self, store: kvstore.Store) -> None:
        import torch

        self.store = store
        self.stream = torch.cuda.Stream()
        self.device = torch.randint(0, 256, (COUNT, MB), dtype=torch.uint8, device="cuda")
        self.pinned = torch.empty((COUNT, MB), dtype=torch.uint8, pin_memory=True)
        self.keys = [f"get/{i}" for i in range(COUNT)]
        assert all(store.batch_put(self.keys, list(self.device)))
        self._turn = 0

    def to_device(self) -> None:
        """Copy all, piece by piece, as plain asynchronous copies."""
        import torch

        with torch.cuda.stream(self.stream):
            for to, source in zip(self.device, self.pinned, strict=True):
                to.copy_(source, non_blocking=True)

    def to_host(self) -> None:
        """Copy all the other way."""
        import torch

        with torch.cuda.stream(self.stream):
            for to, source in zip(self.pinned, self.device, strict=True):
                to.copy_(source, non_blocking=True)

    def get(self, verify: Literal["checksum", "generation"] = "checksum") -> None:
        """Read all objects."""
        transfer = self.store.batch_get_into(
            self.keys, list(self.device), verify=verify, stream=self.stream
        )
        assert transfer.result(30_000) == [MB] * COUNT

    def put(self) -> None:
        """Write all under keys of their own."""
        self._turn += 1
        keys = [f"put/{self._turn}/{i}" for i in range(COUNT)]
        assert all(self.store.batch_put(keys, list(self.device), stream=self.stream))

    def pool(self, layers: int) -> kvstore.PagePool:
        """Describe the device's memory as pages of pieces of PAGE_BYTES."""
        each = self.device.numel() // layers
        buffers = [self.device.data_ptr() + i * each for i in range(layers)]
        pages = each // PAGE_BYTES
        return kvstore.PagePool("layer_first", buffers, layers, pages, 1, PAGE_BYTES, 1)

    def pages(self, layers: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return a get and a put of all pages; each object has a piece in every layer."""
        pool = self.pool(layers)
        ids = [(7 * page) % pool.pages for page in range(pool.pages)]
        keys = [f"page/{layers}/{i}" for i in ids]
        assert all(self.store.batch_put_from_pages(keys, pool, ids, stream=self.stream))

        def get() -> None:
            transfer = self.store.batch_get_into_pages(keys, pool, ids, stream=self.stream)
            assert transfer.result(30_000) == [pool.page_bytes] * len(keys)

        def put() -> None:
            self._turn += 1
            names = [f"put/{self._turn}/{key}" for key in keys]
            assert all(self.store.batch_put_from_pages(names, pool, ids, stream=self.stream))

        return get, put


def measure(store: kvstore.Store) -> dict[str, float]:
    """Return the ratios."""
    bench = Bench(store)
    get_many, _ = bench.pages(1)
    get_pieces, put_pieces = bench.pages(64)
    down, get, without, many, pieces = median_s(
        [bench.to_device, bench.get, lambda: bench.get("generation"), get_many, get_pieces]
    )
    up, put, put_paged = median_s([bench.to_host, bench.put, put_pieces])
    return {
        "get 64 x 1 MiB": down / get,
        "put 64 x 1 MiB": up / put,
        "get 4096 pages of 16 KiB": down / many,
        "get 64 objects of 64 pieces of 16 KiB": down / pieces,
        "put 64 objects of 64 pieces of 16 KiB": up / put_paged,
        "checksum": without / get,
        "plain GB/s down": COUNT * MB / down / 1e9,
        "plain GB/s up": COUNT * MB / up / 1e9,
    }


def main() -> int:
    """Print the ratios, their targets and what ran; exit with 1 when a target is missed."""
    if reason := why_not():
        print(f"skipped: {reason}")
        return 1
    import torch

    with kvstore.open(segment_size="4gb", timeout_ms=30_000) as store:
        found = measure(store)
        gpus = store.stats()["gpus"]
    missed = [name for name, target in TARGETS.items() if found[name] < target]
    answer = {
        "gpu": torch.cuda.get_device_name(),
        "gpus": gpus,
        "ratios": {name: round(value, 3) for name, value in found.items()},
        "targets": TARGETS,
        "missed": missed,
    }
    print(json.dumps(answer, indent=2))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
