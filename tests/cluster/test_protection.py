"""Pressure, leases, views and pins: what is protected stays, what is read is right."""

from __future__ import annotations

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_three_times_the_capacity_never_hurts_what_is_protected(
    cluster: Cluster, transport: str
) -> None:
    cluster.start_node("a", segment_size="32mb")
    store = cluster.connect(transport=transport)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    sizes = [4096, 65536, 262_144]

    def put(key: str, **options: object) -> bytes:
        value = proof(key, draw.choice(sizes))
        assert store.put(key, value, **options) is Status.Ok  # type: ignore[arg-type]
        return value

    pinned = {f"pinned/{i}": put(f"pinned/{i}", pin="hard") for i in range(8)}
    leased = {f"leased/{i}": put(f"leased/{i}") for i in range(8)}
    viewed = {f"viewed/{i}": put(f"viewed/{i}") for i in range(8)}
    views = [store.view(key) for key in viewed]
    handles = [handle for view in views if (handle := view.__enter__()) is not None]
    assert len(handles) == len(viewed)
    with store.lookup(list(leased), lease_ms=60_000) as lookup:
        assert lookup.length == len(leased)
        written: dict[str, bytes] = {}
        while sum(map(len, written.values())) < 96 << 20:
            key = f"noise/{len(written)}"
            written[key] = put(key)
            other = draw.choice(list(written))
            value = store.get(other)
            assert value is None or value == written[other]
        # A view over the network is a copy of its own: the object itself may go.
        protected = pinned | leased | (viewed if transport == "auto" else {})
        for key, value in protected.items():
            assert store.get(key) == value, f"{key} was evicted or changed"
        for handle, value in zip(handles, viewed.values(), strict=True):
            assert bytes(handle) == value
    for view in views:
        view.__exit__(None, None, None)
    present = [key for key in written if store.exists(key)]
    assert 0 < len(present) < len(written)
    assert all(store.get(key) in (None, written[key]) for key in present)


def test_hard_pins_can_fill_a_node_and_unpin_frees_it(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="32mb", pin_cap_bytes="32mb")
    store = cluster.connect()
    pinned = []
    for i in range(100):
        status = store.put(f"pin/{i}", bytes(1 << 20), pin="hard")
        if status is Status.NoSpace:
            break
        assert status is Status.Ok
        pinned.append(f"pin/{i}")
    assert 20 <= len(pinned) <= 32
    assert store.put("one more", bytes(1 << 20)) is Status.NoSpace
    assert store.unpin(pinned[0]) is Status.Ok
    wait_for(lambda: store.put("one more", bytes(1 << 20)) is Status.Ok, "room after unpin", 5)
    assert store.get(pinned[0]) is None
    assert all(store.exists(key) for key in pinned[1:])


def test_soft_pins_go_last(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="32mb")
    store = cluster.connect()
    for i in range(8):
        assert store.put(f"soft/{i}", bytes(1 << 20), pin="soft") is Status.Ok
    for i in range(100):
        assert store.put(f"noise/{i}", bytes(1 << 20)) is Status.Ok
    assert all(store.exists(f"soft/{i}") for i in range(8))


def test_a_view_outlives_the_objects_removal(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="32mb")
    store = cluster.connect()
    value = proof("v", 1 << 20)
    store.put("v", value)
    view = store.view("v")
    with view as block:
        assert block is not None
        assert block.readonly and bytes(block) == value
        assert store.remove("v") is Status.Ok
        assert store.get("v") is None
        for i in range(64):
            store.put(f"noise/{i}", bytes(1 << 20))
        assert bytes(block) == value
    assert not store.view("v")


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_leased_prefix_on_two_nodes_is_all_there_when_it_is_read(
    cluster: Cluster, transport: str
) -> None:
    cluster.start_node("a", segment_size="32mb")
    cluster.start_node("b", segment_size="32mb")
    store = cluster.connect(transport=transport)
    writer = cluster.connect(transport="tcp")  # spreads what it writes
    size, pages, lease_ms = 128 << 10, 40, 400
    homes: set[str] = set()
    stop, flooded = threading.Event(), threading.Event()

    def flood() -> None:
        for i in itertools.count():
            flooded.wait()  # until the chain is leased: its writer may be slower
            if stop.is_set():
                return
            writer.put(f"noise/{i}", bytes(1 << 20))

    def leased_whole(keys: list[str], values: list[bytes]) -> kvstore.Lookup | None:
        for key, value in zip(keys, values, strict=True):
            assert writer.put(key, value) in (Status.Ok, Status.AlreadyExists)
        lookup = store.lookup(keys, lease_ms=lease_ms)
        if lookup.length == pages:
            return lookup
        lookup.release()
        return None

    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(flood)
        try:
            for chain in range(4):
                keys = [f"chain/{chain}/{i}" for i in range(pages)]
                wanted = [proof(key, size) for key in keys]
                flooded.clear()
                # The last object of the flood may still come, and where there is room is known by
                # heartbeats.
                whole = partial(leased_whole, keys, wanted)
                lookup = wait_for(whole, "the chain to be there", 20)
                flooded.set()
                with lookup:
                    for key in keys:
                        found = store.inspect(key)
                        assert found is not None, f"{key} went under its lease"
                        homes |= {replica["node_id"] for replica in found["replicas"]}
                    time.sleep(2 * lease_ms / 1000)  # renewed meanwhile
                    buffers = [bytearray(size) for _ in keys]
                    assert store.batch_get_into(keys, buffers) == [size] * pages
                    assert buffers == wanted
            assert homes == {"a", "b"}, "the pages were spread"
            assert not flooding.done()
        finally:
            stop.set()
            flooded.set()


def test_a_leases_protection_ends_with_it(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="32mb")
    store = cluster.connect()
    store.put("k", bytes(1 << 20))
    with store.lookup(["k"], lease_ms=60_000) as lookup:
        assert lookup.length == 1
        for i in range(64):
            store.put(f"noise/{i}", bytes(1 << 20))
        assert store.exists("k")
    for i in range(64):
        store.put(f"more/{i}", bytes(1 << 20))
    assert not store.exists("k")


def test_a_dead_clients_lease_is_gone(cluster: Cluster) -> None:
    from tests.support.processes import python_process, read_line

    cluster.start_node("a", segment_size="32mb")
    store = cluster.connect()
    store.put("k", bytes(1 << 20))
    code = (
        "import sys, kvstore\n"
        "store = kvstore.connect(sys.argv[1])\n"
        "lookup = store.lookup(['k'], lease_ms=600_000)\n"
        "print(lookup.length)\n"
        "sys.stdin.readline()\n"
    )
    with python_process(code, cluster.address) as owner:
        assert read_line(owner) == "1"
        for i in range(64):
            store.put(f"noise/{i}", bytes(1 << 20))
        assert store.exists("k")
        owner.kill()
        owner.wait()

    def evictable() -> bool:
        for i in range(32):
            store.put(f"after/{evictable_rounds[0]}/{i}", bytes(1 << 20))
        evictable_rounds[0] += 1
        return not store.exists("k")

    evictable_rounds = [0]
    wait_for(evictable, "the dead client's lease to end", 10)


def test_arguments_that_a_caller_must_fix_raise(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    with pytest.raises(kvstore.InvalidArgumentError):
        store.put("k", b"x", pin="forever")  # type: ignore[arg-type]
    with pytest.raises((kvstore.InvalidArgumentError, TypeError)):
        store.put("k", "text")  # type: ignore[arg-type]
    with pytest.raises(kvstore.InvalidArgumentError):
        store.put("k", memoryview(bytearray(8))[::2])
    with pytest.raises(kvstore.InvalidArgumentError):
        store.batch_put(["a", "b"], [b"x"])
    store.close()
    with pytest.raises(kvstore.ClosedError):
        store.get("k")
