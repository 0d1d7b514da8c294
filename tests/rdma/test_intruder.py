"""Who is on the fabric and forges packets: never other bytes, whatever the key of its write is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

import kvstore
from kvstore import Status
from tests.cluster.test_ucx import served_by
from tests.rdma.fabric import CLIENT
from tests.rdma.intruder import Intruder, Reading, is_refusal, last_reading
from tests.rdma.test_transport import served, store, wait_by_ucx
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import SCALE, wait_for

__all__ = ["served", "store"]  # fixtures
pytestmark = [pytest.mark.rdma, pytest.mark.cluster]

SIZE = 100_000
LIE = b"\xee" * 64


@pytest.fixture
def intruder() -> Iterator[Intruder]:
    found = Intruder(CLIENT)
    yield found
    found.close()


def watch_a_get(store: kvstore.Store, intruder: Intruder, name: str) -> tuple[str, Reading]:
    """Put and read an object of this name, and more until reads go by RDMA; the last one's key."""

    def read() -> tuple[str, Reading] | None:
        key = f"{name}/{next(count)}"
        assert store.put(key, proof(key, SIZE)) is Status.Ok
        intruder.frames(30 * SCALE)
        before = store.stats()["bytes_ucx"]
        assert store.get(key) == proof(key, SIZE)
        if store.stats()["bytes_ucx"] - before != SIZE:
            return None
        return key, last_reading(intruder.frames(30 * SCALE))

    count = iter(range(1000))
    return wait_for(read, "a get by RDMA", 60)


def test_a_forged_write_with_a_right_key_costs_the_object(
    served: Cluster, store: kvstore.Store, intruder: Intruder
) -> None:
    """The control of what follows: the packet is right, so memory is written; readers notice."""
    key, seen = watch_a_get(store, intruder, "right")
    local = served.connect()
    assert local.get(key) == proof(key, SIZE)
    intruder.send(seen.forge_write(LIE, seen.key))
    wait_for(lambda: local.get(key) is None, "the write to be noticed", 10)
    assert store.get(key) is None
    wait_by_ucx(store, "after a right key")


@pytest.mark.parametrize("kind", ["foreign", "revoked"])
def test_a_forged_write_with_a_wrong_key_moves_nothing(
    served: Cluster, store: kvstore.Store, intruder: Intruder, kind: str
) -> None:
    served.expected_errors.append("UCX  ERROR")  # its connection has ended
    key, seen = watch_a_get(store, intruder, kind)
    wrong = seen.key ^ 0x5A00
    if kind == "revoked":  # the key's process ends, as when its tenant loses shm_write
        wrong = seen.key
        node = served.nodes["a"]
        (pid,) = served_by(node)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: served_by(node) not in ([], [pid]), "another UCX process", 60)
        wait_by_ucx(store, "another process")
        key, seen = watch_a_get(store, intruder, "another key")
        assert seen.key != wrong
    intruder.send(seen.forge_write(LIE, wrong))
    wait_for(lambda: any(map(is_refusal, intruder.frames(5))), "the node to refuse it", 10)
    local = served.connect()
    assert local.get(key) == proof(key, SIZE)
    assert store.get(key) == proof(key, SIZE)  # on whatever way
    wait_by_ucx(store, f"after a {kind} key")
