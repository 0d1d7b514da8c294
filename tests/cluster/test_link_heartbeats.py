"""Heartbeats go over a node's link, and as calls while that carries none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvstore._proto import node_pb2
from kvstore.embedded import join
from kvstore.errors import Status
from tests.cluster.test_recorded import Link
from tests.support import wire
from tests.support.cluster import Cluster
from tests.support.control import control, heartbeats, metric
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

HEARTBEAT, HEARTBEAT_REPLY = 0x8C, 0x8D
TTL_MS = 1500


class Relay:
    """Before the master's block port; passes nothing on while it is shut."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self.open = threading.Event()
        self.open.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._sockets = [self._server]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                outside, _ = self._server.accept()
                inside = socket.create_connection(self._to)
                self._sockets += [outside, inside]
                for pair in ((outside, inside), (inside, outside)):
                    self._threads.append(threading.Thread(target=self._pass, args=pair))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.open.wait()
                to.sendall(data)
        with suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.open.set()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose nodes report often."""
    config = tmp_path / "master.json"
    config.write_text(json.dumps({"heartbeat_ms": 300, "node_ttl_ms": TTL_MS}))
    cluster = Cluster(tmp_path, ["--config", str(config)])
    try:
        yield cluster
    finally:
        cluster.close()


def wait_heartbeats(master: Daemon, count: int) -> None:
    """Wait until so many more have come over links."""
    before, _ = heartbeats(master)
    wait_for(lambda: heartbeats(master)[0] >= before + count, "heartbeats over the link", 60)


def test_a_node_calls_no_more_once_its_link_is_up(cluster: Cluster) -> None:
    cluster.start_node("a")
    wait_heartbeats(cluster.master, 1)
    _, before = heartbeats(cluster.master)
    wait_heartbeats(cluster.master, 4)
    _, after = heartbeats(cluster.master)
    assert after - before <= 1  # after a late answer, on a busy machine


def test_a_node_of_another_process_does_the_same(cluster: Cluster) -> None:
    node = join([cluster.address], 8 << 20, name="lent")
    try:
        wait_heartbeats(cluster.master, 3)
    finally:
        node.close()


def test_without_its_link_a_node_keeps_its_session(quick: Cluster) -> None:
    relay = Relay(int(quick.master.ports["port"]))
    try:
        quick.start_node("a", master_address=relay.address)
        wait_heartbeats(quick.master, 1)
        registered = metric(quick.master, "kvstore_cluster_rpc_total", method="Register")
        _, called = heartbeats(quick.master)
        relay.open.clear()
        # Several TTLs, and longer than the node waits for a silent master: 5 s.
        wait_for(lambda: heartbeats(quick.master)[1] >= called + 15, "calls", 60)
        assert quick.node_states() == {"a": "alive"}
        relay.open.set()
        wait_heartbeats(quick.master, 3)
        again = metric(quick.master, "kvstore_cluster_rpc_total", method="Register")
        assert again == registered
    finally:
        relay.close()


def test_after_a_restart_of_the_master_heartbeats_go_over_the_link_again(quick: Cluster) -> None:
    quick.start_node("a")
    wait_heartbeats(quick.master, 1)
    quick.master.terminate()
    quick.restart_master()
    quick.wait_state("a", "alive")
    wait_heartbeats(quick.master, 2)


def test_a_heartbeat_speaks_for_the_node_of_its_link_alone(cluster: Cluster) -> None:
    with control(cluster.master) as plane:
        other = plane.register("other")
        link = Link(cluster, plane, "paper")

        def ask(body: bytes) -> wire.Frame:
            link.connection.send(wire.frame(HEARTBEAT, wire.text(1, body), request=9))
            while (got := link.connection.receive()).request != 9:
                pass
            return got

        def refused(node_id: str, session_id: int) -> int:
            request = node_pb2.HeartbeatRequest(node_id=node_id, session_id=session_id)
            got = ask(request.SerializeToString())
            assert got.kind == wire.ERROR
            return int(wire.Refusal(got.body).code)

        try:
            own = link.session_id
            assert refused("other", other.session_id) == Status.PermissionDenied
            assert refused("paper", other.session_id) == Status.NotFound
            assert refused("", own) == Status.PermissionDenied
            got = ask(b"\xff")
            assert wire.Refusal(got.body).code == Status.InvalidArgument
            request = node_pb2.HeartbeatRequest(node_id="paper", session_id=own)
            assert ask(request.SerializeToString()).kind == HEARTBEAT_REPLY
        finally:
            link.connection.close()
