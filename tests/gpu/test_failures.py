"""Freed memory, destroyed streams and contexts, calls of the driver that fail: typed errors."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import MissReason, Status
from tests.gpu.fake_cuda import ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY, FakeCuda
from tests.support.payloads import proof
from tests.support.processes import wait_for

SIZE = 100_000


@pytest.fixture
def data(store: kvstore.Store) -> bytes:
    """The object "a"."""
    there = proof("a", SIZE)
    store.put("a", there)
    return there


def test_freed_memory_is_refused(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    out = cuda.array(SIZE)
    cuda.free(out.pointer)
    with pytest.raises(kvstore.InvalidArgumentError, match="not memory of a CUDA device"):
        store.get_into("a", out)
    with pytest.raises(kvstore.InvalidArgumentError, match="not memory of a CUDA device"):
        store.put("b", out)


def test_a_length_beyond_the_allocation_is_refused(
    store: kvstore.Store, cuda: FakeCuda, data: bytes
) -> None:
    out = cuda.array(4096)
    with pytest.raises(kvstore.InvalidArgumentError, match="not memory of a CUDA device"):
        store.batch_get_into_pointers(["a"], [out.pointer], [1 << 40], memory="cuda")
    with pytest.raises(kvstore.InvalidArgumentError, match="not memory of a CUDA device"):
        store.batch_put_from(["b"], [out.pointer], [(1 << 64) - 1], memory="cuda")


def test_two_devices_in_one_call(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    outs = [cuda.array(SIZE, device=device) for device in (0, 1)]
    with pytest.raises(kvstore.InvalidArgumentError, match="device 0 and of device 1"):
        store.batch_get_into(["a", "a"], outs)
    for out in outs:
        assert store.get_into("a", out) == SIZE
        assert out.content() == data


def test_host_memory_in_a_call_for_a_gpu(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    out = cuda.array(SIZE)
    with pytest.raises(kvstore.InvalidArgumentError, match="bytearray is not memory"):
        store.batch_get_into(["a", "a"], [bytearray(SIZE), out])
    with pytest.raises(kvstore.InvalidArgumentError, match="bytes is not memory"):
        store.put("b", data, stream=cuda.stream())
    with pytest.raises(kvstore.InvalidArgumentError, match='memory="cuda"'):
        store.batch_get_into_pointers(["a"], [1], [1], stream=cuda.stream())  # type: ignore[call-overload]


@pytest.mark.parametrize("stream", ["torch", -1, 1 << 64, True, 1.5])
def test_a_stream_that_is_none(
    store: kvstore.Store, cuda: FakeCuda, data: bytes, stream: Any
) -> None:
    with pytest.raises(kvstore.InvalidArgumentError, match="stream must be a CUDA stream"):
        store.get_into("a", cuda.array(SIZE), stream=stream)


def test_streams_that_cannot_be_used(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    out = cuda.array(SIZE)
    with pytest.raises(kvstore.InvalidArgumentError, match="device 0's primary context"):
        store.get_into("a", out, stream=cuda.stream(device=1))
    captured = cuda.stream()
    cuda.capture(captured, True)
    with pytest.raises(kvstore.InvalidArgumentError, match="captured"):
        store.get_into("a", out, stream=captured)
    gone = cuda.stream()
    cuda.destroy_stream(gone)
    for call in (store.get_into, store.put):
        with pytest.raises(kvstore.InvalidArgumentError, match="cuStreamGetCtx"):
            call("a", out, stream=gone)


def test_a_read_only_array_and_gaps(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    with pytest.raises(kvstore.InvalidArgumentError, match="read-only"):
        store.get_into("a", cuda.array(SIZE, read_only=True))
    gaps = cuda.array(SIZE, shape=(100, 10), strides=(20, 1))
    with pytest.raises(kvstore.InvalidArgumentError, match="contiguous"):
        store.get_into("a", gaps)
    dense = cuda.array(SIZE, shape=(100, 1000), strides=(1000, 1))
    assert store.get_into("a", dense) == SIZE
    assert dense.content() == data


def test_arrays_of_several_streams_need_one(
    store: kvstore.Store, cuda: FakeCuda, data: bytes
) -> None:
    outs = [cuda.array(SIZE, stream=cuda.stream()) for _ in range(2)]
    with pytest.raises(kvstore.InvalidArgumentError, match="several streams"):
        store.batch_get_into(["a", "a"], outs)
    found = store.batch_get_into(["a", "a"], outs, stream=cuda.stream()).result(10_000)
    assert found == [SIZE, SIZE]


def test_a_stream_destroyed_meanwhile(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    """Its copies are still made, and their end is seen."""
    out = cuda.array(SIZE)
    stream = cuda.stream()
    cuda.pause()
    transfer = store.get_into("a", out, stream=stream)
    cuda.destroy_stream(stream)
    assert not transfer.done
    cuda.pause(False)
    assert transfer.result(10_000) == [SIZE]
    assert out.content() == data


def test_a_context_destroyed_meanwhile(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    out = cuda.array(SIZE)
    cuda.pause()
    transfer = store.get_into("a", out, stream=cuda.stream())
    cuda.destroy_context()
    assert transfer.result(10_000) == [Status.IoError]
    assert transfer.reasons == [MissReason.IoError]
    assert isinstance(transfer.error, kvstore.IoError)
    for call in (store.get_into, store.put):
        with pytest.raises(kvstore.InvalidArgumentError, match="CONTEXT_IS_DESTROYED"):
            call("a", out)
    assert store.get("a") == data


def test_memory_freed_meanwhile(store: kvstore.Store, cuda: FakeCuda, data: bytes) -> None:
    """An engine that frees a destination too early meets the driver's error, and no wrong hit."""
    out = cuda.array(SIZE)
    cuda.pause()
    transfer = store.get_into("a", out, stream=cuda.stream())
    cuda.free(out.pointer)
    cuda.pause(False)
    assert transfer.result(10_000) == [Status.IoError]
    assert "ILLEGAL_ADDRESS" in str(transfer.error)
    assert cuda.last_violation() == "a copy met freed device memory"
    wait_for(lambda: cuda.count("pending") == 0, "the stream skips what is left")
    cuda.reset()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("cuDevicePrimaryCtxRetain", kvstore.NoSpaceError),
        ("batched", kvstore.NoSpaceError),
        ("cuMemcpyBatchAsync", kvstore.NoSpaceError),
        ("cuEventCreate", kvstore.NoSpaceError),
        ("cuEventRecord", kvstore.NoSpaceError),
    ],
)
def test_a_get_whose_call_of_the_driver_fails(
    cuda: FakeCuda, call: str, error: type[Exception]
) -> None:
    with kvstore.open(segment_size="64mb") as store:
        keys = [f"k{i}" for i in range(8)]
        data = [proof(key, SIZE) for key in keys]
        store.batch_put(keys, data)
        outs = [cuda.array(SIZE) for _ in keys]
        stream = cuda.stream()
        cuda.fail(call, OUT_OF_MEMORY, after=4 if call == "batched" else 0)
        with pytest.raises(error, match="OUT_OF_MEMORY"):
            store.batch_get_into(keys, outs, stream=stream)
        assert cuda.count("pending") == 0
        assert store.batch_get_into(keys, outs, stream=stream).result(10_000) == [SIZE] * 8
        assert [out.content() for out in outs] == data


@pytest.mark.parametrize("call", ["cuMemcpyDtoHAsync", "cuEventCreate", "cuEventRecord"])
def test_a_put_whose_call_of_the_driver_fails(
    store: kvstore.Store, cuda: FakeCuda, call: str
) -> None:
    source = cuda.array(SIZE).write(proof("a", SIZE))
    cuda.fail(call, OUT_OF_MEMORY)
    assert store.put("a", source) is Status.NoSpace
    assert store.get("a") is None
    assert store.put("a", source) is Status.Ok
    assert store.get("a") == proof("a", SIZE)


def test_a_device_that_fails_during_a_put(store: kvstore.Store, cuda: FakeCuda) -> None:
    source = cuda.array(SIZE).write(proof("a", SIZE))
    cuda.fail("cuEventQuery", ILLEGAL_ADDRESS)
    assert store.put("a", source) is Status.IoError
    assert store.get("a") is None
    wait_for(lambda: cuda.count("pending") == 0, "what was queued before the failure")


def test_memory_that_cannot_be_registered_goes_through_a_bounce(
    store: kvstore.Store, cuda: FakeCuda
) -> None:
    data = proof("a", SIZE)
    cuda.fail("cuMemHostRegister", INVALID_VALUE)  # the writable mapping
    assert store.put("a", cuda.array(SIZE).write(data)) is Status.Ok
    cuda.set_read_only_registration(False)  # and a refused slice is not asked for again
    out = cuda.array(SIZE)
    assert store.get_into("a", out) == SIZE
    assert out.content() == data
    assert cuda.count("bounced_bytes") > 0


def test_an_older_driver_registers_the_writable_mapping(
    store: kvstore.Store, cuda: FakeCuda
) -> None:
    cuda.set_read_only_registration(False)
    data = proof("a", SIZE)
    store.put("a", data)
    out = cuda.array(SIZE)
    assert store.get_into("a", out) == SIZE
    assert out.content() == data
    assert cuda.count("bounced_bytes") == 0


def test_copies_that_outlast_the_deadline(cuda: FakeCuda) -> None:
    """Nothing counts as loaded or put; blocks and holds are given back when the copies are made."""
    with kvstore.open(segment_size="64mb", timeout_ms=200) as store:
        data = proof("a", SIZE)
        store.put("a", data)
        out = cuda.array(SIZE)
        source = cuda.array(SIZE).write(proof("b", SIZE))
        cuda.pause()
        reasons: list[MissReason] = []
        assert store.batch_get_into(["a"], [out], reasons=reasons) == [Status.DeadlineExceeded]
        assert reasons == [MissReason.Unavailable]
        assert store.put("b", source) is Status.DeadlineExceeded
        assert store.get("b") is None
        cuda.pause(False)
        wait_for(lambda: cuda.count("events") == 0, "the poller sees the end")
        assert store.get_into("a", out) == SIZE
        assert store.put("b", source) is Status.Ok
        assert store.get("b") == proof("b", SIZE)


def test_a_closed_store_ends_its_thread(cuda: FakeCuda) -> None:
    before = native_threads()
    with kvstore.open(segment_size="64mb") as store:
        store.put("a", b"1" * SIZE)
        idle = native_threads()
        assert store.get_into("a", cuda.array(SIZE)) == SIZE
        assert native_threads() <= idle, "a call that waits needs no thread"
        transfer = store.get_into("a", cuda.array(SIZE), stream=cuda.stream())
        assert transfer.result(10_000) == [SIZE]
    wait_for(lambda: native_threads() <= before, "threads have ended")


def native_threads() -> set[str]:
    """The ids of this process's threads, without the fake driver's worker, which stays.

    A set, because a thread of an earlier test may be about to end.
    """
    threads = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text() != "fake-cuda\n":
                threads.add(task.name)
    return threads
