"""A client whose nodes stop, hang or restart: reads go on, no call outlives its deadline."""

from __future__ import annotations

import signal
import time

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster


def test_a_hung_replica_is_left_for_the_next_one(cluster: Cluster) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    store = cluster.connect(transport="tcp")
    keys = [f"k/{i}" for i in range(50)]
    assert store.batch_put(keys, [proof(key, 3000) for key in keys], replicas=2) == (
        [Status.Ok] * 50
    )

    def copied() -> bool:
        found = [store.inspect(key) for key in keys]
        return all(f is not None and len(f["replicas"]) == 2 for f in found)

    wait_for(copied, "two replicas of each", 20, poll_s=0.1)
    cluster.nodes["a"].freeze()
    start = time.monotonic()
    assert store.batch_get(keys) == [proof(key, 3000) for key in keys]
    assert time.monotonic() - start < 3, "one hung attempt, then the other replica"
    start = time.monotonic()
    for key in keys:
        assert store.get(key) == proof(key, 3000)
    assert time.monotonic() - start < 3, "the hung node is not asked again and again"


def test_a_hung_home_node_still_is_read_and_puts_go_elsewhere(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect(timeout_ms=1000)
    assert store.put("k", proof("k", 100_000)) is Status.Ok
    cluster.nodes["a"].freeze()
    start = time.monotonic()
    assert store.get("k") == proof("k", 100_000), "its memory is mapped here"
    assert time.monotonic() - start < 0.5
    start = time.monotonic()
    assert store.put("new", b"x") in (Status.DeadlineExceeded, Status.Unavailable)
    assert time.monotonic() - start < 1.5
    cluster.start_node("b")
    wait_for(lambda: store.put("elsewhere", b"y") is Status.Ok, "puts to go to b", 10)
    found = store.inspect("elsewhere")
    assert found is not None and [r["node_id"] for r in found["replicas"]] == ["b"]
    cluster.nodes["a"].signal(signal.SIGCONT)
    cluster.wait_state("a", "alive")
    wait_for(lambda: store.get("k") is not None, "a to be back", 10)


def test_a_restarted_home_node_is_attached_again(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    assert store.put("before", bytes(1000)) is Status.Ok
    cluster.nodes["a"].kill()
    # Its memory outlives it: until the client notices, the right bytes are read from there.
    wait_for(lambda: store.get("before") is None, "the client to notice", 2)
    cluster.start_node("a")
    wait_for(lambda: store.put("after", bytes(1000)).ok, "puts to work again", 10)
    assert store.get("after") == bytes(1000)
    stats = store.stats()
    assert (stats["bytes_tcp"], stats["put_bytes_tcp"]) == (0, 0)


def test_the_other_nodes_objects_stay_readable(cluster: Cluster) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    store = cluster.connect(transport="tcp", timeout_ms=2000)
    keys = [f"k/{i}" for i in range(20)]
    store.batch_put(keys, [proof(key, 5000) for key in keys])
    cluster.nodes["a"].kill()
    slowest = 0.0
    for _ in range(20):
        start = time.monotonic()
        values = store.batch_get(keys)
        slowest = max(slowest, time.monotonic() - start)
        assert all(
            value in (None, proof(key, 5000)) for key, value in zip(keys, values, strict=True)
        )
    assert slowest < 2.5
    cluster.start_node("a")
    wait_for(lambda: store.put("new", b"x").ok, "puts to work", 10)


def test_transport_shm_never_takes_a_socket_for_bytes(cluster: Cluster) -> None:
    cluster.start_node("far", transports=["tcp"])
    writer = cluster.connect()
    assert writer.put("far", b"x" * 1000) is Status.Ok
    with pytest.raises(kvstore.UnavailableError, match="shm"):
        cluster.connect(transport="shm")
    cluster.start_node("near")
    store = cluster.connect(transport="shm")
    assert store.put("near", b"y" * 1000) is Status.Ok
    assert store.get("near") == b"y" * 1000
    assert store.exists("far") and store.get("far") is None
    stats = store.stats()
    assert stats["misses"]["unavailable"] == 1
    assert (stats["bytes_tcp"], stats["put_bytes_tcp"]) == (0, 0)


def test_a_hung_node_takes_nothing_from_the_keys_of_another(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="128mb")
    cluster.start_node("b", segment_size="128mb")
    store = cluster.connect(transport="tcp", timeout_ms=2000)
    # More on each node than the sockets' buffers hold, so that it has to be read to get there.
    size, count = 1 << 20, 64
    keys = [f"k/{i}" for i in range(count)]
    for key in keys:
        assert store.put(key, proof(key, size)) is Status.Ok
    homes = {}
    for key in keys:
        found = store.inspect(key)
        assert found is not None
        homes[key] = found["replicas"][0]["node_id"]
    assert set(homes.values()) == {"a", "b"}, "the puts were spread"
    for hung, other in (("a", "b"), ("b", "a")):
        cluster.nodes[hung].freeze()
        start = time.monotonic()
        values = store.batch_get(keys)
        assert time.monotonic() - start < 4
        for key, value in zip(keys, values, strict=True):
            assert value == (proof(key, size) if homes[key] == other else None), key
        cluster.nodes[hung].signal(signal.SIGCONT)
        wait_for(
            lambda: all(value is not None for value in store.batch_get(keys)),
            f"{hung} to be read again",
            20,
            poll_s=0.1,
        )


@pytest.mark.parametrize("stripes", [2, 4, 16])
def test_a_striped_read_brings_the_same_bytes(cluster: Cluster, stripes: int) -> None:
    cluster.start_node("a")
    writer = cluster.connect(transport="tcp")
    keys = [f"k/{i}" for i in range(40)]
    sizes = [1 + i * 40_000 for i in range(40)]
    wanted = [proof(key, size) for key, size in zip(keys, sizes, strict=True)]
    assert writer.batch_put(keys, wanted) == [Status.Ok] * len(keys)
    store = cluster.connect(transport="tcp", stripes=stripes)
    connections = metric(cluster.nodes["a"], "kvstore_connections")
    asked = [*keys[:20], "absent", *keys[20:]]
    expected = [*wanted[:20], None, *wanted[20:]]
    for _ in range(3):
        assert store.batch_get(asked) == expected
    assert metric(cluster.nodes["a"], "kvstore_connections") == connections + stripes


def test_a_hung_node_is_not_asked_for_leases_again_and_again(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect(timeout_ms=3000)
    assert store.put("k", bytes(1000)) is Status.Ok
    with store.lookup(["k"], lease_ms=1000) as leased:
        assert leased.length == 1
    cluster.nodes["a"].freeze()
    start = time.monotonic()
    for _ in range(50):
        with store.lookup(["k"], lease_ms=1000) as leased:
            assert leased.length == 0
    assert time.monotonic() - start < 5, "it costs a second at first, and little from then on"
    cluster.nodes["a"].signal(signal.SIGCONT)

    def leased_again() -> bool:
        with store.lookup(["k"], lease_ms=1000) as found:
            return found.length == 1

    wait_for(leased_again, "leases to be had again", 10, 0.05)
