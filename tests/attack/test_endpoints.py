"""A node's token leads nobody to another process: what is announced is called back first."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvstore import Status
from kvstore._proto import types_pb2
from tests.support.cluster import Cluster
from tests.support.control import Control, control, ready
from tests.support.processes import wait_for
from tests.support.wire import Connection, hello_body, number

pytestmark = pytest.mark.cluster

ATTACKER, GOOD, ENGINE, ADMIN = (f"secret-number-{i}-of-the-test" for i in range(4))
TOKENS = (
    f"a* node * {ATTACKER}\ngood* node * {GOOD}\n"
    f"engine client default {ENGINE}\nadmin operator * {ADMIN}\n"
)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with tokens, and the healthy node "good"."""
    for name, lines in (("tokens", slice(0, 4)), ("engine", slice(2, 3)), ("admin", slice(3, 4))):
        (tmp_path / name).write_text("".join(TOKENS.splitlines(keepends=True)[lines]))
        (tmp_path / name).chmod(0o600)
    options = ["--auth-token-file", str(tmp_path / "tokens")]
    cluster = Cluster(tmp_path, options, str(tmp_path / "admin"))
    try:
        cluster.start_node("good", auth_token_file=str(tmp_path / "tokens"))
        yield cluster
    finally:
        cluster.close()


def announce(attacker: Control, node_id: str, tcp: str) -> None:
    """Register as a node and send a heartbeat, as a live one would."""
    endpoints = types_pb2.Endpoints(tcp=tcp)
    reply = attacker.register(node_id, endpoints=endpoints, take_over=True)
    attacker.heartbeat(node_id, reply.session_id, tcp)


def problem(cluster: Cluster, node_id: str) -> str:
    """What `kvstore nodes` says of a node that is not published."""

    def found() -> str:
        (node,) = [one for one in cluster.cli("nodes") if one["node_id"] == node_id]
        assert node["state"] == "joining"
        return str(node["endpoint_problem"])

    return wait_for(found, f"{node_id} to be called back", 20, poll_s=0.05)


def nodes_told(cluster: Cluster) -> bytes:
    """The table of nodes that a client receives, as it is on the wire."""
    with Connection(cluster.address) as client:
        client.handshake(hello_body(principal=b"engine", token=b"x"), ENGINE.encode())
        return client.call(0x22, number(40, 5000, 4)).body


def test_no_other_process_is_published(guarded: Cluster) -> None:
    store = guarded.connect(token_file=str(guarded.folder / "engine"))
    assert store.put("k", b"value") is Status.Ok
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    with control(guarded.master, f"a*:{ATTACKER}") as attacker, ExitStack() as listening:
        silent = listening.enter_context(socket.create_server(("127.0.0.1", 0)))
        good = guarded.nodes["good"].ports
        cases = {
            "another node": (good["port"], "unknown principal or wrong token|is node 'good'"),
            "the master": (guarded.master.ports["port"], "is no node, not 'a1'"),
            "HTTP": (good["http_port"], "does not answer"),
            "nobody": (port, "Connection refused"),
            "silence": (silent.getsockname()[1], "does not answer the master as node"),
        }
        for number, (what, (at, words)) in enumerate(cases.items()):
            node_id = f"a{number}"
            announce(attacker, node_id, f"tcp://127.0.0.1:{at}")
            said = problem(guarded, node_id)
            assert any(word in said for word in words.split("|")), f"{what}: {said}"
            told = b"tcp://127.0.0.1:%d" % at
            assert nodes_told(guarded).count(told) == (what == "another node")  # by itself
    assert store.get("k") == b"value"
    assert guarded.node_states()["good"] == "alive"
    log = guarded.master.log.read_text()
    for number in range(len(cases)):
        assert f"endpoint_not_verified node_id=a{number} " in log


def test_an_earlier_process_of_the_node_is_not_published_as_its_next(guarded: Cluster) -> None:
    tokens = str(guarded.folder / "tokens")
    real = guarded.start_node("a", auth_token_file=tokens)
    with control(guarded.master, f"a*:{ATTACKER}") as attacker:
        announce(attacker, "a", f"tcp://127.0.0.1:{real.ports['port']}")
        assert "another process of node 'a' (epoch 1, not 2)" in problem(guarded, "a")
    assert real.process.wait(20) == 5  # it was superseded; its token is the attacker's


def test_hanging_endpoints_hold_up_no_healthy_node(guarded: Cluster) -> None:
    with control(guarded.master, f"a*:{ATTACKER}") as attacker, ExitStack() as listening:
        silent = listening.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        for number in range(24):
            announce(attacker, f"a{number}", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        tokens = str(guarded.folder / "tokens")
        node = guarded.start_node("good2", auth_token_file=tokens)
        assert time.monotonic() - began < 15
        assert ready(node, f"admin:{ADMIN}")[0] == 200


def test_a_wrong_advertised_host_is_named_where_it_is_looked_for(cluster: Cluster) -> None:
    node = cluster.start_node("a", wait=False, advertise_host="127.0.0.2", host="127.0.0.1")
    wait_for(lambda: "endpoint_not_verified" in node.log.read_text(), "the node's log", 20)
    assert "see advertise_host" in node.log.read_text()
    assert "tcp://127.0.0.2:" in problem(cluster, "a")
    store = cluster.connect()
    assert [peer["endpoint"] for peer in store.peers()] == [None]
    values = node.log.parent / "a.json"
    assert values.exists()
    text = values.read_text().replace("127.0.0.2", "127.0.0.1")
    values.write_text(text)  # a reload corrects it, without a restart
    cluster.wait_state("a", "alive", 40)
    node.wait_started()
    assert ready(node)[0] == 200
    assert store.put("k", b"v") is Status.Ok
