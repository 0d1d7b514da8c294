"""The doctor on real clusters: what is healthy passes, what is broken is found with its fix."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import kvstore
from kvstore import _native
from kvstore.cli.operator import main
from kvstore.cli.output import Exit
from tests.support.cluster import Cluster
from tests.support.other_user import NOBODY, needs_another_user
from tests.support.package import copy_package
from tests.support.processes import python_process, read_line, wait_for

pytestmark = pytest.mark.cluster

TOKENS = (
    "* node * n-secret-0123456789\n"
    "op operator * o-secret-0123456789\n"
    "chat client chat c-secret-0123456789\n"
)
_OTHER_PROGRAM = """
import http.server
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_port)
server.serve_forever()
"""


class Report:
    """What a doctor said."""

    def __init__(self, exit_code: int, document: dict[str, Any]) -> None:
        self.exit_code = exit_code
        self.findings: list[dict[str, str]] = document["findings"]
        self.failures = document["fail"]

    def has(self, level: str, check: str, said: str, fix: str = "") -> bool:
        return any(
            f["level"] == level and f["check"] == check and said in f["message"] and fix in f["fix"]
            for f in self.findings
        )

    def __repr__(self) -> str:
        return json.dumps(self.findings, indent=1)


def doctor(*arguments: str) -> Report:
    ran = CliRunner().invoke(main, ["doctor", "--json", "--timeout-ms", "1500", *arguments])
    assert ran.exit_code in (Exit.OK, Exit.FAILED), (ran.output, ran.exception)
    return Report(ran.exit_code, json.loads(ran.stdout))


def of_cluster(cluster: Cluster, *arguments: str) -> Report:
    return doctor("--only", "cluster", "--master", cluster.address, *arguments)


def test_a_healthy_host_and_cluster_give_no_failure(cluster: Cluster) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    report = doctor("--master", cluster.address, "--measure")
    assert report.exit_code == Exit.OK and report.failures == 0, report
    checks = {f["check"] for f in report.findings}
    assert {"memlock", "shm", "clock", "nics", "cuda", "ucx", "master", "versions"} <= checks
    for said in ("by shared memory took", "by TCP took"):
        assert report.has("ok", "roundtrip", said), report
    for node in ("a", "b"):
        assert report.has("ok", "paths", f"{node} is reached over shm"), report
        for path in ("TCP", "shared memory"):
            assert report.has("ok", "measure", f"{node} by {path}: "), report
    with cluster.connect(namespace="kvstore-doctor") as store:
        assert [*store.keys()] == []


def test_lines_for_reading_say_the_same(cluster: Cluster) -> None:
    cluster.start_node("a")
    arguments = ["doctor", "--only", "cluster", "--master", cluster.address]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0 and "ok    roundtrip  put, get and remove of 4 KiB" in ran.output
    assert ran.output.splitlines()[-1].endswith(" ok, 0 warn, 0 fail")
    cluster.nodes["a"].kill()
    cluster.wait_state("a", "dead")
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == Exit.FAILED
    assert "\nfail  nodes      no node is alive: puts and gets fail\n" in ran.output
    assert "\n                 fix: start kvstore-node, and see its log\n" in ran.output


def test_a_node_that_hangs_is_found(cluster: Cluster) -> None:
    cluster.start_node("a")
    cluster.start_node("b", labels={"host": "elsewhere"})
    cluster.nodes["b"].freeze()
    report = of_cluster(cluster)
    assert report.exit_code == Exit.FAILED
    assert report.has("fail", "nodes", "b does not answer at tcp://", "restart it"), report
    assert report.has("ok", "nodes", "a is alive, and answers"), report
    assert report.has("warn", "nodes", "b: HTTP at"), report
    cluster.wait_state("b", "dead")
    assert of_cluster(cluster).has("warn", "nodes", "b is dead", "kvstore forget b")


def test_a_master_that_hangs_or_is_gone_is_found(cluster: Cluster) -> None:
    cluster.master.freeze()
    report = of_cluster(cluster)
    assert report.exit_code == Exit.FAILED
    assert report.has("fail", "master", "accepts connections, but no master answered"), report
    cluster.master.kill()
    report = of_cluster(cluster)
    assert report.has("fail", "master", "nothing listens at", "start kvstore-master"), report
    cluster.restart_master()


def test_another_program_at_the_masters_port_is_named() -> None:
    with python_process(_OTHER_PROGRAM) as process:
        port = read_line(process)
        report = doctor("--only", "cluster", "--master", f"127.0.0.1:{port}")
        assert report.has("fail", "master", "looks like an HTTP server", "correct --master"), report


def test_a_configured_port_that_another_program_holds_is_found(
    cluster: Cluster, tmp_path: Path
) -> None:
    with python_process(_OTHER_PROGRAM) as process:
        port = int(read_line(process))
        file = tmp_path / "node.json"
        file.write_text(json.dumps({"master_address": cluster.address, "port": port}))
        report = doctor("--config", str(file), "--only", "network", "--only", "cluster")
        said = f"port {port} is taken by another program: "
        assert report.has("fail", "taken", said, "set another port"), report
        assert report.has("fail", "taken", f"(pid {process.pid})"), report
        assert report.has("ok", "master", f"the master answers at {cluster.address}"), report
        assert report.has("fail", "nodes", "no node is alive"), report
    node = cluster.start_node("a")
    file.write_text(json.dumps({"node_id": "a", "port": node.ports["port"]}))
    report = doctor("--config", str(file), "--only", "network")
    assert report.has("ok", "taken", "is served by kvstore-node"), report


def test_a_wrong_configuration_is_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    file.write_text('{"segment_siez": "1gb"}')
    report = doctor("--config", str(file), "--only", "clock")
    assert report.exit_code == Exit.FAILED
    assert report.has("fail", "config", "did you mean 'segment_size'?", "kvstore config check")


def test_a_socket_that_is_not_there_is_found(cluster: Cluster) -> None:
    cluster.start_node("a", labels={})
    (cluster.segment_dirs["a"] / "node.sock").unlink()
    report = of_cluster(cluster)
    said = "a is on this host, but reached over tcp: its socket"
    assert report.has("warn", "paths", said, "set socket_dir on the node"), report
    assert report.exit_code == Exit.OK
    assert of_cluster(cluster, "--strict").exit_code == Exit.FAILED


def test_a_node_without_shm_is_reached_over_tcp(cluster: Cluster) -> None:
    cluster.start_node("a", transports=["tcp"])
    report = of_cluster(cluster)
    assert report.has("ok", "paths", "a is reached over tcp: its transports do not include shm")
    assert report.has("ok", "roundtrip", "by TCP took"), report


def test_a_user_who_may_not_open_the_socket_hears_why(cluster: Cluster) -> None:
    needs_another_user()
    cluster.start_node("a", labels={})
    code = (
        "import os, sys\n"
        "from kvstore.cli.operator import main\n"
        "command = ['doctor', '--only', 'cluster', '--json', '--master', sys.argv[1]]\n"
        "main(command, standalone_mode=False)\n"  # nobody else may read these modules
        f"os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY})\n"
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "main(command)\n"
    )
    with python_process(code, cluster.address) as process:
        root = Report(0, json.loads(read_line(process)))
        report = Report(0, json.loads(read_line(process)))
    assert root.has("ok", "paths", "a is reached over shm"), root
    assert report.has("warn", "paths", f"this process (uid {NOBODY}) may not open", "socket_group")


def test_a_node_of_another_version_is_found(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copy_package(other, Path(str(_native.__file__)))
    module = other / "kvstore" / "__init__.py"
    text = module.read_text()
    assert text.count(f'"{kvstore.__version__}"') == 1
    module.write_text(text.replace(f'"{kvstore.__version__}"', '"0.7.1"'))
    cluster.start_node("a", package=other)
    report = of_cluster(cluster)
    said = f"a has version 0.7.1, this client {kvstore.__version__}"
    assert report.has("fail", "versions", said, "install one version everywhere"), report


def test_a_node_that_the_master_cannot_call_back_is_found(cluster: Cluster) -> None:
    cluster.start_node("a", wait=False, advertise_host="192.0.2.1")
    wait_for(
        lambda: any(node["endpoint_problem"] for node in cluster.cli("nodes")),
        "the master to see that a does not answer",
        30,
    )
    report = of_cluster(cluster)
    assert report.has("fail", "nodes", "a is not told to clients", "advertise_host"), report


# --- tokens ---


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "tokens").write_text(TOKENS)
    (tmp_path / "tokens").chmod(0o600)
    (tmp_path / "op").write_text(TOKENS.splitlines()[1])
    (tmp_path / "op").chmod(0o600)
    options = ["--auth-token-file", str(tmp_path / "tokens")]
    running = Cluster(tmp_path, options, str(tmp_path / "op"))
    try:
        running.start_node("a", auth_token_file=str(tmp_path / "tokens"))
        yield running
    finally:
        running.close()


def token(folder: Path, line: str, mode: int = 0o600) -> str:
    file = folder / "token"
    file.unlink(missing_ok=True)
    file.write_text(line)
    file.chmod(mode)
    return str(file)


def test_a_token_that_is_missing_wrong_or_of_another_tenant_is_found(
    guarded: Cluster, tmp_path: Path
) -> None:
    report = of_cluster(guarded)
    assert report.has("fail", "token", "a token is required", "--token-file"), report
    wrong = token(tmp_path, "op operator * another-secret-0123456789")
    report = of_cluster(guarded, "--token-file", wrong)
    assert report.has("fail", "token", f"the token of {wrong} is refused"), report
    chat = token(tmp_path, TOKENS.splitlines()[2])
    report = of_cluster(guarded, "--token-file", chat)
    assert report.has("fail", "token", "the principal may not", "another --tenant"), report
    readable = token(tmp_path, TOKENS.splitlines()[2], 0o644)
    report = of_cluster(guarded, "--token-file", readable)
    assert report.has("fail", "token", "token file", "chmod 0600"), report


def test_the_right_token_passes_and_a_configuration_has_it(
    guarded: Cluster, tmp_path: Path
) -> None:
    report = of_cluster(guarded, "--token-file", str(tmp_path / "op"))
    assert report.failures == 0 and report.has("ok", "token", "the token is accepted"), report
    both = token(tmp_path, "\n".join(TOKENS.splitlines()[:2]))
    file = tmp_path / "node.json"
    values = {"master_address": guarded.address, "node_id": "a", "auth_token_file": both}
    file.write_text(json.dumps(values))
    report = doctor("--only", "cluster", "--config", str(file))
    assert report.failures == 0 and report.has("ok", "token", "the token is accepted"), report


def test_a_chat_client_is_well_in_its_own_tenant(guarded: Cluster, tmp_path: Path) -> None:
    chat = token(tmp_path, TOKENS.splitlines()[2])
    report = of_cluster(guarded, "--token-file", chat, "--tenant", "chat")
    assert report.failures == 0, report
    assert report.has("ok", "roundtrip", "by TCP took"), report
    assert report.has("warn", "paths", "does not share memory with this store's tenant"), report


def test_no_cluster_at_the_default_address_is_no_failure() -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 50051))
        except OSError:
            pytest.skip("somebody has a master at the default address")
    report = doctor("--only", "cluster")
    assert report.exit_code == Exit.OK
    assert report.has("warn", "master", "no cluster was checked", "--master HOST:PORT"), report
