"""Copies that are made late and in another order than they were queued between streams."""

from __future__ import annotations

import random
import threading

import pytest

import kvstore
from kvstore import MissReason, Status
from tests.gpu.damage import damage
from tests.gpu.fake_cuda import FakeCuda
from tests.support.payloads import proof
from tests.support.processes import wait_for

SIZE = 1 << 20


def fill_up(store: kvstore.Store, salt: str) -> None:
    """Write more than the segment holds, so that every free block is used again."""
    for i in range(80):
        assert store.put(f"{salt}/{i}", proof(f"{salt}/{i}", SIZE)) is Status.Ok


def wait_until_it_asks(cuda: FakeCuda, thread: threading.Thread) -> None:
    """Until a call asks for its event, or has returned without."""
    wait_for(
        lambda: cuda.count("calls:cuEventQuery") > 100 or not thread.is_alive(), "the call waits"
    )


def test_a_queued_get_returns_before_its_copies(store: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("a", SIZE)
    store.put("a", data)
    out = cuda.array(SIZE)
    stream = cuda.stream()
    cuda.pause()
    transfer = store.batch_get_into(["a", "nobody"], [out, cuda.array(1)], stream=stream)
    assert transfer.queued == [SIZE, Status.NotFound]
    assert transfer.reasons == [MissReason.None_, MissReason.Absent]
    assert not transfer.done
    with pytest.raises(kvstore.DeadlineExceededError):
        transfer.result(20)
    assert out.content() == bytes(SIZE)
    cuda.pause(False)
    assert transfer.result(10_000) == [SIZE, Status.NotFound]
    assert transfer.done
    assert out.content() == data


def test_a_get_that_waits_does_not_return_early(store: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("a", SIZE)
    store.put("a", data)
    out = cuda.array(SIZE)
    cuda.pause()
    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(store.get_into("a", out)))
    thread.start()
    wait_until_it_asks(cuda, thread)
    assert found == []
    cuda.pause(False)
    thread.join()
    assert found == [SIZE]
    assert out.content() == data


def test_a_put_waits_for_its_copies(store: kvstore.Store, cuda: FakeCuda) -> None:
    """The checksum is that of the bytes that arrived, and nobody reads the object before."""
    data = proof("a", SIZE)
    source = cuda.array(SIZE).write(data)
    cuda.pause()
    put: list[Status] = []
    thread = threading.Thread(target=lambda: put.append(store.put("a", source)))
    thread.start()
    wait_until_it_asks(cuda, thread)
    early = store.get("a")
    cuda.pause(False)
    thread.join()
    assert early is None
    assert put == [Status.Ok]
    assert store.get("a") == data


def test_a_block_is_held_until_its_copy_is_made(store: kvstore.Store, cuda: FakeCuda) -> None:
    """The object is removed and its memory written anew meanwhile: a miss, or the right bytes."""
    data = proof("a", SIZE)
    store.put("a", data)
    out = cuda.array(SIZE)
    cuda.pause()
    transfer = store.get_into("a", out, stream=cuda.stream())
    assert store.remove("a") is Status.Ok
    fill_up(store, "other")
    cuda.pause(False)
    (size,) = transfer.result(10_000)
    assert out.content() == data, "the block was given to another object while it was copied"
    assert size == Status.NotFound
    assert transfer.reasons == [MissReason.Version]


def test_a_changed_generation_is_a_miss(store: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("a", SIZE)
    store.put("a", data)
    out = cuda.array(SIZE)
    cuda.pause()
    transfer = store.get_into("a", out, stream=cuda.stream(), verify="generation")
    assert transfer.queued == [SIZE]
    assert store.put("a", proof("a", SIZE, "new"), upsert=True) is Status.Ok
    fill_up(store, "other")
    cuda.pause(False)
    (size,) = transfer.result(10_000)
    assert size == Status.NotFound or out.content() in (data, proof("a", SIZE, "new"))
    assert size == Status.NotFound, "the object was replaced while it was copied"


def test_a_get_that_waits_reads_a_replaced_object_again(
    store: kvstore.Store, cuda: FakeCuda
) -> None:
    store.put("a", proof("a", SIZE))
    out = cuda.array(SIZE)
    cuda.pause()
    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(store.get_into("a", out)))
    thread.start()
    wait_until_it_asks(cuda, thread)
    assert store.put("a", proof("a", SIZE, "new"), upsert=True) is Status.Ok
    cuda.pause(False)
    thread.join()
    assert found == [SIZE]
    assert out.content() == proof("a", SIZE, "new")


def test_a_wrong_checksum_is_a_miss(store: kvstore.Store, cuda: FakeCuda) -> None:
    """Whoever may write the memory has flipped a bit."""
    data = proof("a", SIZE)
    store.put("a", data)
    damage(data)
    out = cuda.array(SIZE)
    reasons: list[MissReason] = []
    assert store.batch_get_into(["a"], [out], reasons=reasons) == [Status.ChecksumMismatch]
    assert reasons == [MissReason.Checksum]
    transfer = store.get_into("a", out, stream=cuda.stream())
    assert transfer.result(10_000) == [Status.ChecksumMismatch]


@pytest.mark.parametrize("seed", range(5))
def test_streams_in_any_order(store: kvstore.Store, cuda: FakeCuda, seed: int) -> None:
    draw = random.Random(seed)
    cuda.seed(seed)
    keys = [f"{seed}/{i}" for i in range(60)]
    data = [proof(key, draw.randrange(1, 50_000)) for key in keys]
    streams = [cuda.stream() for _ in range(4)]
    sources = [cuda.array(len(one)).write(one) for one in data]
    for first in range(0, 60, 20):
        part = slice(first, first + 20)
        put = store.batch_put(keys[part], sources[part], stream=draw.choice(streams))
        assert put == [Status.Ok] * 20
    queued = []
    for _ in range(20):
        rows = draw.sample(range(60), draw.randrange(1, 30))
        outs = [cuda.array(len(data[row])) for row in rows]
        names = [keys[row] for row in rows]
        queued.append((rows, outs, store.batch_get_into(names, outs, stream=draw.choice(streams))))
    for rows, outs, transfer in queued:
        assert transfer.result(10_000) == [len(data[row]) for row in rows]
        assert [out.content() for out in outs] == [data[row] for row in rows]


def test_calls_beside_a_capture_do_not_spoil_it(store: kvstore.Store, cuda: FakeCuda) -> None:
    """An engine captures its graphs while transfers are in progress."""
    data = proof("a", SIZE)
    store.put("a", data)
    out = cuda.array(SIZE)
    captured = cuda.stream()
    cuda.pause()
    transfer = store.get_into("a", out, stream=cuda.stream())
    cuda.capture(captured, True)
    asked = cuda.count("calls:cuEventQuery")
    wait_for(lambda: cuda.count("calls:cuEventQuery") > asked + 10, "the poller asks")
    cuda.pause(False)
    assert transfer.result(10_000) == [SIZE]
    assert store.put("b", out, stream=cuda.stream()) is Status.Ok
    cuda.capture(captured, False)
    assert cuda.count("violations") == 0


def test_transfers_outlive_the_store(cuda: FakeCuda) -> None:
    data = proof("a", SIZE)
    out = cuda.array(SIZE)
    with kvstore.open(segment_size="64mb") as store:
        store.put("a", data)
        cuda.pause()
        transfer = store.get_into("a", out, stream=cuda.stream())
        threading.Timer(0.2, cuda.pause, [False]).start()
    assert transfer.result(10_000) == [SIZE]
    assert out.content() == data
