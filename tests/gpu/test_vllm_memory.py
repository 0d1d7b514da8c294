"""vLLM's KV cache on a GPU: blocks go directly, as pages where a group's regions are alike."""

from __future__ import annotations

from typing import Any

import kvstore
from kvstore import Status
from kvstore.integrations.vllm.gpu_memory import GpuMemory
from kvstore.integrations.vllm.pages import Region
from tests.gpu.fake_cuda import FakeCuda
from tests.support.payloads import proof

BLOCKS, LAYERS, SIZE, STRIDE = 16, 5, 256, 1024


class OneStream:
    """Streams of the fake driver, and whether each put waited for its event."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._stream = cuda.stream()
        self.waited_for: list[Any] = []

    def mark(self) -> str:
        return "event"

    def own(self, after: Any) -> int:
        self.waited_for.append(after)
        return self._stream


def test_blocks_of_two_groups(store: kvstore.Store, cuda: FakeCuda, kernels: bool) -> None:
    """One of pages with gaps between them, one of regions that differ in length."""
    cache = cuda.array(LAYERS * BLOCKS * STRIDE)
    alike = [Region(cache.pointer + i * BLOCKS * STRIDE, STRIDE, SIZE) for i in range(LAYERS)]
    other = cuda.array(2 * BLOCKS * STRIDE)
    mixed = [Region(other.pointer, STRIDE, 100), Region(other.pointer + 512, STRIDE, 300)]
    streams = OneStream(cuda)
    memory = GpuMemory({0: alike, 1: mixed}, "layout", BLOCKS, streams)
    assert [memory.block_bytes(group) for group in (0, 1)] == [LAYERS * SIZE, 400]
    for array in (cache, other):
        array.write(proof("cache", array.size))
    keys = [f"block{i}" for i in range(2 * BLOCKS)]
    groups = [i % 2 for i in range(2 * BLOCKS)]
    ids = [7 * (i // 2) % BLOCKS for i in range(2 * BLOCKS)]
    put = memory.put(store, keys, groups, ids, parent=None, replicas=1, after=memory.mark())
    assert put == [Status.Ok] * len(keys)
    assert streams.waited_for == ["event"]
    assert (cuda.count("page_kernels") > 0) is kernels
    for key, group, block in zip(keys, groups, ids, strict=True):
        wanted = b"".join(
            cuda.read(one.address + block * one.stride, one.size) for one in (alike, mixed)[group]
        )
        assert store.get(key) == wanted
    before = cache.content(), other.content()
    for block in ids:
        for one in (*alike, *mixed):
            cuda.write(one.address + block * one.stride, bytes(one.size))
    sizes = [memory.block_bytes(group) for group in groups]
    found = memory.get(store, [*keys[:-1], "nobody"], groups, ids)
    assert found == [*sizes[:-1], Status.NotFound]
    assert memory.get(store, keys[-1:], groups[-1:], ids[-1:]) == sizes[-1:]
    assert (cache.content(), other.content()) == before
    assert cuda.count("bounced_bytes") == 0
