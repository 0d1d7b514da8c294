"""GPU memory that UCX reads and writes by itself: no byte passes through the host.

UCX is loaded once in a process, so these tests run in one of their own, with a UCX that moves the
fake driver's memory (cuda_ucx.cpp).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import kvstore
from kvstore import MissReason, Status, ucx
from tests.cluster.test_ucx import start_node
from tests.gpu.damage import damage_of_node
from tests.gpu.fake_cuda import DeviceArray, FakeCuda, build_ucx
from tests.gpu.test_pages import LAYOUTS, PAGES, Pool
from tests.gpu.test_tensors import on_gpu
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for
from tests.support.transports import moved

OWN = "KVSTORE_TEST_CUDA_UCX"
SIZE = 300_000
inside = pytest.mark.skipif(OWN not in os.environ, reason="runs in a process of its own")
pytestmark = pytest.mark.cluster


@pytest.mark.timeout(600)
@pytest.mark.skipif(OWN in os.environ, reason="this is that process")
@pytest.mark.skipif(not ucx.libraries(), reason="UCX is not installed (libucx0)")
def test_in_a_process_of_its_own(fake_library: Path, tmp_path: Path) -> None:
    """All tests of this file."""
    environment = {
        **os.environ,
        OWN: "1",
        "KVSTORE_CUDA_LIB": str(fake_library),
        "KVSTORE_UCX_LIB": str(build_ucx(tmp_path)),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture
def store(cuda: FakeCuda, cluster: Cluster) -> Iterator[kvstore.Store]:
    """A client that has read by UCX."""
    start_node(cluster, segment_size="256mb", environment={"KVSTORE_UCX_LIB": ""})
    with cluster.connect(transport="ucx", timeout_ms=20_000) as opened:
        count = iter(range(10_000))
        wait_for(lambda: is_direct(opened, cuda, f"first/{next(count)}"), "UCX to be used", 60)
        yield opened


class Counts:
    """What has moved since, and how."""

    def __init__(self, store: kvstore.Store, cuda: FakeCuda) -> None:
        self._store = store
        self._cuda = cuda
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        return {**moved(self._store), "copied": copied(self._cuda)}

    def since(self) -> dict[str, int]:
        return {name: value - self._before[name] for name, value in self._now().items()}

    def check(self, *, read: int = 0, put: int = 0) -> None:
        """That all of it went straight to or from the GPU."""
        assert self.since() == {
            "bytes_ucx": read,
            "put_bytes_ucx": put,
            "bytes_tcp": 0,
            "put_bytes_tcp": 0,
            "copied": 0,
        }


def copied(cuda: FakeCuda) -> int:
    """Copies between host and device that were asked for."""
    calls = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyBatchAsync")
    return sum(cuda.count(f"calls:{call}") for call in calls)


def is_direct(store: kvstore.Store, cuda: FakeCuda, key: str) -> bool:
    counts = Counts(store, cuda)
    array = cuda.array(SIZE).write(proof(key, SIZE))
    with store.register(array):
        assert store.put(key, array) is Status.Ok
        array.write(bytes(SIZE))
        assert store.get_into(key, array) == SIZE
    assert array.content() == proof(key, SIZE)
    since = counts.since()
    return (since["bytes_ucx"], since["put_bytes_ucx"], since["copied"]) == (SIZE, SIZE, 0)


@inside
def test_batches_from_and_into_a_registered_pool(store: kvstore.Store, cuda: FakeCuda) -> None:
    count = 100
    pool = cuda.array(count * SIZE)
    keys = [f"k{i}" for i in range(count)]
    rows = [[pool.pointer + i * SIZE] for i in range(count)]
    sizes = [[SIZE]] * count
    with store.register(pool.pointer, pool.size, kind="cuda"):
        pool.write(b"".join(proof(key, SIZE) for key in keys))
        counts = Counts(store, cuda)
        put = store.batch_put_from(keys, rows, sizes, memory="cuda")
        assert put == [Status.Ok] * count
        counts.check(put=count * SIZE)
        assert store.batch_get(keys[::10]) == [proof(key, SIZE) for key in keys[::10]]
        pool.write(bytes(pool.size))
        counts = Counts(store, cuda)
        stream = cuda.stream()
        asked = [*keys[:50], "nobody", *keys[51:]]
        found = store.batch_get_into_pointers(asked, rows, sizes, memory="cuda", stream=stream)
        assert found.result(20_000) == [Status.NotFound if i == 50 else SIZE for i in range(count)]
        assert found.reasons[50] is MissReason.Absent
        counts.check(read=(count - 1) * SIZE)
        wanted = [bytes(SIZE) if i == 50 else proof(keys[i], SIZE) for i in range(count)]
        assert pool.content() == b"".join(wanted)
        assert cuda.count("calls:cuFlushGPUDirectRDMAWrites") > 0


@inside
def test_pieces_of_an_object(store: kvstore.Store, cuda: FakeCuda) -> None:
    """Also where they touch, and where one is empty."""
    data = proof("pieces", SIZE)
    pool = cuda.array(2 * SIZE)
    cuts = [0, 1000, 1000, 70_000, 70_001, SIZE]
    spans = list(itertools.pairwise(cuts))
    places = [pool.pointer + begin + (SIZE // 2 if begin >= 70_000 else 0) for begin, _ in spans]
    sizes = [end - begin for begin, end in spans]
    with store.register(pool):
        for place, (begin, end) in zip(places, spans, strict=True):
            if begin < end:
                cuda.write(place, data[begin:end])
        counts = Counts(store, cuda)
        assert store.batch_put_from(["p"], [places], [sizes], memory="cuda") == [Status.Ok]
        counts.check(put=SIZE)
        assert store.get("p") == data
        before = pool.content()
        pool.write(bytes(pool.size))
        counts = Counts(store, cuda)
        found = store.batch_get_into_pointers(["p"], [places], [sizes], memory="cuda")
        assert found == [SIZE]
        counts.check(read=SIZE)
        assert pool.content() == before


@inside
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_of_a_pool(store: kvstore.Store, cuda: FakeCuda, layout: str) -> None:
    there, here = Pool(cuda, layout, 2, seed=7), Pool(cuda, layout, 2)
    size = there.pool.page_bytes
    keys = [f"page{page}" for page in range(PAGES)]
    with store.register(there.array), store.register(here.array):
        counts = Counts(store, cuda)
        assert store.batch_put_from_pages(keys, there.pool, range(PAGES)) == [Status.Ok] * PAGES
        assert store.batch_get_into_pages(keys, here.pool, range(PAGES)) == [size] * PAGES
        counts.check(read=PAGES * size, put=PAGES * size)
    here.wanted[:] = there.wanted
    here.check()


@inside
def test_tensors(store: kvstore.Store, cuda: FakeCuda) -> None:
    """Their headers lie on the host."""
    array = numpy.arange(50_000, dtype="int32").reshape(200, 250)
    source, out = on_gpu(cuda, array), on_gpu(cuda, numpy.zeros_like(array))
    with store.register(source), store.register(out):
        counts = Counts(store, cuda)
        assert store.put_tensor("t", source) is Status.Ok
        assert store.get_tensor_into("t", out)
        since = counts.since()
    assert out.content() == array.tobytes()
    assert since["bytes_ucx"] == since["put_bytes_ucx"] > array.nbytes
    assert (since["copied"], since["bytes_tcp"], since["put_bytes_tcp"]) == (0, 0, 0)
    assert (store.get_tensor("t") == array).all()


@inside
def test_large_memory_needs_no_registration(store: kvstore.Store, cuda: FakeCuda) -> None:
    size = 3 << 20
    source, out = cuda.array(size).write(proof("l", size)), cuda.array(size)
    counts = Counts(store, cuda)
    assert store.put("l", source) is Status.Ok
    assert store.get_into("l", out) == size
    counts.check(read=size, put=size)
    assert out.content() == proof("l", size)


@inside
def test_what_is_not_registered_passes_through_the_host(
    store: kvstore.Store, cuda: FakeCuda
) -> None:
    data = proof("u", SIZE)
    counts = Counts(store, cuda)
    assert store.put("u", cuda.array(SIZE).write(data)) is Status.Ok
    out = cuda.array(SIZE)
    assert store.get_into("u", out) == SIZE
    assert out.content() == data
    since = counts.since()
    assert since["copied"] >= 2
    assert since["bytes_ucx"] == SIZE


@inside
@pytest.mark.parametrize("kernels", ["no kernels"], indirect=True)
def test_without_kernels_nothing_is_direct(cuda: FakeCuda, cluster: Cluster) -> None:
    """Nobody could sum the bytes."""
    start_node(cluster, segment_size="64mb", environment={"KVSTORE_UCX_LIB": ""})
    with cluster.connect(transport="ucx", timeout_ms=20_000) as store:
        data = proof("n", SIZE)
        array = cuda.array(SIZE).write(data)
        with store.register(array):
            assert store.put("n", array) is Status.Ok
            array.write(bytes(SIZE))
            assert store.get_into("n", array) == SIZE
        assert array.content() == data
        assert copied(cuda) >= 2


@inside
def test_nothing_is_written_before_the_stream_has_come_to_it(
    store: kvstore.Store, cuda: FakeCuda
) -> None:
    """What a stream does before with the memory comes first, although no network waits for it."""
    data, older = proof("new", SIZE), proof("old", SIZE)
    assert store.put("new", data) is Status.Ok
    out = cuda.array(SIZE).write(older)
    found: list[Any] = []
    with store.register(out):
        stream = cuda.stream()
        cuda.pause()
        counts = Counts(store, cuda)
        reading = threading.Thread(
            target=lambda: found.append(store.get_into("new", out, stream=stream).result(20_000))
        )
        reading.start()
        wait_for(lambda: cuda.count("pending") > 0, "the call to wait for its stream")
        assert counts.since()["bytes_ucx"] == 0
        assert out.content() == older
        cuda.pause(False)
        reading.join()
        assert found == [[SIZE]]
        assert out.content() == data


@inside
def test_a_put_takes_what_the_stream_has_made(store: kvstore.Store, cuda: FakeCuda) -> None:
    stream = cuda.stream()
    assert store.put("first", proof("first", SIZE)) is Status.Ok
    array = cuda.array(SIZE)
    with store.register(array):
        cuda.pause()
        done: list[Any] = []
        putting = threading.Thread(
            target=lambda: done.append(store.put("second", array, stream=stream))
        )
        putting.start()
        wait_for(lambda: cuda.count("pending") > 0, "the put to wait for its stream")
        array.write(proof("second", SIZE))  # as a kernel before it would
        cuda.pause(False)
        putting.join()
        assert done == [Status.Ok]
        assert store.get("second") == proof("second", SIZE)


@inside
def test_damaged_bytes_are_a_miss(store: kvstore.Store, cuda: FakeCuda, cluster: Cluster) -> None:
    data = proof("d", SIZE)
    assert store.put("d", data) is Status.Ok
    damage_of_node(cluster.segment_dirs["a"], data)
    out = cuda.array(SIZE)
    with store.register(out):
        reasons: list[MissReason] = []
        assert store.batch_get_into(["d"], [out], reasons=reasons) == [int(Status.ChecksumMismatch)]
        assert reasons == [MissReason.Checksum]


@inside
def test_a_node_that_dies(store: kvstore.Store, cuda: FakeCuda, cluster: Cluster) -> None:
    """A miss within the deadline, and the other node's objects still come directly."""
    keys = [f"k{i}" for i in range(20)]
    assert store.batch_put(keys, [proof(key, SIZE) for key in keys]) == [Status.Ok] * 20
    outs = [cuda.array(SIZE) for _ in keys]
    registrations = [store.register(out) for out in outs]
    cluster.nodes["a"].kill()
    found = store.batch_get_into(keys, outs)
    assert all(size < 0 for size in found)
    for registration in registrations:
        registration.release()


@inside
def test_what_cannot_be_registered(store: kvstore.Store, cuda: FakeCuda) -> None:
    on_host = bytearray(SIZE)
    address = numpy.frombuffer(on_host, "uint8").ctypes.data
    with pytest.raises(kvstore.InvalidArgumentError, match="not memory of a CUDA device"):
        store.register(address, SIZE, kind="cuda")
    with pytest.raises(kvstore.InvalidArgumentError, match="cannot be written"):
        store.register(DeviceArray(cuda, SIZE, read_only=True))
    with pytest.raises(kvstore.InvalidArgumentError, match="given by its address"):
        store.register(cuda.array(SIZE), kind="cuda")
    with pytest.raises(kvstore.InvalidArgumentError, match="memory"):
        store.register(address, SIZE, kind="rocm")  # type: ignore[arg-type]
