"""What is seen of a node that was killed, or hangs, before its heartbeats tell."""

from __future__ import annotations

import signal

import pytest

from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster


def test_what_only_a_killed_node_had_is_absent_at_once(cluster: Cluster) -> None:
    cluster.start_node("a")
    reader = cluster.connect(transport="tcp")
    stranger = cluster.connect()
    keys = [f"k/{i}" for i in range(20)]
    assert reader.batch_put(keys, [proof(key, 2000) for key in keys]) == [Status.Ok] * 20
    assert reader.batch_exists(keys) == [True] * 20
    assert stranger.prefix_length(keys) == 20
    cluster.nodes["a"].kill()
    # The master knows it by the broken link; its heartbeats are missed in seconds only.
    wait_for(lambda: not reader.exists(keys[0]), "the keys to be absent", 20, 0.01)
    assert cluster.node_states()["a"] == "alive"
    for store in (reader, stranger):
        assert store.batch_exists(keys) == [False] * 20
        assert store.prefix_length(keys) == 0
        assert store.get(keys[0]) is None
    status = cluster.cli("status")
    assert status["objects"] == 0
    assert metric(cluster.master, "kvstore_cluster_objects") == 0
    assert metric(cluster.master, "kvstore_cluster_unreachable_objects") == 20
    cluster.start_node("a")
    wait_for(lambda: reader.get(keys[0]) == proof(keys[0], 2000), "the keys to be back", 20, 0.05)
    assert stranger.batch_exists(keys) == [True] * 20


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_puts_go_around_a_node_that_hangs(cluster: Cluster, transport: str) -> None:
    for node in ("a", "b"):
        cluster.start_node(node, labels={"host": "here"})
    store = cluster.connect(transport=transport, timeout_ms=4000)
    for i in range(40):
        assert store.put(f"before/{i}", proof(f"before/{i}", 3000)) is Status.Ok
    cluster.nodes["a"].freeze()
    try:
        results = [store.put(f"k/{i}", proof(f"k/{i}", 3000)) for i in range(200)]
    finally:
        cluster.nodes["a"].signal(signal.SIGCONT)
    assert results == [Status.Ok] * 200
    # What it was asked for while it stood still, nobody has heard the answer to.
    withheld = ("kvstore_reservations", "kvstore_quarantined_bytes")
    wait_for(
        lambda: all(metric(cluster.nodes["a"], name) == 0 for name in withheld),
        "nothing to be withheld",
        10,
    )

    def all_there() -> bool:
        return all(store.get(f"k/{i}") == proof(f"k/{i}", 3000) for i in range(200))

    wait_for(all_there, "every object that was put", 10)
