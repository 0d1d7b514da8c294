"""Nodes as processes: they join, report, die, come back, and leave nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import kvstore
from kvstore._proto import master_pb2, types_pb2
from kvstore.cli.operator import main as operator
from kvstore.topology import labels as topology_labels
from tests.support.cluster import SHM, Cluster
from tests.support.control import control, http_get, ready
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

ALIVE, DRAINING, DEAD = (
    types_pb2.NODE_STATE_ALIVE,
    types_pb2.NODE_STATE_DRAINING,
    types_pb2.NODE_STATE_DEAD,
)
TOKENS = "* node * n-secret-0123456789\no operator * o-secret-0123456789\n"
OPERATOR = "o:o-secret-0123456789"


def info(cluster: Cluster, node_id: str, token: str | None = None) -> types_pb2.NodeInfo:
    with control(cluster.master, token) as plane:
        reply = plane.master.ListNodes(master_pb2.ListNodesRequest(), **plane.call)
    return next((n for n in reply.nodes if n.node_id == node_id), types_pb2.NodeInfo())


def start(cluster: Cluster, node_id: str, **config: Any) -> Daemon:
    """Start a node and wait until it says that it serves."""
    node = cluster.start_node(node_id, wait=False, **config)
    node.wait_started()
    return node


def wait_state(
    cluster: Cluster, node_id: str, state: types_pb2.NodeState.ValueType, timeout_s: float
) -> None:
    wait_for(
        lambda: info(cluster, node_id).state == state,
        f"{node_id} to be {types_pb2.NodeState.Name(state)}\n{cluster.logs()}",
        timeout_s,
        0.05,
    )


def test_a_node_that_says_ready_serves(cluster: Cluster) -> None:
    node = start(cluster, "a", labels={"host": "h1", "rack": "r1"})
    found = info(cluster, "a")
    assert found.state == ALIVE and found.linked and found.node_epoch == 1
    assert found.endpoints.tcp == f"tcp://127.0.0.1:{node.ports['port']}"
    assert found.endpoints.unix == f"unix://{cluster.segment_dirs['a']}/node.sock"
    given = {"host": "h1", "rack": "r1"}
    assert dict(found.labels) == {**topology_labels.found(), **given}
    assert found.segments[0].capacity_bytes == 64 << 20
    wait_for(
        lambda: info(cluster, "a").capacity_bytes == 64 << 20, "all memory to be pre-faulted", 10
    )
    wait_for(lambda: info(cluster, "a").weight > 0, "writes to be sent there", 5)
    assert ready(node) == (200, {"ready": True, "link": "up"})
    assert http_get(node, "/healthz") == (200, "ok\n")
    status, text = http_get(node, "/metrics")
    assert status == 200 and "kvstore_capacity_bytes 6.7108864e+07" in text
    assert 'kvstore_latency_seconds_bucket{le="+Inf",operation="put"} 0.0' in text


def test_a_stopped_node_dies_and_returns_as_the_same(cluster: Cluster) -> None:
    node = start(cluster, "a")
    node.freeze()
    wait_state(cluster, "a", DEAD, 10)
    node.signal(signal.SIGCONT)
    wait_state(cluster, "a", ALIVE, 10)
    assert info(cluster, "a").node_epoch == 1
    wait_for(lambda: info(cluster, "a").linked, "the link to be up again", 10, 0.05)


def test_a_killed_node_may_start_again_at_once(cluster: Cluster) -> None:
    start(cluster, "a").kill()
    start(cluster, "a")
    found = info(cluster, "a")
    assert found.state == ALIVE and found.node_epoch == 2


def test_sigterm_is_a_goodbye_that_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    node = start(cluster, "a", keep_segment=False)
    assert any(cluster.segment_dirs["a"].iterdir())
    assert node.terminate() == 0
    assert info(cluster, "a").state == DEAD  # without waiting for its TTL
    assert not list(cluster.segment_dirs["a"].iterdir())
    assert not (tmp_path / "a.ports").exists()


def test_a_node_survives_its_master(cluster: Cluster) -> None:
    node = start(cluster, "a")
    cluster.master.kill()
    wait_for(lambda: ready(node)[0] == 503, "the node to notice", 10)
    cluster.restart_master()
    wait_state(cluster, "a", ALIVE, 15)
    wait_for(lambda: ready(node)[0] == 200, "the node to be ready again", 15)
    assert info(cluster, "a").node_epoch == 1
    wait_for(lambda: ready(cluster.master)[0] == 200, "the rebuild to end", 15)


def test_a_master_that_slept_does_not_bury_its_nodes(cluster: Cluster) -> None:
    start(cluster, "a")
    cluster.master.freeze()
    with pytest.raises(subprocess.TimeoutExpired):  # longer than the TTL
        cluster.master.process.wait(7)
    cluster.master.signal(signal.SIGCONT)
    wait_for(
        lambda: info(cluster, "a").last_heartbeat_age_ms < 1000, "a heartbeat to arrive", 10, 0.05
    )
    assert info(cluster, "a").state == ALIVE
    assert "state=dead" not in cluster.master.log.read_text()


def test_a_node_waits_for_a_master_that_comes_later(cluster: Cluster) -> None:
    cluster.master.kill()
    node = cluster.start_node("a", wait=False)
    wait_for(lambda: "master_not_joined" in node.log.read_text(), "the node to try")
    assert node.process.poll() is None
    cluster.restart_master()
    node.wait_started()
    assert info(cluster, "a").state == ALIVE


def test_the_next_address_is_tried(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
    start(cluster, "a", master_address=[nobody, cluster.address])
    assert info(cluster, "a").state == ALIVE


def test_a_second_node_of_the_same_name_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    first = start(cluster, "a")
    store = cluster.connect()
    assert store.put("kept", b"kept") is kvstore.Status.Ok
    other = cluster.segment_dirs["b"] = SHM / f"kvstore-test-{cluster.run_id}-b"
    config = json.loads((tmp_path / "a.json").read_text()) | {"segment_dir": str(other)}
    path = tmp_path / "second.json"
    path.write_text(json.dumps(config))
    for _ in range(2):  # as under a supervisor
        second = Daemon("second", ["-m", "kvstore.cli.node", "--config", str(path)], tmp_path)
        assert second.process.wait(20) == 5
    text = second.log.read_text()
    for word in ("node 'a' is alive at tcp://", "node_id", "--take-over"):
        assert word in text
    assert "Traceback" not in text and not (other / "segment").exists()
    found = info(cluster, "a")
    assert first.process.poll() is None and found.state == ALIVE and found.node_epoch == 1
    assert store.get("kept") == b"kept"
    forced = Daemon(
        "second", ["-m", "kvstore.cli.node", "--config", str(path), "--take-over"], tmp_path
    )
    cluster.nodes["second"] = forced
    forced.wait_started()
    assert first.process.wait(15) == 5
    assert info(cluster, "a").node_epoch == 2


@pytest.mark.parametrize("why", ["port", "folder", "memory"])
def test_a_node_that_cannot_start_leaves_no_trace(cluster: Cluster, why: str) -> None:
    start(cluster, "a")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config: dict[str, Any] = {"segment_size": "64tb"} if why == "memory" else {}
        if why == "port":
            config = {"port": taken.getsockname()[1]}
        if why == "folder":
            start(cluster, "b").terminate()
            cluster.cli("forget", "b")
            shutil.copytree(cluster.segment_dirs["b"], cluster.segment_dirs["a"] / "copy")
            config = {"segment_dir": str(cluster.segment_dirs["a"] / "copy")}
        node = cluster.start_node("c", wait=False, **config)
        assert node.process.wait(30) > 0, node.log.read_text()
    assert cluster.node_states() == {"a": "alive"}
    store = cluster.connect()
    assert store.put("k", b"v") is kvstore.Status.Ok
    assert cluster.cli("flush", "--namespace", "")["status"] == "Ok"
    assert store.remove("absent") is kvstore.Status.NotFound


def test_a_dead_node_is_forgotten(cluster: Cluster) -> None:
    start(cluster, "a")
    b = start(cluster, "b")
    runner = CliRunner()
    options = ["--master", cluster.address]
    refused = runner.invoke(operator, ["forget", "b", *options])
    assert refused.exit_code == 4 and "b is alive (last heartbeat" in refused.output
    assert runner.invoke(operator, ["forget", "nobody", *options]).exit_code == 1
    store = cluster.connect()
    put_on(store, cluster, "b", "k")
    b.kill()
    wait_state(cluster, "b", DEAD, 15)
    flushed = runner.invoke(operator, ["flush", "--namespace", "", "--timeout-ms", "300", *options])
    assert flushed.exit_code == 5 and "b" in flushed.output
    assert cluster.cli("forget", "b") == {"node_id": "b", "forgotten": True}
    assert cluster.node_states() == {"a": "alive"}
    assert cluster.cli("flush", "--namespace", "")["status"] == "Ok"
    start(cluster, "b")  # as a new node: what was flushed meanwhile does not come back
    assert store.get("k") is None


def test_a_drain_that_cannot_advance_says_why(cluster: Cluster) -> None:
    start(cluster, "a")
    b = start(cluster, "b")
    store = cluster.connect()
    put_on(store, cluster, "a", "k")
    runner = CliRunner()
    options = ["--master", cluster.address]
    assert runner.invoke(operator, ["drain", "nobody", *options]).exit_code == 1
    assert runner.invoke(operator, ["undrain", "nobody", *options]).exit_code == 1
    assert runner.invoke(operator, ["drain", "b", "--no-wait", *options]).exit_code == 0
    stuck = runner.invoke(operator, ["drain", "a", "--wait-s", "6", *options])
    assert stuck.exit_code == 5
    lines = [line for line in stuck.stderr.splitlines() if "nowhere to move 1 objects" in line]
    assert len(lines) >= 2 and "b is draining" in lines[0]  # while it waits, and at the end
    assert cluster.cli("undrain", "b")["node"]["state"] == "alive"
    assert cluster.cli("drain", "a", "--wait-s", "60")["drained"] is True
    assert cluster.cli("drain", "a", "--wait-s", "0")["drained"] is True
    cluster.nodes["a"].terminate()
    assert cluster.cli("drain", "a", "--wait-s", "0")["drained"] is True  # stopped since
    b.kill()
    wait_state(cluster, "b", DEAD, 15)
    dead = runner.invoke(operator, ["drain", "b", *options])
    assert dead.exit_code == 5 and "b is dead (last heartbeat" in dead.stderr


def put_on(store: kvstore.Store, cluster: Cluster, node_id: str, key: str) -> None:
    """Put objects until one of them lies on this node, under `key`."""

    def lies_there() -> bool:
        store.remove(key)
        assert store.put(key, b"x").ok
        return any(r["node_id"] == node_id for r in (store.inspect(key) or {})["replicas"])

    wait_for(lies_there, f"an object to be put on {node_id}", 30)


def test_a_superseded_node_ends(cluster: Cluster) -> None:
    old = start(cluster, "a")
    with control(cluster.master) as plane:
        plane.register("a", incarnation=12345)
    assert old.process.wait(15) == 5
    assert "another process now runs as node 'a'" in old.log.read_text()


def test_a_drain_reaches_the_node_and_survives_the_master(cluster: Cluster) -> None:
    start(cluster, "a")
    drain = master_pb2.DrainRequest(node_id="a")

    def drained() -> bool:
        with control(cluster.master) as plane:
            return plane.master.Drain(drain, **plane.call).drained

    wait_for(drained, "an empty node to be drained", 10, 0.1)
    assert info(cluster, "a").weight == 0
    cluster.master.kill()
    cluster.restart_master()
    wait_state(cluster, "a", DRAINING, 15)


def guarded(tmp_path: Path) -> tuple[Cluster, Path]:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    path.chmod(0o600)
    return Cluster(tmp_path, ["--auth-token-file", str(path)]), path


def test_tokens_are_asked_of_nodes(tmp_path: Path) -> None:
    cluster, path = guarded(tmp_path)
    try:
        start(cluster, "a", auth_token_file=str(path))
        assert info(cluster, "a", OPERATOR).state == ALIVE
        wrong = tmp_path / "wrong"
        wrong.write_text("* node * another-secret-0123456789\n")
        wrong.chmod(0o600)
        configs: dict[str, dict[str, Any]] = {"b": {}, "c": {"auth_token_file": str(wrong)}}
        for node_id, config in configs.items():
            node = cluster.start_node(node_id, wait=False, **config)
            assert node.process.wait(20) == 4, node.log.read_text()
            assert info(cluster, node_id, OPERATOR).node_id == ""
        assert "secret" not in cluster.logs().replace("no secret", "")
    finally:
        cluster.close()


def test_memory_that_is_not_there_is_named(cluster: Cluster) -> None:
    node = cluster.start_node("a", wait=False, segment_size="64tb")
    assert node.process.wait(20) == 5
    text = node.log.read_text()
    assert "segment" in text and "Traceback" not in text
    assert cluster.node_states() == {}


def test_what_the_node_prints_is_what_it_writes(cluster: Cluster) -> None:
    node = start(cluster, "a")
    line = next(line for line in node.log.read_text().splitlines() if "ready" in line)
    for key, value in json.loads((cluster.folder / "a.ports").read_text()).items():
        assert f"{key}={value}" in line
