"""A decode engine waits for its prefill engine: lookup(wait_ms=…) between processes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import lookups_waiting
from tests.support.payloads import proof
from tests.support.processes import python_process, read_line, wait_for
from tests.support.transports import EVERY, client_options

pytestmark = pytest.mark.cluster

# Arguments: address, options of connect, lease_ms (0: none), wait_ms, keys known before, all keys.
WAITER = """
import json, sys, time, kvstore
address, options, lease_ms, wait_ms, known, *keys = sys.argv[1:]
store = kvstore.connect(address, timeout_ms=3000, **json.loads(options))
store.batch_exists(keys[:int(known)])
print("ready")
start = time.monotonic()
lookup = store.lookup(keys, lease_ms=int(lease_ms) or None, wait_ms=int(wait_ms))
print(lookup.length, int((time.monotonic() - start) * 1000), lookup.alive)
sys.stdin.readline()
"""
KEYS = [f"page/{i}" for i in range(8)]
LONG_MS = 60_000


@contextmanager
def waiter(
    cluster: Cluster, transport: str, *, wait_ms: int, lease_ms: int = 0, known: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for KEYS; `known` of them it has looked up before."""
    options = json.dumps(client_options(transport))
    numbers = [str(number) for number in (lease_ms, wait_ms, known)]
    with python_process(WAITER, cluster.address, options, *numbers, *KEYS) as process:
        assert read_line(process) == "ready"
        yield process


def answer(process: subprocess.Popen[str]) -> tuple[int, int, bool]:
    """Return the length, the milliseconds it took, whether leases stand."""
    length, took_ms, alive = read_line(process).split()
    return int(length), int(took_ms), alive == "True"


def wait_until_waiting(cluster: Cluster, count: int) -> None:
    wait_for(
        lambda: lookups_waiting(cluster.master) == count, f"{count} lookups to wait", poll_s=0.02
    )


@pytest.mark.parametrize("transport", EVERY)
def test_the_last_page_ends_the_wait(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    prefill = [cluster.connect(), cluster.connect(transport="tcp")]
    with waiter(cluster, transport, wait_ms=LONG_MS, lease_ms=LONG_MS) as decode:
        for i, key in enumerate(KEYS):
            wait_until_waiting(cluster, 1)
            assert prefill[i % 2].put(key, proof(key, 5000)) is Status.Ok
        put = time.monotonic()
        length, _, alive = answer(decode)
        assert (length, alive) == (len(KEYS), True)
        assert time.monotonic() - put < LONG_MS / 1000 / 4, "at once, not when the time has passed"
    assert lookups_waiting(cluster.master) == 0


def test_time_ends_the_wait_with_what_is_there(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    store.batch_put(KEYS[:3] + KEYS[4:], [b"page"] * 7)
    for transport in ("auto", "tcp"):
        with waiter(cluster, transport, wait_ms=500, lease_ms=LONG_MS) as decode:
            length, took_ms, alive = answer(decode)
            assert (length, alive) == (3, True)
            assert took_ms >= 499


def test_a_page_removed_during_the_wait_is_waited_for_again(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    store.batch_put(KEYS[:-1], [b"page"] * 7)
    with waiter(cluster, "tcp", wait_ms=LONG_MS) as decode:
        wait_until_waiting(cluster, 1)
        assert store.remove(KEYS[0]) is Status.Ok
        assert store.put(KEYS[-1], b"page") is Status.Ok
        assert lookups_waiting(cluster.master) == 1
        assert store.put(KEYS[0], b"page") is Status.Ok
        assert answer(decode)[0] == len(KEYS)


def test_a_killed_waiter_leaves_nothing_at_the_master(cluster: Cluster) -> None:
    with waiter(cluster, "tcp", wait_ms=LONG_MS) as decode:
        wait_until_waiting(cluster, 1)
        decode.kill()
        wait_until_waiting(cluster, 0)


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_master_that_dies_ends_the_wait_with_what_is_known(
    cluster: Cluster, transport: str
) -> None:
    cluster.start_node("a")
    cluster.connect().batch_put(KEYS[:3], [b"page"] * 3)
    with waiter(cluster, transport, wait_ms=LONG_MS, known=3) as decode:
        wait_until_waiting(cluster, 1)
        cluster.master.kill()
        length, took_ms, _ = answer(decode)
        assert length == 3
        assert took_ms < LONG_MS / 4
    cluster.restart_master()
    cluster.wait_state("a", "alive")


def test_a_node_that_restarts_and_puts_again_ends_the_wait(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    store.batch_put(KEYS[:4], [b"page"] * 4)
    with waiter(cluster, "tcp", wait_ms=LONG_MS) as decode:
        wait_until_waiting(cluster, 1)
        cluster.nodes["a"].kill()
        cluster.start_node("a")
        wait_for(lambda: store.put(KEYS[0], b"page").ok, "puts to work again", 10)
        statuses = store.batch_put(KEYS[1:], [b"page"] * 7)
        assert all(status.ok for status in statuses), statuses
        assert answer(decode)[0] == len(KEYS)
