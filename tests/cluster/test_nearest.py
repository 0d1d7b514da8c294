"""Of an object's replicas the nearest is read: by rack, NUMA node and RDMA domain."""

from __future__ import annotations

from typing import Any

import pytest

import kvstore
from kvstore import Status, ucx
from tests.cluster.test_reload import node_file, reloads, wait_reload
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for
from tests.support.transports import AT_CLIENT, AT_NODE, moved

pytestmark = pytest.mark.cluster

SIZE = 50_000
KEYS = [f"k/{i}" for i in range(30)]
READ = [proof(key, SIZE) for key in KEYS]
# Two nodes of one machine: only one that shares no memory is taken for another host's.
REMOTE = {"transports": ["tcp"]}
NEEDS_UCX = pytest.mark.skipif(not ucx.libraries(), reason="UCX is not installed (libucx0)")


def start(cluster: Cluster, node_id: str, **config: Any) -> None:
    """A node with these labels, of a host of its own."""
    labels = {"host": f"host-{node_id}", **config.pop("labels")}
    cluster.start_node(node_id, labels=labels, **config)


def put_everywhere(cluster: Cluster) -> None:
    """Store the objects on both nodes."""
    writer = cluster.connect(transport="tcp")
    assert writer.batch_put(KEYS, READ, replicas=2) == [Status.Ok] * len(KEYS)

    def is_everywhere(key: str) -> bool:
        found = writer.inspect(key)
        return found is not None and len(found["replicas"]) == 2

    wait_for(lambda: all(map(is_everywhere, KEYS)), "both nodes to have every object", 30)


def served(cluster: Cluster) -> dict[str, int]:
    """Count the objects that each node has sent."""
    running = {name: node for name, node in cluster.nodes.items() if node.process.poll() is None}
    return {
        name: int(metric(node, "kvstore_hits_total", seen_by="node", path="socket"))
        for name, node in running.items()
    }


def served_by(cluster: Cluster, store: kvstore.Store) -> dict[str, int]:
    """Read every object, and count what each node has sent for that."""
    before = served(cluster)
    assert store.batch_get(KEYS) == READ
    return {name: count - before[name] for name, count in served(cluster).items()}


def near(store: kvstore.Store) -> dict[str, str]:
    return {peer["node_id"]: peer["near"] for peer in store.peers()}


def test_the_clients_rack_serves_until_it_is_down(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cluster, "a", labels={"rack": "r1"}, **REMOTE)
    start(cluster, "b", labels={"rack": "r2"}, **REMOTE)
    put_everywhere(cluster)
    monkeypatch.setenv("KVSTORE_LABELS", "rack=r2")
    store = cluster.connect(transport="tcp")
    assert near(store) == {"a": "other", "b": "rack"}
    for _ in range(3):
        assert served_by(cluster, store) == {"a": 0, "b": len(KEYS)}
    explained = cluster.cli("explain", KEYS[0])
    assert {one["node_id"]: one["near"] for one in explained} == {"a": "other", "b": "rack"}
    cluster.nodes["b"].kill()
    assert store.batch_get(KEYS) == READ  # from the other one


def test_a_changed_label_moves_the_reads(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    start(cluster, "a", labels={"rack": "r1"}, **REMOTE)
    start(cluster, "b", labels={"rack": "r2"}, **REMOTE)
    put_everywhere(cluster)
    monkeypatch.setenv("KVSTORE_LABELS", "rack=r1")
    store = cluster.connect(transport="tcp")
    assert served_by(cluster, store) == {"a": len(KEYS), "b": 0}
    for node_id, rack in (("a", "r9"), ("b", "r1")):
        before = reloads(cluster.nodes[node_id], "applied")
        node_file(cluster, node_id).change(labels={"host": f"host-{node_id}", "rack": rack})
        wait_reload(cluster.nodes[node_id], "applied", before)
    wait_for(lambda: served_by(cluster, store) == {"a": 0, "b": len(KEYS)}, "the other node", 20)
    assert near(store) == {"a": "other", "b": "rack"}


def test_without_labels_replicas_share_the_reads(cluster: Cluster) -> None:
    start(cluster, "a", labels={}, **REMOTE)
    start(cluster, "b", labels={}, **REMOTE)
    put_everywhere(cluster)
    store = cluster.connect(transport="tcp")
    assert near(store) == {"a": "other", "b": "other"}
    assert min(served_by(cluster, store).values()) > 0


@pytest.mark.parametrize("mine", ["0", "1"])
def test_the_memory_of_this_numa_node_is_read_first(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, mine: str
) -> None:
    for node_id, numa in (("a", "0"), ("b", "1")):
        cluster.start_node(node_id, labels={"host": "here", "numa": numa})
    put_everywhere(cluster)
    monkeypatch.setenv("KVSTORE_LABELS", f"numa={mine}")
    store = cluster.connect()
    nearest, other = ("a", "b") if mine == "0" else ("b", "a")
    assert near(store) == {nearest: "numa", other: "host"}
    assert store.batch_get(KEYS) == READ
    assert store.stats()["hits_tcp"] == 0

    # A store is counted by the first of the nodes whose memory it reads.
    def hits(node_id: str) -> float:
        node = cluster.nodes[node_id]
        return metric(node, "kvstore_hits_total", seen_by="client", path="shm")

    wait_for(lambda: hits("a") + hits("b") == len(KEYS), "the reads to be counted", 20)
    assert (hits(nearest), hits(other)) == (len(KEYS), 0)


@NEEDS_UCX
def test_ucx_is_used_where_a_fabric_leads(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    rdma = {"transports": ["tcp", "ucx"], "ucx": AT_NODE}
    start(cluster, "a", labels={"rdma_domain": "pod-1"}, **rdma)
    start(cluster, "b", labels={"rdma_domain": "pod-2+pod-3", "rack": "r1"}, **rdma)
    put_everywhere(cluster)
    monkeypatch.setenv("KVSTORE_LABELS", "rdma_domain=pod-1,rack=r1")
    store = cluster.connect(transport="auto", ucx_settings=AT_CLIENT)

    def read_from_a() -> bool:
        before = moved(store)["bytes_ucx"]
        assert store.batch_get(KEYS) == READ
        return moved(store)["bytes_ucx"] - before == len(KEYS) * SIZE

    wait_for(read_from_a, "all bytes to come by UCX", 60)
    peers = {peer["node_id"]: peer for peer in store.peers()}
    assert (peers["a"]["near"], peers["a"]["path"]) == ("rdma_domain", "ucx")
    assert (peers["b"]["near"], peers["b"]["path"]) == ("rack", "tcp")
    assert peers["b"]["cause"] == "rdma_domain" and "pod-2+pod-3" in peers["b"]["why"]
    # The other one serves, and is not tried by UCX.
    before = moved(store)
    cluster.nodes["a"].kill()
    assert store.batch_get(KEYS) == READ
    after = moved(store)
    assert after["bytes_tcp"] - before["bytes_tcp"] == len(KEYS) * SIZE
    assert after["bytes_ucx"] == before["bytes_ucx"]
    # Who does not know its own domain tries.
    monkeypatch.setenv("KVSTORE_LABELS", "rdma_domain=")
    stranger = cluster.connect(transport="auto", ucx_settings=AT_CLIENT)

    def read_from_b() -> bool:
        assert stranger.batch_get(KEYS) == READ
        return moved(stranger)["bytes_ucx"] > 0

    wait_for(read_from_b, "UCX to be tried", 60)


def test_wrong_labels_are_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("rack", "rak=r1"):
        monkeypatch.setenv("KVSTORE_LABELS", wrong)
        with pytest.raises(kvstore.InvalidArgumentError, match="KVSTORE_LABELS"):
            cluster.connect()
