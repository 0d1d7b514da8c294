"""An upsert in a cluster: after Ok the new version on every path, whole ones only."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from kvstore import Status, Store
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for
from tests.support.transports import REMOTE

pytestmark = pytest.mark.cluster

SIZE = 20_000


def replicas_of(store: Store, key: str) -> list[Any]:
    found = store.inspect(key)
    return [] if found is None else list(found["replicas"])


@pytest.mark.parametrize("transport", REMOTE)
def test_no_path_shows_the_old_version_after_ok(cluster: Cluster, transport: str) -> None:
    for node in ("a", "b"):
        cluster.start_node(node)
    writers = [cluster.connect(), cluster.connect(transport=transport)]
    readers = [cluster.connect(), cluster.connect(transport=transport)]
    for key in ("one", "two"):
        replicas = 1 if key == "one" else 2
        for turn in range(40):
            data = proof(key, SIZE, str(turn))
            status = writers[turn % 2].put(key, data, replicas=replicas, upsert=True)
            assert status is Status.Ok
            for reader in [*readers, *writers]:
                assert reader.get(key) == data, f"{key}, version {turn}"
            if replicas == 2 and turn % 8 == 0:
                wait_for(lambda: len(replicas_of(readers[0], "two")) == 2, "the second replica")


@pytest.mark.parametrize("transport", REMOTE)
def test_a_reader_beside_an_upsert_sees_whole_versions_in_order(
    cluster: Cluster, transport: str
) -> None:
    cluster.start_node("a")
    writer = cluster.connect()
    versions = [proof("k", SIZE, str(turn)) for turn in range(200)]
    number = {data: turn for turn, data in enumerate(versions)}
    assert writer.put("k", versions[0]) is Status.Ok
    done = threading.Event()
    seen: list[list[int | None]] = [[], []]

    def read(way: str, into: list[int | None]) -> None:
        with cluster.connect(transport=way) as reader:
            while not done.is_set():
                data = reader.get("k")
                into.append(None if data is None else number[data])

    threads = [
        threading.Thread(target=read, args=(way, into))
        for way, into in zip(("auto", transport), seen, strict=True)
    ]
    for thread in threads:
        thread.start()
    for data in versions[1:]:
        assert writer.put("k", data, upsert=True) is Status.Ok
    done.set()
    for thread in threads:
        thread.join()
    for turns in seen:
        found = [turn for turn in turns if turn is not None]
        assert found == sorted(found)
        assert len(found) >= len(turns) * 0.9, "an upsert is no miss"


@pytest.mark.parametrize("transport", REMOTE)
def test_upserts_of_many_writers_end_in_one_version(cluster: Cluster, transport: str) -> None:
    for node in ("a", "b"):
        cluster.start_node(node)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")

    def write(who: int) -> None:
        store = cluster.connect(transport=("auto", transport)[who % 2])
        for turn in range(30):
            status = store.put("k", proof("k", SIZE, f"{who}/{turn}"), upsert=True)
            assert status is Status.Ok, status

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = {proof("k", SIZE, f"{who}/29") for who in range(4)}
    ends = {cluster.connect(transport=way).get("k") for way in ("auto", transport, "auto")}
    assert len(ends) == 1 and ends <= last


def test_a_node_that_was_away_does_not_bring_the_old_version_back(tmp_path: Path) -> None:
    """The master has started again since, and the new version has been evicted: a miss."""
    new = proof("k", 1 << 20, "new")
    config = tmp_path / "master.json"
    config.write_text('{"heartbeat_ms": 200, "node_ttl_ms": 1000}')
    cluster = Cluster(tmp_path, ["--config", str(config)])
    try:
        holder = cluster.start_node("a")
        with cluster.connect() as store:
            assert store.put("k", proof("k", 1 << 20, "old")) is Status.Ok
        holder.kill()
        cluster.master.terminate()
        cluster.restart_master()
        cluster.start_node("b", segment_size="8mb")
        store = cluster.connect(timeout_ms=20_000)
        assert store.put("k", new, upsert=True) is Status.Ok
        assert store.get("k") == new
        for number in range(64):
            assert store.put(f"other/{number}", proof(str(number), 1 << 20)) is Status.Ok
        assert store.inspect("k") is None, "evicted"
        cluster.start_node("a")
        for reader in (cluster.connect(), cluster.connect(transport="tcp")):
            assert reader.get("k") is None
        assert store.put("k", b"newest") is Status.Ok
        assert store.get("k") == b"newest"
    finally:
        cluster.close()
