"""kvstore's own transport over verbs: what tests/cluster/test_ucx.py shows without a device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import pytest

import kvstore
from kvstore import Status
from tests.cluster.test_ucx import served_by
from tests.rdma.fabric import CLIENT, NODE, Side, sent_by
from tests.rdma.memlock import limited
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import SCALE, wait_for
from tests.support.transports import moved

pytestmark = [pytest.mark.rdma, pytest.mark.cluster]

MIB = 1 << 20
SIZES = (1, 4096, 100_000, MIB, 3 * MIB + 1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master and the node "a", whose memory is reached over rxe0; TCP takes the loopback."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        node = cluster.start_node("a", transports=["shm", "tcp", "ucx"], ucx=NODE.environment)
        wait_for(lambda: served_by(node), "its UCX process", 60)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def store(served: Cluster) -> kvstore.Store:
    """A client on rxe1; its first objects set up the connections."""
    store = served.connect(
        transport="ucx", ucx_settings=CLIENT.environment, timeout_ms=int(30_000 * SCALE)
    )
    wait_by_ucx(store, "first")
    return store


def by_ucx(store: kvstore.Store, key: str, size: int = 100_000) -> bool:
    """Whether a put and a get go by UCX now; both have to succeed on whatever way."""
    before = moved(store)
    assert store.put(key, proof(key, size)) is Status.Ok
    assert store.get(key) == proof(key, size)
    after = moved(store)
    return all(after[way] - before[way] == size for way in ("put_bytes_ucx", "bytes_ucx"))


def wait_by_ucx(store: kvstore.Store, prefix: str) -> None:
    count = iter(range(10_000))
    wait_for(lambda: by_ucx(store, f"{prefix}/{next(count)}"), "UCX to be used", 120)


def test_bytes_are_fetched_by_whoever_wants_them(
    store: kvstore.Store, fabric_sides: Mapping[str, Side]
) -> None:
    """By one-sided reads: those of a put come from the client's memory, those of a get from the
    node's, and nothing of either goes by TCP."""
    keys = [f"k/{size}" for size in SIZES]
    pages = [proof(key, size) for key, size in zip(keys, SIZES, strict=True)]
    before = moved(store)
    with sent_by(fabric_sides["client"]) as put:
        assert store.batch_put(keys, pages) == [Status.Ok] * len(keys)
    put.assert_by_rdma(sum(SIZES))
    with sent_by(fabric_sides["node"]) as got:
        assert store.batch_get(keys) == pages
    got.assert_by_rdma(sum(SIZES))
    after = moved(store)
    assert after["bytes_ucx"] - before["bytes_ucx"] == sum(SIZES)
    assert after["bytes_tcp"] == before["bytes_tcp"]


def test_registered_memory(store: kvstore.Store, fabric_sides: Mapping[str, Side]) -> None:
    pool = bytearray(4 * MIB)
    with store.register(pool), memoryview(pool) as view:
        rows = [view[i * MIB // 4 : (i + 1) * MIB // 4] for i in range(16)]
        keys = [f"r/{i}" for i in range(16)]
        for key, row in zip(keys, rows, strict=True):
            row[:] = proof(key, len(row))
        assert store.batch_put(keys, rows) == [Status.Ok] * 16
        pool[:] = bytes(len(pool))
        with sent_by(fabric_sides["node"]) as got:
            assert store.batch_get_into(keys, rows) == [MIB // 4] * 16
        got.assert_by_rdma(4 * MIB)
        assert all(row == proof(key, len(row)) for key, row in zip(keys, rows, strict=True))
        for row in rows:
            row.release()


def test_many_registrations_leave_nothing(store: kvstore.Store) -> None:
    memory = bytearray(64 * 1024)
    resident = _resident_bytes()
    for _ in range(10_000):
        store.register(memory).release()
    assert store._client.ucx_state()["registered_bytes"] == 0
    assert _resident_bytes() - resident < 32 * MIB
    assert by_ucx(store, "after registrations")


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_killed_ucx_process(served: Cluster, store: kvstore.Store) -> None:
    node = served.nodes["a"]
    (pid,) = served_by(node)
    os.kill(pid, signal.SIGKILL)
    for i in range(3):
        by_ucx(store, f"killed/{i}")  # on whatever way
    wait_for(lambda: served_by(node) not in ([], [pid]), "another UCX process", 60)
    wait_by_ucx(store, "another")


def test_a_dead_link_is_passed_over_within_the_deadline(
    served: Cluster, store: kvstore.Store, fabric_sides: Mapping[str, Side]
) -> None:
    fabric_sides["client"].set_link(up=False)
    begun = time.monotonic()
    assert not by_ucx(store, "dead link")
    assert time.monotonic() - begun < 60 * SCALE
    fabric_sides["client"].set_link(up=True)
    assert store.get("dead link") == proof("dead link", 100_000)


LITTLE_MEMORY = """
import json, sys, kvstore
settings = json.loads(sys.argv[2])
with kvstore.connect(
    sys.argv[1], transport="ucx", ucx_settings=settings, timeout_ms=60000
) as store:
    print(store.put("little", bytes(100000)).name, store.get("little") == bytes(100000))
    stats = store.stats()
    print(stats["bytes_ucx"], stats["bytes_tcp"], store._client.ucx_state()["error"])
"""


def test_a_client_that_may_lock_nothing_uses_tcp(served: Cluster, store: kvstore.Store) -> None:
    done = subprocess.run(
        [
            *limited(64 * 1024),
            *(sys.executable, "-c", LITTLE_MEMORY, served.address),
            json.dumps(CLIENT.environment),
        ],
        capture_output=True,
        text=True,
        timeout=120 * SCALE,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[-2:]
    assert first == "Ok True"
    by_ucx_bytes, by_tcp_bytes, error = second.split(" ", 2)
    assert (by_ucx_bytes, by_tcp_bytes) == ("0", "100000") and error
