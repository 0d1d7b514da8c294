"""An engine that lives for weeks: its descriptors, and what its idle clients keep from others."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import python_process, read_line, wait_for

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]

MIB = 1 << 20
THREADS = 64
ROUNDS = int(os.environ.get("KVSTORE_TEST_ROUNDS", "200"))
RESTARTS = int(os.environ.get("KVSTORE_TEST_RESTARTS", "6"))
CONSTANT = 8
"""Descriptors of a store that no call is using."""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def work(store: kvstore.Store, thread: int, count: int) -> None:
    for i in range(count):
        key = f"t{thread}/{i}"
        assert store.put(key, proof(key, 4096)) in (Status.Ok, Status.AlreadyExists)
        assert store.get(key) == proof(key, 4096)


def test_threads_need_a_channel_each_and_nothing_more(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    work(store, 0, 10)
    before = descriptors()
    most: list[int] = []
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(work, store, i, 60) for i in range(THREADS)]
        while not all(one.done() for one in running):
            most.append(descriptors())
        for one in running:
            one.result()
    assert max(most) <= before + 2 * THREADS + CONSTANT  # by shared memory, and to the master
    assert descriptors() <= before + 2 * THREADS + CONSTANT


def test_short_stores_beside_one_that_lives(cluster: Cluster) -> None:
    cluster.start_node("a")
    living = cluster.connect()
    work(living, 0, 1)
    before = descriptors()
    for i in range(ROUNDS):
        with kvstore.connect(cluster.address) as store:
            assert store.get("t0/0") == proof("t0/0", 4096), i
    assert descriptors() <= before + CONSTANT
    assert living.get("t0/0") == proof("t0/0", 4096)


def test_restarts_of_a_node(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    work(store, 0, 1)
    before = descriptors()
    for i in range(RESTARTS):
        assert cluster.nodes["a"].terminate() == 0
        cluster.start_node("a")
        wait_for(lambda: store.get("t0/0") is not None, "the object", 15, 0.02)
        assert store.put(f"after/{i}", proof("after", 100_000)) is Status.Ok
        assert store.get(f"after/{i}") == proof("after", 100_000)
    assert descriptors() <= before + CONSTANT


FEW_DESCRIPTORS = """
import resource, sys, threading
sys.path.insert(0, sys.argv[1])
import os
import kvstore
from kvstore import Status
from tests.support.payloads import proof
store = kvstore.connect(sys.argv[2])
assert store.put("k", b"v") is Status.Ok
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, used + 12))
wrong = []
def work(thread):
    for i in range(40):
        key = f"t{thread}/{i}"
        status = store.put(key, proof(key, 4096))
        value = store.get(key)
        if status is not Status.Ok or value != proof(key, 4096):
            wrong.append((key, status, value is None))
threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(wrong), wrong[:3], flush=True)
"""


def test_calls_share_the_channels_that_a_low_limit_leaves(cluster: Cluster) -> None:
    cluster.start_node("a")
    with python_process(FEW_DESCRIPTORS, str(ROOT), cluster.address) as engine:
        assert read_line(engine).split()[0] == "0"


def test_idle_engines_keep_no_memory_from_others(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="128mb")
    idle = [cluster.connect() for _ in range(26)]
    for i, store in enumerate(idle):
        assert store.put(f"idle/{i}", proof(f"idle/{i}", 4 * MIB)) is Status.Ok
    writer = cluster.connect()
    keys = [f"mine/{i}" for i in range(28)]
    for key in keys:
        assert writer.put(key, proof(key, 4 * MIB)) is Status.Ok
    assert [key for key in keys if writer.get(key) != proof(key, 4 * MIB)] == []
    assert writer.put("large", proof("large", 20 * MIB)) is Status.Ok


def test_a_spare_never_counts_against_a_put(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="64mb")
    store = cluster.connect()
    for mib in (1, 30, 40, 60):
        assert store.put(f"{mib}", proof(f"{mib}", mib * MIB)) is Status.Ok, mib
    assert store.put("65", bytes(65 * MIB)) is Status.TooLarge
