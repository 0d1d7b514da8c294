"""A restarted node keeps its cache, however it stopped and whoever was using it."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import Daemon, python_process, read_line, wait_for

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]

HOLD_A_VIEW = """
import sys
sys.path.insert(0, sys.argv[1])
import kvstore
from tests.support.payloads import proof
store = kvstore.connect(sys.argv[2])
keys = sys.argv[3].split(",")
views = [store.view(key).__enter__() for key in keys]
print(len(views))
sys.stdin.readline()
print(all(bytes(view) == proof(key, len(view)) for key, view in zip(keys, views)))
sys.stdin.readline()
"""


def start(cluster: Cluster, **config: Any) -> Daemon:
    return cluster.start_node("a", log_level="debug", **config)


def fill(store: kvstore.Store, count: int, size: int = 20_000) -> list[str]:
    keys = [f"k/{i}" for i in range(count)]
    statuses = store.batch_put(keys, [proof(key, size) for key in keys])
    assert statuses == [Status.Ok] * count
    return keys


def wait_read(store: kvstore.Store, key: str) -> None:
    """Until a client that lived through the restart reads again."""
    wait_for(lambda: store.get(key) is not None, f"{key} to be readable", 15, 0.05)


def wait_more(done: list[int]) -> None:
    """Until both counts have grown."""
    reads, writes = done
    wait_for(lambda: done[0] > reads and done[1] > writes, "calls to go on", 20)


def kill(node: Daemon) -> None:
    node.kill()


def terminate(node: Daemon) -> None:
    assert node.terminate() == 0


@pytest.mark.parametrize("end", [kill, terminate])
def test_everything_published_is_kept(cluster: Cluster, end: Callable[[Daemon], None]) -> None:
    node = start(cluster)
    store = cluster.connect()
    keys = fill(store, 500)
    for _ in range(3):
        end(node)
        node = start(cluster)
        assert "segment_kept" in node.log.read_text()
        wait_read(store, keys[0])
        assert store.batch_get(keys) == [proof(key, 20_000) for key in keys]
        fresh = cluster.connect()
        assert fresh.prefix_length(keys) == len(keys)
        assert fresh.batch_get(keys) == [proof(key, 20_000) for key in keys]
        # By socket too, as another host would.
        assert cluster.connect(transport="tcp").get(keys[7]) == proof(keys[7], 20_000)
        assert store.put(keys[3], b"other") is Status.AlreadyExists
    assert metric(node, "kvstore_objects") == 500


def test_what_was_removed_while_the_node_was_away_does_not_come_back(cluster: Cluster) -> None:
    node = start(cluster)
    store = cluster.connect(namespace="n")
    other = cluster.connect(namespace="flushed")
    keys = fill(store, 50)
    fill(other, 50)
    node.kill()
    cluster.wait_state("a", "dead")
    assert store.remove(keys[1]) is Status.Partial
    cluster.master.kill()  # nor does it matter who remembers
    cluster.restart_master()
    start(cluster)
    wait_read(store, keys[0])
    assert store.get(keys[1]) is None
    assert other.batch_exists(keys) == [True] * 50
    cluster.nodes["a"].kill()
    cluster.wait_state("a", "dead")
    from click.testing import CliRunner

    from kvstore.cli.operator import main

    options = ["--master", cluster.address, "--namespace", "flushed"]
    assert "Partial" in CliRunner().invoke(main, ["flush", *options]).output
    start(cluster)
    wait_read(store, keys[0])
    assert other.batch_exists(keys) == [False] * 50
    assert other.put(keys[0], b"new") is Status.Ok
    assert other.get(keys[0]) == b"new"


def test_views_keep_their_bytes(cluster: Cluster) -> None:
    node = start(cluster, segment_size="32mb")
    store = cluster.connect()
    # More than a slot has hazards for: some are held by socket.
    keys = fill(store, 100, 100_000)
    with python_process(HOLD_A_VIEW, str(ROOT), cluster.address, ",".join(keys)) as reader:
        assert read_line(reader) == "100"
        assert reader.stdin is not None
        os.kill(reader.pid, signal.SIGSTOP)
        for round_ in range(2):
            node.kill()
            node = start(cluster, segment_size="32mb")
            wait_read(store, keys[99])
            # Half of them go, and everything else is used again several times over.
            for key in keys[round_ * 50 : round_ * 50 + 25]:
                assert store.remove(key) in (Status.Ok, Status.Partial)
            for i in range(700):
                key = f"pressure/{round_}/{i}"
                assert store.put(key, proof(key, 100_000)) is Status.Ok
        os.kill(reader.pid, signal.SIGCONT)
        reader.stdin.write("compare\n")
        reader.stdin.flush()
        assert read_line(reader) == "True"
    wait_for(lambda: metric(node, "kvstore_deferred_bytes") == 0, "the views' blocks to be freed")


def test_a_second_owner_is_refused_and_the_first_one_stays(cluster: Cluster) -> None:
    node = start(cluster)
    store = cluster.connect()
    fill(store, 5)
    second = Daemon(
        "second",
        ["-m", "kvstore.cli.node", "--config", str(cluster.folder / "a.json")],
        cluster.folder,
    )
    try:
        assert second.process.wait(20) == 3
    finally:
        second.kill()
    text = second.log.read_text()
    assert "belongs to a node that runs" in text and "Traceback" not in text
    assert node.process.poll() is None
    assert store.get("k/1") == proof("k/1", 20_000)


def test_what_is_not_this_nodes_is_refused_or_discarded(cluster: Cluster) -> None:
    node = start(cluster)
    fill(cluster.connect(), 5)
    node.kill()
    folder = str(cluster.segment_dirs["a"])
    other = cluster.start_node("b", wait=False, segment_dir=folder)
    assert other.process.wait(20) == 2
    assert "it belongs to node a" in other.log.read_text()
    index = cluster.segment_dirs["a"] / "index"
    with index.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 2))
    node = cluster.start_node("a", wait=False)
    assert node.process.wait(20) == 4 or "has format 2" in node.log.read_text()
    assert "discard_foreign_segment" in node.log.read_text()
    node = start(cluster, discard_foreign_segment=True)
    assert "segment_not_kept" in node.log.read_text()
    assert metric(node, "kvstore_objects") == 0


def test_a_restart_under_load_answers_every_call(cluster: Cluster) -> None:
    node = start(cluster)
    store = cluster.connect(timeout_ms=3000)
    keys = fill(store, 200)
    stop = threading.Event()
    wrong: list[str] = []
    done = [0, 0]

    def read() -> None:
        while not stop.is_set():
            for key, value in zip(keys, store.batch_get(keys), strict=True):
                if value is not None and value != proof(key, 20_000):
                    wrong.append(key)
            done[0] += 1

    def write() -> None:
        while not stop.is_set():
            key = f"w/{done[1]}"
            store.put(key, proof(key, 50_000))
            done[1] += 1

    threads = [threading.Thread(target=work) for work in (read, read, write)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            node.kill()
            node = start(cluster)
            wait_more(done)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    wait_read(store, keys[0])
    assert store.batch_get(keys) == [proof(key, 20_000) for key in keys]
