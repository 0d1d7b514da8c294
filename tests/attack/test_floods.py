"""Who opens many connections, or holds many sessions, shuts nobody out."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import kvstore
from kvstore import Status
from tests.attack.neighbours import Guarded, assert_fair, flood, guarded, p99_ms
from tests.support.cluster import Cluster
from tests.support.control import http_get, metric
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

_FLOOD = 1100
_DESCRIPTORS = 1024
"""What many systems allow a process."""
_LOG_BYTES = 20_000


@contextmanager
def many_descriptors() -> Iterator[None]:
    """Let this process open as many as the test needs."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 4 * _FLOOD:
        pytest.skip(f"needs {4 * _FLOOD} descriptors: raise the hard limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 4 * _FLOOD), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def test_idle_http_connections_shut_nobody_out(cluster: Cluster) -> None:
    node = cluster.start_node("a")
    daemons = (cluster.master, node)
    before = {daemon.name: descriptors(daemon) for daemon in daemons}
    for daemon in daemons:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
    store = cluster.connect()
    with many_descriptors(), ExitStack() as flood:
        for daemon in daemons:
            for _ in range(_FLOOD):
                address = ("127.0.0.1", int(daemon.ports["http_port"]))
                peer = flood.enter_context(socket.create_connection(address, timeout=10))
                peer.sendall(b"GET /")  # and no more
        for daemon in daemons:
            assert http_get(daemon, "/healthz")[0] == 200
            assert descriptors(daemon) <= before[daemon.name] + 300
        assert store.put("k", b"v") is Status.Ok
        newcomer = cluster.connect()
        assert newcomer.get("k") == b"v"
        busy = {daemon.name: cpu_s(daemon) for daemon in daemons}
        time.sleep(2)  # of idleness, in which nothing spins
        for daemon in daemons:
            assert cpu_s(daemon) - busy[daemon.name] < 1.0
            assert daemon.log.stat().st_size < _LOG_BYTES, daemon.log.read_text()[-2000:]
            assert "http_connections_full" in daemon.log.read_text()
    wait_for(
        lambda: all(descriptors(daemon) < before[daemon.name] + 20 for daemon in daemons),
        "descriptors to go",
    )


def cpu_s(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def block_ports(cluster: Cluster, *nodes: Daemon) -> list[int]:
    ports = [cluster.master.ports["port"], *(urlsplit(node.ports["tcp"]).port for node in nodes)]
    return [int(port) for port in ports]


def has_logged(daemon: Daemon, text: str) -> bool:
    return text in daemon.log.read_text()


def test_half_open_block_connections_shut_nobody_out(cluster: Cluster) -> None:
    a = cluster.start_node("a")
    store = cluster.connect(transport="tcp")
    base_ms = p99_ms(store, "base")
    with flood("half_open", 300, *block_ports(cluster, a)):
        for i in range(63):
            with kvstore.connect(cluster.address, transport="tcp") as newcomer:
                assert newcomer.put(f"new/{i}", b"v") is Status.Ok, i
        beside_ms = p99_ms(store, "beside")
        began = time.monotonic()
        cluster.start_node("b")
        joined_s = time.monotonic() - began
        for daemon in (cluster.master, a):
            said = partial(has_logged, daemon, "before their Welcome")
            wait_for(said, "the evictions to be logged")
        log = a.log.read_text()
        began = time.monotonic()
        a.terminate()
        cluster.start_node("a")
        print(f"half-open: a node joins in {joined_s:.1f} s, ", end="")
        print(f"restarts in {time.monotonic() - began:.1f} s")
        assert store.get("new/1") == b"v"
    for text in (cluster.master.log.read_text(), log):
        assert len(text) < _LOG_BYTES, text[-2000:]
    assert_fair(base_ms, beside_ms, "half-open connections")


def test_sessions_of_one_principal_leave_room_for_others(tmp_path: Path) -> None:
    with guarded(tmp_path, principal_share=0.02) as at:
        at.start_node("a", principal_share=0.02)
        refused = ""
        with many_descriptors(), ExitStack() as held:
            for _ in range(100):  # 71 of the 3584 for clients
                try:
                    held.enter_context(at.connect("loud", transport="tcp"))
                except kvstore.KvstoreError as error:
                    refused = str(error)
                    break
            assert "principal loud has 71 sessions" in refused and "principal_share" in refused
            with at.connect("engine") as store:
                assert store.put("k", b"v") is Status.Ok
            at.start_node("b")  # joins
        said = partial(has_logged, at.cluster.master, "principal_share")
        wait_for(said, "the refusal to be logged")
        with at.connect("loud") as again:
            assert again.get("k") == b"v"


def namespaces_of(at: Guarded) -> int:
    return int(metric(at.cluster.master, "kvstore_cluster_namespaces_known"))


def test_namespaces_of_one_tenant_leave_room_for_others(tmp_path: Path) -> None:
    with guarded(tmp_path, tenant_namespaces=20) as at, ExitStack() as stores:
        at.start_node("a")
        store = stores.enter_context(at.connect("engine"))
        base_ms = p99_ms(store, "base")
        with flood("namespaces", at.cluster.address, at.files["loud"], "noisy"):
            beside_ms = p99_ms(store, "beside")
            assert namespaces_of(at) == 1, "looking for a key creates a namespace"
            loud = [
                stores.enter_context(at.connect("loud", tenant="noisy", namespace=f"n{i}"))
                for i in range(25)
            ]
            assert [one.put("k", b"v") for one in loud[:20]] == [Status.Ok] * 20
            assert [one.put("k", b"v") for one in loud[20:]] == [Status.NoSpace] * 5
            assert loud[20].lookup(["k"], wait_ms=100).length == 0
            said = partial(has_logged, at.cluster.master, "tenant_namespaces")
            wait_for(said, "the refusal to be logged")
            for i in range(15):
                with at.connect("engine", namespace=f"mine-{i}") as mine:
                    assert mine.put("k", b"v") is Status.Ok, i
        at.cluster.master.terminate()
        at.cluster.restart_master()
        wait_for(lambda: store.put("again", b"v").ok, "the master to be back", 20)
        assert loud[0].get("k") == b"v"
        with at.connect("engine", namespace="mine-0") as mine:
            assert mine.put("another", b"v") is Status.Ok
        assert_fair(base_ms, beside_ms, "sessions in new namespaces")


def test_hard_pins_of_one_tenant_leave_room_for_others(tmp_path: Path) -> None:
    with guarded(tmp_path) as at:
        at.start_node("a", segment_size="32mb", shm_write=["default", "noisy"])  # one domain
        with at.connect("loud", tenant="noisy") as loud, at.connect("engine") as store:
            pinned = [loud.put(f"k{i}", bytes(1 << 20), pin="hard") for i in range(20)]
            assert pinned == [Status.Ok] * 16 + [Status.NoSpace] * 4
            assert loud.batch_put(["a", "b"], [b"x" * 1000] * 2, pin="hard") == [Status.NoSpace] * 2
            for i in range(40):  # the other half, again and again
                assert store.put(f"k{i}", bytes(1 << 20)) is Status.Ok, i
            assert store.put("mine", bytes(1 << 20), pin="hard") is Status.Ok
            assert loud.unpin("k0") is Status.Ok
            again = partial(loud.put, "again", bytes(1000), pin="hard")
            wait_for(lambda: again() is Status.Ok, "room after an unpin")
