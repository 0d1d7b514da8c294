"""One node's token is worth nothing for another node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore import Status
from kvstore._proto import master_pb2, node_pb2
from tests.support.cluster import Cluster
from tests.support.control import DEFAULT, control

pytestmark = pytest.mark.cluster

A, B, ADMIN, ENGINE = (f"secret-number-{i}-of-the-test" for i in range(4))
TOKENS = f"a node * {A}\nb* node * {B}\nadmin operator * {ADMIN}\nengine client default {ENGINE}\n"


def test_a_nodes_token_registers_no_other_node(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    (tmp_path / "admin").write_text(TOKENS.splitlines()[2])
    (tmp_path / "admin").chmod(0o600)
    (tmp_path / "engine").write_text(TOKENS.splitlines()[3])
    (tmp_path / "engine").chmod(0o600)
    cluster = Cluster(tmp_path, ["--auth-token-file", str(tokens)], str(tmp_path / "admin"))
    try:
        healthy = cluster.start_node("b1", auth_token_file=str(tokens))
        store = cluster.connect(token_file=str(tmp_path / "engine"))
        assert store.put("k", b"value") is Status.Ok
        with control(cluster.master, f"a:{A}") as attacker:
            for call in (
                lambda: attacker.register("b1", take_over=True),
                lambda: attacker.heartbeat("b1", 1),
                lambda: attacker.nodes.Unregister(
                    node_pb2.UnregisterRequest(node_id="b1", session_id=1), **attacker.call
                ),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    call()
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
                assert "may not be node 'b1'" in str(refused.value.details())
            assert attacker.register("a").session_id != 0  # its own is allowed
        assert healthy.process.poll() is None
        assert store.get("k") == b"value"
        impostor = cluster.start_node("c", wait=False, auth_token_file=str(tokens))
        assert impostor.process.wait(20) == 2, impostor.log.read_text()
        assert "may be node 'c'" in impostor.log.read_text()
        assert "'b*'" in impostor.log.read_text()
        assert cluster.node_states()["b1"] == "alive"
    finally:
        cluster.close()


def test_an_operator_of_one_tenant_drains_no_node(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    of_one = f"local operator default {ENGINE}\n"
    tokens.write_text(TOKENS.splitlines(keepends=True)[2] + of_one)
    tokens.chmod(0o600)
    (tmp_path / "admin").write_text(TOKENS.splitlines()[2])
    (tmp_path / "admin").chmod(0o600)
    cluster = Cluster(tmp_path, ["--auth-token-file", str(tokens)], str(tmp_path / "admin"))
    try:
        with control(cluster.master, f"local:{ENGINE}") as local:
            plane = local.master
            calls: list[tuple[Callable[..., Any], Any]] = [
                (plane.Drain, master_pb2.DrainRequest(node_id="b1")),
                (plane.Forget, master_pb2.ForgetRequest(node_id="b1")),
                (plane.Snapshot, master_pb2.SnapshotRequest(node_id="b1")),
            ]
            for call, request in calls:
                with pytest.raises(grpc.RpcError) as refused:
                    call(request, **local.call)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            flush = master_pb2.FlushRequest(namespace=DEFAULT)
            plane.Flush(flush, **local.call)  # of its tenant
        with control(cluster.master, f"admin:{ADMIN}") as admin:
            with pytest.raises(grpc.RpcError) as unknown:
                admin.master.Drain(master_pb2.DrainRequest(node_id="b1"), **admin.call)
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        cluster.close()
