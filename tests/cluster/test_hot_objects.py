"""Objects that many read from other hosts get further replicas, and their readers are spread."""

from __future__ import annotations

import time
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster

SIZE = 20_000
KEYS = [f"chain/{i}" for i in range(12)]


def start(cluster: Cluster, **config: Any) -> None:
    """Three nodes, which count as hosts of their own."""
    for node_id in "abc":
        cluster.start_node(node_id, segment_size="32mb", labels={"host": node_id}, **config)


def replicas(store: kvstore.Store, key: str) -> set[str]:
    """Nodes that have an object."""
    found = store.inspect(key)
    assert found is not None and found["replicas_wanted"] == 1  # so these are no shortage
    return {replica["node_id"] for replica in found["replicas"]}


def put_and_read(cluster: Cluster, rounds: int, pause_s: float = 0) -> kvstore.Store:
    store = cluster.connect(transport="tcp")
    assert store.batch_put(KEYS, [proof(key, SIZE) for key in KEYS]) == [Status.Ok] * len(KEYS)
    for _ in range(rounds):
        assert store.batch_get(KEYS) == [proof(key, SIZE) for key in KEYS]
        time.sleep(pause_s)
    return store


def test_many_reads_make_replicas_and_readers_find_them(cluster: Cluster) -> None:
    start(cluster, hot_reads_per_s=10, hot_replicas=3)
    store = put_and_read(cluster, 1)
    [home] = replicas(store, KEYS[0])

    def read_until(count: int) -> bool:
        for _ in range(20):
            assert store.batch_get(KEYS) == [proof(key, SIZE) for key in KEYS]
        return all(len(replicas(store, key)) == count for key in KEYS)

    wait_for(lambda: read_until(2), "a second replica of every object", 30)
    wait_for(lambda: read_until(3), "a third one", 30)
    assert not read_until(4)
    assert metric(cluster.nodes[home], "kvstore_hot_asks_total") >= 2 * len(KEYS)
    # A reader that has never met a node does not know that it is as near.
    names = (f"any/{i}" for i in range(10_000))
    wait_for(lambda: read_one_more(store, next(names)) and meets_all(cluster), "all nodes met")
    served = {node: served_by(cluster, node) for node in "abc"}
    wait_for(
        lambda: read_until(3) and all(served_by(cluster, node) > served[node] for node in "abc"),
        "the reader to use all of them",
        30,
    )
    # The removal reaches all of them.
    assert store.batch_remove(KEYS) == [Status.Ok] * len(KEYS)
    assert store.batch_get(KEYS) == [None] * len(KEYS)


def test_few_reads_make_none(cluster: Cluster) -> None:
    start(cluster, hot_reads_per_s=1000)
    store = put_and_read(cluster, 100)
    assert all(len(replicas(store, key)) == 1 for key in KEYS)
    assert all(metric(cluster.nodes[node], "kvstore_hot_asks_total") == 0 for node in "abc")


def test_without_another_node_nothing_waits(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="32mb", hot_reads_per_s=10)
    store = put_and_read(cluster, 100)
    assert metric(cluster.nodes["a"], "kvstore_hot_asks_total") >= len(KEYS)
    assert replicas(store, KEYS[0]) == {"a"}
    wait_for(
        lambda: metric(cluster.master, "kvstore_cluster_copies_queued") == 0, "no copy is queued"
    )


def read_one_more(store: kvstore.Store, key: str) -> bool:
    assert store.put(key, b"any") is Status.Ok
    return store.get(key) == b"any"


def meets_all(cluster: Cluster) -> bool:
    return all(served_by(cluster, node) > 0 for node in "abc")


def served_by(cluster: Cluster, node: str) -> float:
    """Bytes that a node has sent to readers."""
    return metric(cluster.nodes[node], "kvstore_bytes_total", operation="get", path="socket")
