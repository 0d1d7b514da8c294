"""GPU memory on a node's host: blocks go by direct copies, without a bounce."""

from __future__ import annotations

import asyncio
import random

import pytest

import kvstore
from kvstore import MissReason, Status
from tests.gpu.fake_cuda import DLPackArray, FakeCuda
from tests.support.payloads import proof
from tests.support.processes import wait_for

SIZE = 40_000


def test_put_and_get_into_copy_directly(store: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("a", SIZE)
    source = cuda.array(SIZE).write(data)
    assert store.put("a", source) is Status.Ok
    assert store.get("a") == data
    out = cuda.array(SIZE)
    assert store.get_into("a", out) == SIZE
    assert out.content() == data
    assert cuda.count("bounced_bytes") == 0
    assert cuda.count("copies") == 2


def test_a_miss_and_a_short_buffer(store: kvstore.Store, cuda: FakeCuda) -> None:
    out = cuda.array(SIZE)
    assert store.get_into("nobody", out) is None
    store.put("long", bytes(SIZE + 1))
    with pytest.raises(kvstore.InvalidArgumentError, match="shorter"):
        store.get_into("long", out)
    reasons: list[MissReason] = []
    assert store.batch_get_into(["long", "nobody"], [out, out], reasons=reasons) == [
        Status.BufferTooSmall,
        Status.NotFound,
    ]
    assert reasons == [MissReason.BufferTooSmall, MissReason.Absent]
    stats = store.stats()
    assert {why: count for why, count in stats["misses"].items() if count} == {
        "buffer_too_small": 2,
        "absent": 2,
    }
    assert stats["keys_read"] == 4
    assert out.content() == bytes(SIZE)


@pytest.mark.parametrize("count", [1, 3, 40, 300])
def test_batches(store: kvstore.Store, cuda: FakeCuda, count: int) -> None:
    """More blocks than a slot has hazards; more than one group of a put."""
    keys = [f"k{i}" for i in range(count)]
    sizes = [random.Random(count).randrange(1, SIZE) for _ in keys]
    data = [proof(key, size) for key, size in zip(keys, sizes, strict=True)]
    sources = [cuda.array(len(one)).write(one) for one in data]
    stream = cuda.stream()
    assert store.batch_put(keys, sources, stream=stream) == [Status.Ok] * count
    assert store.batch_get(keys) == data
    outs = [cuda.array(size) for size in sizes]
    order = random.Random(1).sample(range(count), count)
    found = store.batch_get_into([keys[i] for i in order], [outs[i] for i in order])
    assert found == [sizes[i] for i in order]
    assert [out.content() for out in outs] == data
    queued = store.batch_get_into(keys, [cuda.array(size) for size in sizes], stream=stream)
    assert queued.result(10_000) == sizes
    assert cuda.count("bounced_bytes") == 0
    if count >= 40:
        assert cuda.count("batches") > 0


def test_pointers_gather_and_scatter(store: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("page", 3 * SIZE)
    pool = cuda.array(8 * SIZE).write(data + bytes(5 * SIZE))
    pieces = [pool.pointer + i * SIZE for i in range(3)]
    sizes = [SIZE] * 3
    assert store.batch_put_from(["page"], [pieces], [sizes], memory="cuda") == [Status.Ok]
    assert store.get("page") == data
    out = cuda.array(8 * SIZE)
    places = [out.pointer + i * SIZE for i in (6, 0, 3)]
    found = store.batch_get_into_pointers(["page"], [places], [sizes], memory="cuda")
    assert found == [3 * SIZE]
    for part, place in enumerate((6, 0, 3)):
        assert out.content()[place * SIZE :][:SIZE] == data[part * SIZE :][:SIZE]


@pytest.mark.parametrize("turn", range(3))
def test_a_block_over_slices_of_the_registration(
    store: kvstore.Store, cuda: FakeCuda, turn: int
) -> None:
    """An object that is longer than a slice: its copy ends at every border."""
    size = (18 << 20) + turn
    data = proof("large", size)
    source = cuda.array(size).write(data)
    # The first puts may come before the node has faulted its memory in.
    wait_for(lambda: store.put("large", source), "there is room")
    out = cuda.array(size)
    assert store.get_into("large", out) == size
    assert out.content() == data
    assert cuda.count("bounced_bytes") == 0
    assert cuda.count("registered") >= 4
    assert cuda.count("copies") >= 4


def test_dlpack_is_read_on_the_legacy_stream(store: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("d", SIZE)
    source = DLPackArray(cuda.array(SIZE).write(data))
    assert store.put("d", source) is Status.Ok
    out = DLPackArray(cuda.array(SIZE))
    assert store.get_into("d", out) == SIZE
    assert out.array.content() == data
    assert source.streams == out.streams == [1]


def test_empty_objects(store: kvstore.Store, cuda: FakeCuda) -> None:
    store.put("empty", b"")
    out = cuda.array(SIZE)
    assert store.get_into("empty", out) == 0
    nothing = cuda.array(8, shape=(0,))
    assert store.put("void", nothing) is Status.Ok
    assert store.get_into("void", nothing) == 0
    assert store.get_into("nobody", nothing) is None
    with pytest.raises(kvstore.InvalidArgumentError, match="shorter"):
        store.put("one", b"1")
        store.get_into("one", nothing)
    assert store.batch_get_into(["empty"], [nothing], stream=cuda.stream()).result(10_000) == [0]
    assert store.batch_get_into(["empty"], [out], stream=cuda.stream()).result(10_000) == [0]


def test_generation_alone(store: kvstore.Store, cuda: FakeCuda) -> None:
    store.put("g", proof("g", SIZE))
    out = cuda.array(SIZE)
    assert store.get_into("g", out, verify="generation") == SIZE
    assert out.content() == proof("g", SIZE)


def test_asyncio(store: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("a", SIZE)
    source, out = cuda.array(SIZE).write(data), cuda.array(SIZE)
    stream = cuda.stream()

    async def both_ways() -> None:
        async with kvstore.AsyncStore(store) as calls:
            assert await calls.put("a", source, stream=stream) is Status.Ok
            transfer = await calls.get_into("a", out, stream=stream)
            assert transfer.result(10_000) == [SIZE]
            assert out.content() == data
            assert await calls.get_into("a", cuda.array(SIZE)) == SIZE

    asyncio.run(both_ways())
