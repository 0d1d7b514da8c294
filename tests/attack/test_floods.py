"""Who opens many connections and says nothing shuts nobody out."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import http_get
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
