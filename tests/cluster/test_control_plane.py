"""The master's control plane with real processes: sessions, health, authentication, restarts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore._proto import master_pb2, types_pb2
from kvstore.errors import Status
from tests.support.cluster import Cluster
from tests.support.control import DEFAULT, control, http_get, ready, refusal
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster

OPERATOR = "o:o-secret-0123456789"
TOKENS = "o operator * o-secret-0123456789\n"


def state_of(cluster: Cluster, node_id: str, token: str | None = None) -> int:
    with control(cluster.master, token) as plane:
        reply = plane.master.ListNodes(master_pb2.ListNodesRequest(), **plane.call)
    return next((int(n.state) for n in reply.nodes if n.node_id == node_id), 0)


@pytest.fixture
def short_ttl(tmp_path: Path) -> Iterator[Cluster]:
    """A master whose nodes die after half a second of silence."""
    config = tmp_path / "master.json"
    config.write_text('{"heartbeat_ms": 100, "node_ttl_ms": 500, "verify_endpoints": false}')
    cluster = Cluster(tmp_path, ["--config", str(config)])
    yield cluster
    cluster.close()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    path.chmod(0o600)
    return path


@pytest.fixture
def guarded(tmp_path: Path, token_file: Path) -> Iterator[Cluster]:
    """A master with a token file."""
    cluster = Cluster(tmp_path, ["--auth-token-file", str(token_file)])
    yield cluster
    cluster.close()


def test_a_silent_node_dies_and_comes_back(short_ttl: Cluster) -> None:
    with control(short_ttl.master) as plane:
        first = plane.register("a")
        assert plane.heartbeat("a", first.session_id).state == types_pb2.NODE_STATE_ALIVE
        wait_for(
            lambda: state_of(short_ttl, "a") == types_pb2.NODE_STATE_DEAD, "the node to die", 3
        )
        with pytest.raises(grpc.RpcError) as caught:
            plane.heartbeat("a", first.session_id)
        assert refusal(caught.value) == ("NOT_FOUND", Status.NotFound)
        again = plane.register("a", node_epoch=first.node_epoch)
        assert again.session_id != first.session_id and again.node_epoch == first.node_epoch
        assert state_of(short_ttl, "a") == types_pb2.NODE_STATE_ALIVE


def test_a_newer_process_supersedes_an_older_one(cluster: Cluster) -> None:
    with control(cluster.master) as plane:
        old = plane.register("a", incarnation=1)
        new = plane.register("a", incarnation=2)
        assert new.node_epoch == old.node_epoch + 1
        with pytest.raises(grpc.RpcError) as caught:
            plane.register("a", incarnation=1, node_epoch=old.node_epoch)
        assert refusal(caught.value) == ("ALREADY_EXISTS", Status.AlreadyExists)
        plane.heartbeat("a", new.session_id)


def test_health_and_reflection(cluster: Cluster) -> None:
    with control(cluster.master) as plane:
        health = health_pb2_grpc.HealthStub(plane.channel)
        for service in ("", "kvstore.v1.Master", "kvstore.v1.NodeRegistry"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(plane.channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
        names = {service.name for service in answer.list_services_response.service}
    assert {"kvstore.v1.Master", "kvstore.v1.NodeRegistry", "grpc.health.v1.Health"} <= names


def test_http(cluster: Cluster) -> None:
    assert http_get(cluster.master, "/healthz") == (200, "ok\n")
    assert ready(cluster.master) == (
        200,
        {"ready": True, "rebuilding": False, "awaited_nodes": []},
    )
    assert http_get(cluster.master, "/nothing")[0] == 404
    with control(cluster.master) as plane:
        session_id = plane.register("a").session_id
        plane.heartbeat("a", session_id)
    status, text = http_get(cluster.master, "/metrics")
    assert status == 200
    assert 'kvstore_cluster_node_capacity_bytes{node="a"} 1000.0' in text
    assert 'kvstore_cluster_rpc_total{method="Register",status="Ok"} 1.0' in text
    assert "kvstore_cluster_objects 0.0" in text


def status_with(token: str, cluster: Cluster) -> tuple[str, int]:
    """The refusal of a call, or ("OK", 0)."""
    with control(cluster.master, token) as plane:
        try:
            plane.master.Status(master_pb2.StatusRequest(), **plane.call)
        except grpc.RpcError as error:
            return refusal(error)
    return "OK", 0


def test_tokens_are_replaced_on_sighup(guarded: Cluster, token_file: Path) -> None:
    token_file.write_text("o operator * another-secret-0123456789\n")
    guarded.master.signal(signal.SIGHUP)
    wait_for(
        lambda: status_with(OPERATOR, guarded)[0] == "UNAUTHENTICATED",
        "the old token to be refused",
    )
    assert status_with("o:another-secret-0123456789", guarded) == ("OK", 0)


def test_a_restarted_master_waits_for_its_nodes(short_ttl: Cluster) -> None:
    with control(short_ttl.master) as plane:
        first = plane.register("a")
    short_ttl.master.kill()
    short_ttl.restart_master()
    with control(short_ttl.master) as plane:
        with pytest.raises(grpc.RpcError):
            plane.heartbeat("a", first.session_id)
        status = plane.master.Status(master_pb2.StatusRequest(), **plane.call)
        assert status.master_epoch == 2 and status.nodes_known == 1
        again = plane.register("a", node_epoch=first.node_epoch, cluster_id=first.cluster_id)
        assert (again.cluster_id, again.hash_secret) == (first.cluster_id, first.hash_secret)
        assert (again.node_epoch, again.master_epoch) == (first.node_epoch, 2)


def test_a_rebuild_shows_and_ends_with_the_ttl(tmp_path: Path) -> None:
    config = tmp_path / "master.json"
    config.write_text('{"node_ttl_ms": 2000}')
    cluster = Cluster(tmp_path, ["--config", str(config)])
    try:
        with control(cluster.master) as plane:
            plane.register("a")
        cluster.master.kill()
        cluster.restart_master()
        code, body = ready(cluster.master)
        assert code == 503
        assert body == {"ready": False, "rebuilding": True, "awaited_nodes": ["a"]}
        assert http_get(cluster.master, "/healthz")[0] == 200
        wait_for(lambda: ready(cluster.master)[0] == 200, "the rebuild to end", 10)
    finally:
        cluster.close()


def test_a_flush_survives_a_restart(cluster: Cluster) -> None:
    request = master_pb2.FlushRequest(namespace=DEFAULT, timeout_ms=500)
    with control(cluster.master) as plane:
        epochs = [plane.master.Flush(request, **plane.call).namespace_epoch for _ in range(3)]
    assert epochs == [1, 2, 3]
    cluster.master.kill()
    cluster.restart_master()
    with control(cluster.master) as plane:
        assert plane.master.Flush(request, **plane.call).namespace_epoch == 4


def run_master(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvstore.cli.master", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_master_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    ports = ("--port", "0", "--grpc-port", "0", "--http-port", "0")
    second = run_master("--data-dir", str(tmp_path / "master"), *ports)
    assert second.returncode == 3
    assert "another master is active" in second.stderr
    for name, key in (
        ("--port", "port"),
        ("--grpc-port", "grpc_port"),
        ("--http-port", "http_port"),
    ):
        taken = {"--port": "0", "--grpc-port": "0", "--http-port": "0"}
        taken[name] = str(cluster.master.ports[key])
        options = [word for pair in taken.items() for word in pair]
        clash = run_master("--data-dir", str(tmp_path / f"other{name}"), *options)
        assert clash.returncode == 3, clash.stderr
        assert "Traceback" not in clash.stderr


def test_wrong_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"prot": 1}')
    wrong = run_master("--config", str(path))
    assert wrong.returncode == 2
    assert "prot" in wrong.stderr and "port" in wrong.stderr and "Traceback" not in wrong.stderr
    assert "Example:" in run_master("--help").stdout


def test_sigterm_ends_the_master_and_its_port_file(cluster: Cluster, tmp_path: Path) -> None:
    with control(cluster.master) as plane:
        watch = plane.master.Watch(master_pb2.WatchRequest())  # an open stream does not hold it up
        assert next(watch).resync
        assert cluster.master.terminate(timeout_s=10) == 0
        with pytest.raises(grpc.RpcError):
            next(watch)
    assert not (tmp_path / "master.ports").exists()
