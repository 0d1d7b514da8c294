"""What is not in this host's shared memory: through pinned memory of a limited size."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import kvstore
from kvstore import MissReason, Status
from tests.gpu.damage import damage_of_node
from tests.gpu.fake_cuda import FakeCuda
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for

SIZE = 300_000
LIMIT_BYTES = 64 << 20


@pytest.fixture
def tcp(cuda: FakeCuda, cluster: Cluster) -> Iterator[kvstore.Store]:
    """A client that maps nothing."""
    cluster.start_node("a", segment_size="256mb")
    with cluster.connect(transport="tcp", timeout_ms=20_000) as store:
        yield store


@pytest.mark.cluster
def test_one_object(tcp: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("a", SIZE)
    assert tcp.put("a", cuda.array(SIZE).write(data)) is Status.Ok
    assert tcp.get("a") == data
    out = cuda.array(SIZE)
    assert tcp.get_into("a", out) == SIZE
    assert out.content() == data
    assert tcp.get_into("nobody", out) is None
    with pytest.raises(kvstore.InvalidArgumentError, match="shorter"):
        tcp.get_into("a", cuda.array(SIZE - 1))
    assert 0 < cuda.count("most_pinned_bytes") <= 2 << 20
    assert tcp.stats()["hits_shm"] == 0


@pytest.mark.cluster
def test_more_than_the_pinned_memory(tcp: kvstore.Store, cuda: FakeCuda) -> None:
    """A batch of 120 MB, waited for and queued; the pool is used again and again."""
    keys = [f"k{i}" for i in range(30)]
    data = [proof(key, 4_000_000 + i) for i, key in enumerate(keys)]
    sources = [cuda.array(len(one)).write(one) for one in data]
    assert tcp.batch_put(keys, sources) == [Status.Ok] * 30
    sizes = [len(one) for one in data]
    stream = cuda.stream()
    for turn in range(2):
        outs = [cuda.array(size) for size in sizes]
        if turn == 0:
            found = tcp.batch_get_into(keys, outs)
        else:
            found = tcp.batch_get_into(keys, outs, stream=stream).result(20_000)
        assert found == sizes
        assert [out.content() for out in outs] == data
    assert 0 < cuda.count("most_pinned_bytes") <= LIMIT_BYTES
    assert cuda.count("calls:cuMemHostRegister") < 20


@pytest.mark.cluster
def test_threads_share_the_pinned_memory(tcp: kvstore.Store, cuda: FakeCuda) -> None:
    """Nobody waits for more while it keeps some: some placements are known here, others not."""
    keys = [f"k{i}" for i in range(40)]
    data = [proof(key, 1_000_000) for key in keys]
    assert tcp.batch_put(keys, data) == [Status.Ok] * 40
    assert tcp.batch_get(keys[::2]) == data[::2]
    wrong: list[str] = []

    def read() -> None:
        outs = [cuda.array(1_000_000) for _ in keys]
        if tcp.batch_get_into(keys, outs) != [1_000_000] * 40:
            wrong.append("not all were found")
        elif [out.content() for out in outs] != data:
            wrong.append("wrong bytes")

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cuda.count("most_pinned_bytes") <= LIMIT_BYTES


@pytest.mark.cluster
def test_a_larger_object_than_the_pinned_memory(tcp: kvstore.Store, cuda: FakeCuda) -> None:
    size = LIMIT_BYTES + 1_000_001
    data = proof("large", size)
    assert tcp.put("large", cuda.array(size).write(data)) is Status.Ok
    out = cuda.array(size)
    assert tcp.get_into("large", out) == size
    assert out.content() == data


@pytest.mark.cluster
def test_a_queued_get_waits_for_pinned_memory_until_its_deadline(
    cuda: FakeCuda, cluster: Cluster
) -> None:
    cluster.start_node("a", segment_size="256mb")
    with cluster.connect(transport="tcp", timeout_ms=500) as store:
        keys = [f"k{i}" for i in range(12)]
        for key in keys:
            assert store.put(key, proof(key, 8_000_000)) is Status.Ok
        outs = [cuda.array(8_000_000) for _ in keys]
        cuda.pause()
        transfer = store.batch_get_into(keys, outs, stream=cuda.stream())
        cuda.pause(False)
        sizes = transfer.result(10_000)
        loaded = [row for row, size in enumerate(sizes) if size >= 0]
        assert 0 < len(loaded) < len(keys)
        for row in loaded:
            assert outs[row].content() == proof(keys[row], 8_000_000)
        missed = [transfer.reasons[row] for row in range(12) if row not in loaded]
        assert set(missed) == {MissReason.Unavailable}
        assert store.get_into(keys[-1], outs[-1]) == 8_000_000


@pytest.mark.cluster
def test_pieces_on_the_way_through_the_host(tcp: kvstore.Store, cuda: FakeCuda) -> None:
    data = proof("page", 3 * SIZE)
    pool = cuda.array(6 * SIZE).write(data + bytes(3 * SIZE))
    pieces = [[pool.pointer + i * SIZE for i in range(3)]]
    assert tcp.batch_put_from(["page"], pieces, [[SIZE] * 3], memory="cuda") == [Status.Ok]
    places = [[pool.pointer + i * SIZE for i in range(3, 6)]]
    found = tcp.batch_get_into_pointers(["page"], places, [[SIZE] * 3], memory="cuda")
    assert found == [3 * SIZE]
    assert pool.content() == data + data


@pytest.mark.cluster
def test_a_client_that_may_only_read(cuda: FakeCuda, cluster: Cluster) -> None:
    """Its mapping is registered for reading; what it puts goes by socket."""
    cluster.start_node("a", segment_size="64mb", shm_read=["default"], shm_write=[])
    with cluster.connect() as store:
        data = proof("a", SIZE)
        assert store.put("a", cuda.array(SIZE).write(data)) is Status.Ok
        assert cuda.count("bounced_bytes") == SIZE
        out = cuda.array(SIZE)
        assert store.get_into("a", out) == SIZE
        assert out.content() == data
        assert store.stats()["hits_shm"] == 1
        assert cuda.count("bounced_bytes") == SIZE
        assert cuda.count("registered") == 1


@pytest.mark.cluster
def test_two_nodes_of_this_host(cuda: FakeCuda, cluster: Cluster) -> None:
    """One batch from the memory of both, with one event; a dead node's objects are misses."""
    for name in ("a", "b"):
        cluster.start_node(name, segment_size="64mb")
    with cluster.connect(timeout_ms=5000) as store:
        keys = [f"k{i}" for i in range(60)]
        data = [proof(key, 50_000) for key in keys]
        sources = [cuda.array(50_000).write(one) for one in data]
        for key, source in zip(keys, sources, strict=True):
            assert store.put(key, source) is Status.Ok
        on_b = [holders(store, key) == {"b"} for key in keys]
        assert 0 < sum(on_b) < 60
        outs = [cuda.array(50_000) for _ in keys]
        found = store.batch_get_into(keys, outs, stream=cuda.stream()).result(10_000)
        assert found == [50_000] * 60
        assert [out.content() for out in outs] == data
        assert cuda.count("bounced_bytes") == 0
        cluster.nodes["b"].kill()
        outs = [cuda.array(50_000) for _ in keys]
        found = store.batch_get_into(keys, outs)
        for is_gone, size, out, one in zip(on_b, found, outs, data, strict=True):
            assert size == 50_000 or is_gone
            assert size < 0 or out.content() == one


@pytest.mark.cluster
def test_a_damaged_replica_is_followed_by_the_other(cuda: FakeCuda, cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.start_node(name, segment_size="64mb")
    store = cluster.connect(timeout_ms=5000)
    with store:
        data = proof("twice", SIZE)
        assert store.put("twice", cuda.array(SIZE).write(data), replicas=2) is Status.Ok
        wait_for(lambda: len(holders(store, "twice")) == 2, "both have it")
        damage_of_node(cluster.segment_dirs["a"], data)
        outs = [cuda.array(SIZE) for _ in range(4)]
        assert store.batch_get_into(["twice"] * 4, outs) == [SIZE] * 4
        assert [out.content() for out in outs] == [data] * 4
        assert store.stats()["wrong_checksums"] > 0


def holders(store: kvstore.Store, key: str) -> set[str]:
    there = store.inspect(key)
    return set() if there is None else {one["node_id"] for one in there["replicas"]}
