"""Lookups with `local=True`: what this host's nodes have in memory, and nobody is asked."""

from __future__ import annotations

import asyncio
import signal

import pytest

import kvstore
from kvstore import AsyncStore, MissReason, Status
from tests.support.cluster import Cluster
from tests.support.payloads import proof

pytestmark = pytest.mark.cluster

NEAR = [f"near/{i}" for i in range(20)]
FAR = [f"far/{i}" for i in range(20)]


@pytest.fixture
def store(cluster: Cluster) -> kvstore.Store:
    """A store beside node a, which has NEAR; b, which shares no memory, has FAR."""
    cluster.start_node("b", transports=["tcp"])
    writer = cluster.connect(transport="tcp")
    assert writer.batch_put(FAR, [proof(key, 3000) for key in FAR]) == [Status.Ok] * len(FAR)
    cluster.start_node("a")
    store = cluster.connect()
    assert store.batch_put(NEAR, [proof(key, 3000) for key in NEAR]) == [Status.Ok] * len(NEAR)
    return store


def test_an_object_of_another_host_is_absent_here(store: kvstore.Store) -> None:
    asked = store.counters()["lookups"]
    mixed = [*NEAR, *FAR, "nowhere"]
    assert store.exists(NEAR[0], local=True) and not store.exists(FAR[0], local=True)
    assert store.batch_exists(mixed, local=True) == [True] * len(NEAR) + [False] * (len(FAR) + 1)
    assert store.prefix_length(mixed, local=True) == len(NEAR)
    assert store.prefix_length(mixed, 7, local=True) == 14
    with store.lookup(mixed, local=True) as found:
        assert (found.length, found.reason) == (len(NEAR), MissReason.Absent)
    with store.lookup(NEAR, local=True) as found:
        assert (found.length, found.reason) == (len(NEAR), MissReason.None_)
    with store.lookup(mixed, lease_ms=5000, local=True) as leased:
        assert leased.length == len(NEAR) and leased.alive
    assert store.counters()["lookups"] == asked
    assert store.exists(FAR[0]) and store.batch_exists(mixed) == [True] * 40 + [False]
    assert store.prefix_length(mixed) == 40 and store.lookup(mixed).length == 40
    assert store.counters()["lookups"] > asked


def test_what_is_removed_or_flushed_is_absent_here_at_once(store: kvstore.Store) -> None:
    assert store.remove(NEAR[3]) is Status.Ok
    assert store.prefix_length(NEAR, local=True) == 3
    assert store.flush() is Status.Ok
    assert not any(store.batch_exists(NEAR, local=True))


def test_it_needs_no_master(cluster: Cluster, store: kvstore.Store) -> None:
    cluster.master.freeze()
    try:
        assert store.batch_exists([*NEAR, *FAR], local=True) == [True] * 20 + [False] * 20
    finally:
        cluster.master.signal(signal.SIGCONT)
    assert store.counters()["master_failures"] == 0


def test_without_mapped_memory_everything_is_absent(cluster: Cluster, store: kvstore.Store) -> None:
    plain = cluster.connect(transport="tcp")
    assert not any(plain.batch_exists(NEAR, local=True)) and all(plain.batch_exists(NEAR))


def test_waiting_needs_the_master(store: kvstore.Store) -> None:
    with pytest.raises(kvstore.InvalidArgumentError, match="wait_ms"):
        store.lookup(NEAR, wait_ms=10, local=True)
    assert store.lookup(NEAR, wait_ms=0, local=True).length == len(NEAR)


def test_the_same_for_asyncio(store: kvstore.Store) -> None:
    async def ask() -> None:
        many = AsyncStore(store)
        assert not await many.exists(FAR[0], local=True) and await many.exists(FAR[0])
        assert await many.batch_exists([NEAR[0], FAR[0]], local=True) == [True, False]
        assert await many.prefix_length([*NEAR, *FAR], local=True) == len(NEAR)
        async with await many.lookup([*NEAR, *FAR], lease_ms=1000, local=True) as found:
            assert found.length == len(NEAR)
        with pytest.raises(kvstore.InvalidArgumentError, match="wait_ms"):
            await many.lookup(NEAR, wait_ms=10, local=True)

    asyncio.run(ask())
