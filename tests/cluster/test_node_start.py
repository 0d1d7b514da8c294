"""How nodes and masters start: room is weighed, folders and ports are looked at, IPv6 works."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from tests.support.cluster import Cluster
from tests.support.control import metric, ready
from tests.support.mounts import fill, small_tmpfs
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for a segment of 64 MiB and one index, not for two."""
    with small_tmpfs(tmp_path / "disk", "72m") as folder:
        yield folder


def refused(node: Daemon) -> str:
    """The last line of a node that must not start."""
    assert node.process.wait(30) == 5, node.log.read_text()
    text = node.log.read_text()
    assert "Traceback" not in text
    return text.splitlines()[-1]


def wait_for_memory(node: Daemon) -> None:
    wait_for(lambda: metric(node, "kvstore_ready_bytes") == 64 << 20, "all memory", 20)


def test_a_start_is_refused_when_its_restart_would_be(cluster: Cluster, disk: Path) -> None:
    config: dict[str, Any] = {"segment_dir": str(disk / "a"), "segment_size": "64mb"}
    line = refused(cluster.start_node("a", wait=False, **config))
    for word in ("segment_size 64.0 MiB", "second one during a restart", "allow_cold_restart"):
        assert word in line
    assert cluster.node_states() == {}
    node = cluster.start_node("a", allow_cold_restart=True, **config)
    assert "restart_will_lose_objects" in node.log.read_text()
    status, body = ready(node)
    assert status == 200 and "restart: segment_size 64.0 MiB" in body["degraded"][0]
    store = cluster.connect(transport="tcp")
    assert store.put("k", b"v") is kvstore.Status.Ok
    for _ in range(2):  # it starts again and again, empty when the second index has no room
        wait_for_memory(node)
        node.kill()
        node = cluster.start_node("a", allow_cold_restart=True, **config)
    wait_for(lambda: store.put("after", b"v").ok, "puts to be taken", 15)


def test_clients_let_go_of_the_memory_of_a_dead_node(cluster: Cluster, disk: Path) -> None:
    config: dict[str, Any] = {
        **{"segment_dir": str(disk / "a"), "segment_size": "64mb"},
        "allow_cold_restart": True,
    }
    node = cluster.start_node("a", **config)
    store = cluster.connect()  # maps the memory
    assert store.put("k", b"v").ok and store.get("k") == b"v"
    wait_for_memory(node)
    node.kill()

    def starts() -> bool:  # as a supervisor would try
        node = cluster.start_node("a", wait=False, **config)
        if node.wait_started_or_refused():
            return True
        assert "Clients that still map the memory" in node.log.read_text()
        assert store.get("k") is None
        return False

    wait_for(starts, "the memory to be free for the next life", 60)
    wait_for(lambda: store.put("after", b"v").ok, "puts to be taken", 15)


def test_memory_that_others_fill_is_named(cluster: Cluster, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", "100m") as disk:
        node = cluster.start_node("a", segment_dir=str(disk / "a"), segment_size="64mb")
        store = cluster.connect(transport="tcp")
        assert store.put("before", b"v").ok
        wait_for_memory(node)
        node.kill()
        # Room for the second index, and for nothing else.
        (disk / "reserve").write_bytes(bytes(9 << 20))
        fill(disk)
        (disk / "reserve").unlink()
        node = cluster.start_node("a", segment_dir=str(disk / "a"), segment_size="64mb")
        (disk / "rest").mkdir()
        fill(disk / "rest")
        assert store.get("before") == b"v"
        # What the first puts need was taken at the start.
        assert all(store.put(f"k{i}", bytes(4096)).ok for i in range(100))
        node.kill()
        line = refused(
            cluster.start_node("a", wait=False, segment_dir=str(disk / "a"), segment_size="64mb")
        )
        for word in ("segment_dir", "0.0 MiB left", "allow_cold_restart"):
            assert word in line


def test_a_disk_without_room_is_not_filled(cluster: Cluster, tmp_path: Path) -> None:
    cluster.expected_errors += ["nvme_failed"]
    with small_tmpfs(tmp_path / "disk", "32m") as disk:
        folder = disk / "nvme"
        nvme: dict[str, Any] = {"nvme_dir": str(folder), "nvme_size": "31mb"}
        node = cluster.start_node("a", **nvme)
        status, body = ready(node)
        assert status == 200 and body["nvme"] == "read_only"
        (lack,) = body["degraded"]
        for word in ("nvme read only", "nvme_size", "31 MiB more", "nvme_keep_free"):
            assert word in lack
        assert not list(folder.glob("segment-*"))
        node.terminate()
        node = cluster.start_node("a", nvme_keep_free=0, **nvme)
        assert "degraded" not in ready(node)[1]


@pytest.mark.parametrize("key", ["segment_dir", "nvme_dir"])
def test_a_misspelt_folder_is_not_created(cluster: Cluster, tmp_path: Path, key: str) -> None:
    wrong = tmp_path / "nonexistent" / "x"
    config: dict[str, Any] = {key: str(wrong)}
    if key == "nvme_dir":
        config["nvme_size"] = "8mb"
    line = refused(cluster.start_node("a", wait=False, **config))
    assert key in line and f"{wrong.parent} does not exist" in line
    assert not wrong.parent.exists()


def test_a_segment_on_a_disk_is_a_warning(cluster: Cluster, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "memory", "200m") as memory:
        node = cluster.start_node("a", segment_dir=str(memory / "a"))
        assert "segment_on_disk" not in node.log.read_text()
        node.terminate()
    node = cluster.start_node("b", segment_dir=str(tmp_path / "b"))
    assert "segment_on_disk" in node.log.read_text()


def test_a_port_that_becomes_free_is_taken(cluster: Cluster) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    node = cluster.start_node("a", wait=False, port=port)
    wait_for(lambda: "port_not_bound" in node.log.read_text(), "the node to try", 20)
    taken.close()
    node.wait_started()
    assert node.ports["port"] == port


def wait_for_copy(store: kvstore.Store, key: str) -> None:
    wait_for(lambda: len((store.inspect(key) or {"replicas": ()})["replicas"]) == 2, "a copy")


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_ipv6(tmp_path: Path, host: str) -> None:
    cluster = Cluster(tmp_path, ["--host", host])
    try:
        port = cluster.master.ports["port"]
        cluster.address = f"[::1]:{port}"
        advertise = "::1" if host == "::" else ""
        nodes: dict[str, dict[str, Any]] = {"a": {"transports": ["tcp"]}, "b": {}}
        for node_id, config in nodes.items():
            node = cluster.start_node(node_id, host=host, advertise_host=advertise, **config)
            assert node.ports["tcp"].startswith("tcp://[::1]:")
            assert node.ports["http"].startswith("http://[::1]:")
        for address in (f"[::1]:{port}", f"::1:{port}"):
            with kvstore.connect(address, transport="tcp") as store:
                data = {f"{address}/{i}": bytes([i]) * 5000 for i in range(40)}
                assert all(s.ok for s in store.batch_put(list(data), list(data.values())))
                assert store.batch_get(list(data)) == list(data.values())
                assert store.put(f"copied/{address}", b"x", replicas=2).ok
                wait_for_copy(store, f"copied/{address}")
        assert cluster.cli("status")["objects"] == 82
        if host == "::":
            ipv4 = f"127.0.0.1:{port}"
            with kvstore.connect(ipv4, transport="tcp") as store:
                assert store.exists(f"::1:{port}/0")
    finally:
        cluster.close()
