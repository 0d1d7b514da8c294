"""What the servers write: events only, each once while its cause lasts, in text or JSON."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import UnauthenticatedError
from tests.support.cluster import Cluster
from tests.support.control import http_get, metric
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

EVENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING) [a-z.]+ [a-z_]+")
READY = re.compile(r"kvstore-(master|node) ready ")


def lines_of(daemon: Daemon) -> list[str]:
    """What it has logged, without the ready line."""
    return [line for line in daemon.log.read_text().splitlines() if not READY.match(line)]


def test_json_lines_from_the_first_to_the_last(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["--log-format", "json", "--log-level", "debug"])
    try:
        how: dict[str, Any] = {"log_format": "json", "log_level": "debug"}
        node = cluster.start_node("a", **how)
        http_get(node, "/healthz")
        wrong = cluster.start_node("b", wait=False, segment_size="64tb", **how)
        assert wrong.process.wait(30) == 5
        last = json.loads(lines_of(wrong)[-1])
        assert (last["event"], last["program"]) == ("failed", "kvstore-node")
        assert last["exit_code"] == 5 and "segment_size" in last["error"]
        cluster.expected_errors += ["failed"]

        def events(daemon: Daemon) -> set[str]:
            return {json.loads(line)["event"] for line in lines_of(daemon)}

        wait_for(lambda: {"heartbeat", "request"} <= events(node), "debug events of the node")
        wait_for(lambda: "call" in events(cluster.master), "debug events of the master")
    finally:
        cluster.close()


def test_a_master_that_is_unreachable_is_one_warning(cluster: Cluster) -> None:
    node = cluster.start_node("a", log_level="debug")
    cluster.master.kill()

    def lines(level: str, event: str) -> int:
        found = [line.split(" ")[1:4] for line in lines_of(node)]
        return sum(one[0] == level and one[2] == event for one in found)

    wait_for(lambda: lines("DEBUG", "master_lost") >= 3, "the node to try", 30)
    assert lines("WARNING", "heartbeat_failed") <= 1 and lines("WARNING", "master_lost") == 1
    cluster.restart_master()
    wait_for(lambda: lines("INFO", "recovered") >= 1, "a line at the end of it", 30)
    cluster.wait_state("a", "alive")
    # Nothing but events: no line of gRPC, no traceback.
    for daemon in (node, cluster.master):
        assert not [line for line in lines_of(daemon) if not EVENT.match(line)]


def test_a_program_that_fails_says_its_own_name(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.start_node("a", wait=False, segment_dir=str(tmp_path / "no" / "where"))
    assert node.process.wait(30) == 5
    assert lines_of(node)[-1].startswith("kvstore-node: IoError: segment_dir ")
    second = Daemon(
        "second", ["-m", "kvstore.cli.master", "--data-dir", str(tmp_path / "master")], tmp_path
    )
    assert second.process.wait(30) == 3
    assert lines_of(second)[-1].startswith("kvstore-master: Unavailable: data directory ")


def test_refused_peers_are_named_and_cannot_fill_the_log(tmp_path: Path) -> None:
    def token_file(name: str, secret: str) -> str:
        path = tmp_path / name
        path.write_text(f"engine client default {secret}\na node * node-secret-of-the-test\n")
        path.chmod(0o600)
        return str(path)

    right = token_file("right", "engine-secret-of-the-test")
    wrong = token_file("wrong", "guessed-secret-of-the-test")
    admin = tmp_path / "admin"
    admin.write_text("admin operator * admin-secret-of-the-test\n")
    admin.chmod(0o600)
    Path(right).write_text(Path(right).read_text() + admin.read_text())
    cluster = Cluster(tmp_path, ["--auth-token-file", right], str(admin))
    try:
        node = cluster.start_node("a", auth_token_file=right)
        for _ in range(100):
            with pytest.raises(UnauthenticatedError):
                cluster.connect(token_file=wrong)
        for _ in range(100):  # no frame at all
            with socket.create_connection(("127.0.0.1", node.ports["port"])) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
                peer.recv(1000)

        def refused(daemon: Daemon, status: str) -> list[str]:
            found = (line for line in lines_of(daemon) if "connection_refused" in line)
            return [line for line in found if f"status={status}" in line]

        wait_for(lambda: refused(cluster.master, "Unauthenticated"), "a line of the master")
        wait_for(lambda: refused(node, "ProtocolError"), "a line of the node")
        (line,) = refused(cluster.master, "Unauthenticated")
        assert " WARNING master connection_refused " in line and "host=127.0.0.1 " in line
        assert "engine" in line and "wrong token" in line and "guessed" not in line
        (line,) = refused(node, "ProtocolError")
        assert "before the session is open" in line
        # The next lines come in a minute, with a count.
        assert (
            metric(cluster.master, "kvstore_cluster_refusals_total", code="Unauthenticated") >= 100
        )
    finally:
        cluster.close()
