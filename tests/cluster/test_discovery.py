"""Nodes that find their master in RBG's file, and follow it while they serve."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kvstore
from kvstore import Status
from kvstore.config import NodeConfig
from tests.cluster.test_reload import reloads, wait_reload
from tests.support.cluster import Cluster
from tests.support.control import ready
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

PAGE_BYTES = 16_384
ENVIRONMENT = {"RBG_GROUP_NAME": "pd", "RBG_ROLE_NAME": "store", "RBG_ROLE_INDEX": "0"}


class GroupFile:
    """RBG's file as the kubelet mounts a ConfigMap: a link to a folder that is exchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = 0
        folder.mkdir()
        self.path = folder / "config.yaml"
        self.path.symlink_to("..data/config.yaml")

    def list_masters(self, *addresses: str) -> None:
        instances = []
        for address in addresses:
            host, _, port = address.rpartition(":")
            instances.append(f"{{address: {host}, ports: {{block: {port}}}}}")
        master = f"{{size: 1, instances: [{', '.join(instances)}]}}"
        self.write(f"group: {{name: pd, size: 1, roles: [master]}}\nroles: {{master: {master}}}\n")

    def write(self, text: str) -> None:
        self.version += 1
        data = self.folder / f"..{self.version}"
        data.mkdir()
        (data / "config.yaml").write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(data.name)
        link.rename(self.folder / "..data")


@pytest.fixture
def file(tmp_path: Path) -> GroupFile:
    return GroupFile(tmp_path / "rbg")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(tmp_path)
    try:
        yield one
    finally:
        one.close()


@contextmanager
def load(stores: list[kvstore.Store]) -> Iterator[tuple[Callable[[], int], list[str]]]:
    """Put and get in a thread a store. A put may be refused while a node moves to a master.

    Yields a function that tells how many puts were Ok, and their keys.
    """
    stop = threading.Event()
    wrong: list[str] = []
    kept: list[str] = []

    def work(number: int, store: kvstore.Store) -> None:
        for i in itertools.count():
            if stop.wait(0.001):
                return
            key = f"load/{number}/{i}"
            status = store.put(key, proof(key, PAGE_BYTES))
            if status is Status.Ok:
                kept.append(key)
                if store.get(key) != proof(key, PAGE_BYTES):
                    wrong.append(f"get {key}")
            elif status is not Status.Unavailable:
                wrong.append(f"put {key}: {status.name}")

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(stores)]
    for thread in threads:
        thread.start()
    try:
        yield (lambda: len(kept)), kept
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:5]


def start(cluster: Cluster, file: GroupFile, node_id: str, wait: bool = True) -> Daemon:
    return cluster.start_node(
        node_id,
        wait,
        environment=ENVIRONMENT,
        master_address=NodeConfig().master_address,  # as if it were not set
        advertise_host="127.0.0.1",
        discovery_file=str(file.path),
        segment_size="128mb",
    )


def wait_moved(cluster: Cluster, address: str) -> None:
    """Wait until both nodes are registered there."""
    line = f"registered master={address}"
    wait_for(lambda: cluster.logs().count(line) >= 2, f"nodes to move to {address}", 20)


def wait_more(operations: Callable[[], int]) -> None:
    """Let some requests pass under what is in effect now."""
    enough = operations() + 50
    wait_for(lambda: operations() >= enough, "requests to go on", 30)


def masters_of(node: Daemon) -> list[str]:
    masters: list[str] = ready(node)[1]["discovery"]["masters"]
    return masters


def test_nodes_follow_the_file_under_load(cluster: Cluster, file: GroupFile) -> None:
    file.list_masters(cluster.address)
    nodes = [start(cluster, file, node_id) for node_id in ("a", "b")]
    (label,) = {node["labels"]["index"] for node in cluster.cli("nodes")}
    assert label == "0"
    port = cluster.address.rpartition(":")[2]
    stores = [cluster.connect(transport=transport) for transport in ("auto", "tcp")]
    with load(stores) as (operations, kept):
        for host in ("localhost", "127.0.0.1"):
            before = [reloads(node, "applied") for node in nodes]
            file.list_masters(f"{host}:{port}")
            for node, count in zip(nodes, before, strict=True):
                wait_reload(node, "applied", count)
                assert masters_of(node) == [f"{host}:{port}"]
            wait_moved(cluster, f"{host}:{port}")
            wait_more(operations)
    assert len(kept) > 100
    for key in kept:
        assert stores[0].get(key) == proof(key, PAGE_BYTES), f"{key} was lost"


def test_a_wrong_file_is_refused_while_the_node_serves(cluster: Cluster, file: GroupFile) -> None:
    file.list_masters(cluster.address)
    node = start(cluster, file, "a")
    store = cluster.connect()
    for content, said in (
        ("[", "not YAML"),
        ("x" * (2 << 20), "larger than 1 MiB"),
        ("group: {name: pd}\nroles: {}", "no role 'master'"),
        ("group: {name: pd}\nroles: {master: {size: 1, instances: 1}}", "Expected `array`"),
    ):
        before = reloads(node, "refused")
        file.write(content)
        wait_reload(node, "refused", before)
        assert said in ready(node)[1]["config_refused"]
        assert masters_of(node) == [cluster.address]
        value = proof(said, 10_000)
        assert store.put(said, value).name == "Ok" and store.get(said) == value
    file.list_masters(cluster.address)
    wait_for(lambda: "config_refused" not in ready(node)[1], "the right file to be taken", 10)


def test_a_master_that_moved_is_found_with_everything_kept(
    cluster: Cluster, file: GroupFile
) -> None:
    file.list_masters(cluster.address)
    node = start(cluster, file, "a")
    value = proof("kept", 100_000)
    assert cluster.connect().put("kept", value).name == "Ok"
    cluster.master.terminate()
    cluster._port = 0  # another port, as a pod that is made anew has another address
    cluster.restart_master()
    moved = f"127.0.0.1:{cluster.master.ports['port']}"
    assert moved != cluster.address
    file.list_masters(cluster.address, moved)
    wait_for(lambda: masters_of(node) == [cluster.address, moved], "the file to be read", 10)
    cluster.address = moved
    cluster.wait_state("a", "alive")
    assert cluster.connect().get("kept") == value


def test_a_start_with_a_wrong_file_ends_with_one_sentence(
    cluster: Cluster, file: GroupFile
) -> None:
    file.write("group: 1")
    node = start(cluster, file, "a", wait=False)
    assert node.process.wait(20) not in (0, 1)
    (line,) = (cluster.folder / "a.log").read_text().splitlines()
    assert f"discovery file {file.path}: " in line and "$.group" in line
