"""Many small objects: a node's index grows with them, and says so where it has no room to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import MissReason, Status
from tests.support.cluster import Cluster
from tests.support.control import metric, ready
from tests.support.mounts import small_tmpfs
from tests.support.processes import wait_for
from tests.support.transports import REMOTE

pytestmark = pytest.mark.cluster

BATCH = 2000
SEGMENT_BYTES = 8 << 20


def value(i: int) -> bytes:
    return i.to_bytes(8, "little") * 8


def put_objects(store: kvstore.Store, count: int) -> list[str]:
    """Put `count` objects of 64 bytes; return their keys."""
    keys = [f"small/{i}" for i in range(count)]
    for i in range(0, count, BATCH):
        part = range(i, min(i + BATCH, count))
        statuses = store.batch_put(keys[i : i + BATCH], [value(j) for j in part])
        assert statuses == [Status.Ok] * len(part)
    return keys


def read_back(store: kvstore.Store, keys: list[str]) -> int:
    """The number of `keys` that are there; the bytes of each must be its own."""
    hits = 0
    for i in range(0, len(keys), BATCH):
        for j, data in enumerate(store.batch_get(keys[i : i + BATCH]), i):
            assert data in (None, value(j))
            hits += data is not None
    return hits


def entries(cluster: Cluster, state: str) -> float:
    return metric(cluster.nodes["a"], "kvstore_index_entries", state=state)


@pytest.mark.parametrize("transport", REMOTE)
def test_small_objects_fill_memory_before_one_is_evicted(cluster: Cluster, transport: str) -> None:
    node = cluster.start_node("a", segment_size="8mb")
    shared = cluster.connect()
    sockets = cluster.connect(transport=transport)
    free_at_first = entries(cluster, "free")
    count = SEGMENT_BYTES * 45 // 100 // 64
    keys = put_objects(shared, count)
    assert metric(node, "kvstore_evictions_total") == 0
    assert entries(cluster, "used") == count > free_at_first
    assert read_back(shared, keys) == read_back(sockets, keys) == count
    assert shared.stats()["hits_shm"] >= count
    node.kill()
    cluster.start_node("a", segment_size="8mb")
    assert entries(cluster, "used") == count
    wait_for(lambda: shared.prefix_length(keys[:BATCH]) == BATCH, "the objects to be announced", 20)
    assert read_back(cluster.connect(), keys) == count


def test_an_index_without_room_says_so(cluster: Cluster, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "memory", "20m") as memory:
        config: dict[str, Any] = {"segment_size": "8mb", "segment_dir": str(memory / "a")}
        node = cluster.start_node("a", **config)
        wait_for(lambda: metric(node, "kvstore_ready_bytes") == SEGMENT_BYTES, "all memory")
        (memory / "other").write_bytes(bytes(4 << 20))
        store = cluster.connect()
        keys = put_objects(store, 10_000)
        hits = read_back(store, keys)
        assert 2000 < hits < 4000
        evicted = metric(node, "kvstore_index_evictions_total")
        assert evicted == metric(node, "kvstore_evictions_total") == len(keys) - hits
        reasons: list[MissReason] = []
        store.batch_get(keys[:100], reasons=reasons)
        # The master never heard of one that went before it was announced.
        assert MissReason.IndexFull in reasons
        assert set(reasons) <= {MissReason.IndexFull, MissReason.Absent}
        assert metric(node, "kvstore_index_growth_failed") == 1
        assert entries(cluster, "growth") == 0
        status, body = ready(node)
        assert status == 200
        assert f"segment_dir {memory / 'a'} has no room for the index to grow" in str(
            body["degraded"]
        )
        wait_for(lambda: cluster.cli("nodes")[0]["index_entries"] == hits, "a heartbeat")
        shown = cluster.cli("nodes")[0]
        assert 0.85 < shown["index_entries"] / shown["index_limit"] <= 1
        node.terminate()
