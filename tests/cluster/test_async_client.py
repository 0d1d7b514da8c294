"""AsyncStore on a real cluster: many calls at a time, cancellation, and a node that hangs."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import lookups_waiting
from tests.support.coroutines import until
from tests.support.payloads import proof
from tests.support.transports import EVERY, REMOTE, client_options

pytestmark = pytest.mark.cluster


def lent(buffer: bytearray) -> bool:
    """Say whether the buffer's memory is exported: it cannot grow then."""
    try:
        buffer.append(0)
        buffer.pop()
    except BufferError:
        return True
    return False


@pytest.mark.parametrize("transport", EVERY)
def test_a_thousand_calls_at_a_time(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    cluster.start_node("b")

    async def test() -> None:
        before = threading.active_count()
        most = 0
        async with await kvstore.connect_async(
            cluster.address, **client_options(transport), timeout_ms=30_000
        ) as store:

            async def put_and_get(key: str) -> None:
                nonlocal most
                assert await store.put(key, proof(key, 2000)) is Status.Ok
                most = max(most, threading.active_count())
                assert await store.get(key) == proof(key, 2000)

            await asyncio.gather(*(put_and_get(f"k/{i}") for i in range(1000)))
        # The thread that connected may not have ended yet.
        assert most <= before + 4 + 1

    asyncio.run(test())


@pytest.mark.parametrize("transport", REMOTE)
def test_a_cancelled_read_keeps_its_buffer_until_it_is_over(
    cluster: Cluster, transport: str
) -> None:
    node = cluster.start_node("a")

    async def test() -> None:
        async with await kvstore.connect_async(
            cluster.address, **client_options(transport), timeout_ms=60_000
        ) as store:
            assert await store.put("k", proof("k", 1000)) is Status.Ok
            buffer = bytearray(1000)
            node.freeze()
            read = asyncio.ensure_future(store.get_into("k", buffer))
            await until(lambda: lent(buffer), "the read to begin")
            read.cancel()
            await asyncio.sleep(0.2)
            assert not read.done() and lent(buffer), "the node may still send the bytes"
            node.signal(signal.SIGCONT)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(read), 50)
            assert not lent(buffer)
            assert buffer[:1000] in (bytes(1000), proof("k", 1000))
            assert await store.get("k") == proof("k", 1000)

    asyncio.run(test())


def test_a_cancelled_get_is_over_at_once(cluster: Cluster) -> None:
    node = cluster.start_node("a")

    async def test() -> None:
        async with await kvstore.connect_async(
            cluster.address, transport="tcp", timeout_ms=60_000
        ) as store:
            assert await store.put("k", proof("k", 1000)) is Status.Ok
            node.freeze()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(store.get("k"), 0.2)
            node.signal(signal.SIGCONT)
            assert await store.get("k") == proof("k", 1000)

    asyncio.run(test())


def test_a_master_that_dies_ends_a_wait(cluster: Cluster) -> None:
    cluster.start_node("a")

    async def test() -> None:
        async with await kvstore.connect_async(cluster.address) as store:
            assert await store.put("a", b"1") is Status.Ok
            lookup = asyncio.ensure_future(store.lookup(["a", "b"], wait_ms=600_000))
            await until(lambda: lookups_waiting(cluster.master) == 1, "it to wait")
            cluster.master.kill()
            assert (await asyncio.wait_for(lookup, 20)).length == 1

    asyncio.run(test())
    cluster.restart_master()
    cluster.wait_state("a", "alive")


@pytest.mark.parametrize("transport", REMOTE)
def test_one_engine_waits_for_another(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    keys = [f"page/{i}" for i in range(5)]

    async def test() -> None:
        async with (
            await kvstore.connect_async(cluster.address, **client_options(transport)) as decode,
            await kvstore.connect_async(cluster.address) as prefill,
        ):
            lookup = asyncio.ensure_future(decode.lookup(keys, lease_ms=60_000, wait_ms=60_000))
            for key in keys:
                assert not lookup.done()
                assert await prefill.put(key, proof(key, 5000)) is Status.Ok
            async with await asyncio.wait_for(lookup, 20) as found:
                assert found.length == 5 and await found.alive()
                assert await decode.batch_get(keys) == [proof(key, 5000) for key in keys]

    asyncio.run(test())
