"""The console's paths, `kvstore top` and `status`: their values are those of /metrics."""

from __future__ import annotations

import http.client
import json
import os
import pty
import select
import signal
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore._proto import master_pb2
from kvstore.cli import overview
from kvstore.cli.operator import main
from kvstore.cli.target import Target
from kvstore.cli.top_screen import sparkline
from kvstore.cli.web import ask_console
from kvstore.errors import Status
from kvstore.master.history import CAUSES, REASONS
from tests.support.cluster import Cluster
from tests.support.control import control, http_get, metric
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for
from tests.support.simulated import Simulated, simulated
from tests.support.tool import PROGRAM

pytestmark = pytest.mark.cluster

SIZE = 64 << 10
HOSTILE = '<img src=x onerror="document.title=1">[red]\u202e'


def ask(master: Daemon, path: str, token: str | None = None, **query: str) -> Any:
    text = f"?{urllib.parse.urlencode(query)}" if query else ""
    status, body = http_get(master, f"/console/api/{path}{text}", token)
    assert status == 200, body
    return json.loads(body)


def total(master: Daemon, name: str, **labels: str) -> int:
    return int(metric(master, f"kvstore_cluster_{name}", **labels))


def work(cluster: Cluster) -> None:
    """Puts, reads, misses and evictions by two nodes of different hosts."""
    store = cluster.connect(namespace="n")
    for number in range(400):
        key = f"k{number}"
        assert store.put(key, proof(key, SIZE)) in (Status.Ok, Status.AlreadyExists)
        store.get(f"k{number // 3}")
    assert store.get("nobody") is None
    by_socket = cluster.connect(namespace="n", transport="tcp")
    assert by_socket.get("k399") == proof("k399", SIZE)


def settled(cluster: Cluster) -> dict[str, Any]:
    """The overview, once the nodes have reported what was done."""

    def same() -> dict[str, Any] | None:
        found: dict[str, Any] = ask(cluster.master, "overview", window_ms="3600000", history="1")
        traffic = found["traffic"]
        told = {
            ("bytes_total", "operation", "get"): traffic["read_bytes"],
            ("bytes_total", "operation", "put"): traffic["put_bytes"],
            ("puts_total", "result", "ok"): traffic["puts"]["ok"],
            ("hits_total", "path", "shm"): traffic["hits_shm"],
            ("evictions_by_cause_total", "cause", "memory"): traffic["evictions"]["memory"],
        }
        for (name, label, value), count in told.items():
            nodes = cluster.nodes.values()
            if count != sum(metric(node, f"kvstore_{name}", **{label: value}) for node in nodes):
                return None
        return found

    return wait_for(same, "the overview to have what the nodes have", 20)


def test_the_overview_is_what_the_metrics_are(cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.start_node(name, segment_size="8mb")
    work(cluster)
    master = cluster.master
    done = settled(cluster)
    traffic = done["traffic"]
    assert done["objects"] == total(master, "objects")
    assert done["used_bytes"] == total(master, "node_used_bytes")
    assert done["capacity_bytes"] == total(master, "node_capacity_bytes") == 16 << 20
    hits = total(master, "hits_total", seen_by="client", path="shm")
    assert traffic["hits"] == hits + total(master, "hits_total", seen_by="node", path="socket")
    for reason in REASONS:
        assert traffic["misses"][reason] == total(master, "lookups_total", result=reason)
    assert traffic["misses"]["absent"] == 1 and traffic["misses"]["evicted"] > 0
    missed = sum(traffic["misses"].values())
    assert traffic["hit_ratio"] == traffic["hits"] / (traffic["hits"] + missed)
    for cause in CAUSES[:-1]:
        counted = total(master, "evictions_by_cause_total", cause=cause) if cause == "memory" else 0
        assert traffic["evictions"][cause] == counted
    assert traffic["evictions"]["memory"] == total(master, "evictions_total") > 0
    assert traffic["puts"]["ok"] == total(master, "puts_total", result="ok") > 0
    assert sum(traffic["puts"].values()) == 400
    history = done["history"]
    assert sum(history["read_bytes"]) == traffic["read_bytes"]
    assert sum(history["hits"]) == traffic["hits"]
    assert history["objects"][-1] == done["objects"]
    # The same, by the commands.
    lately = cluster.cli("status", "--bytes-per-token", "1kb", "--prefill-tokens-per-s", "100")
    saved = lately["lately"]["savings"]["saved_tokens"]
    assert saved == traffic["read_bytes"] / 1024
    assert lately["lately"]["savings"]["saved_s"] == saved / 100
    assert lately["lately"]["hit_ratio"] == traffic["hit_ratio"]
    assert cluster.cli("top")["overview"]["traffic"]["hits"] == traffic["hits"]


def test_the_hit_ratio_is_that_of_a_replay(cluster: Cluster) -> None:
    cluster.start_node("a")
    replayed = cluster.cli("replay", "--block-bytes", "4kb", "--keep")

    def reported() -> dict[str, Any] | None:
        traffic: dict[str, Any] = ask(cluster.master, "overview")["traffic"]
        wanted = traffic["hits"] + sum(traffic["misses"].values())
        return traffic if wanted == replayed["blocks"] else None

    traffic = wait_for(reported, "every block of the replay", 20)
    assert round(traffic["hit_ratio"], 4) == replayed["hit_rate"] > 0.5


def kinds(master: Daemon) -> set[str]:
    """Of the events that the console shows."""
    return {event["kind"] for event in ask(master, "events")["events"]}


def test_nodes_tenants_and_events(cluster: Cluster, tmp_path: Path) -> None:
    disk = tmp_path / "nvme"
    disk.mkdir()
    config: dict[str, Any] = {"segment_size": "8mb", "nvme_dir": str(disk), "nvme_size": "64mb"}
    cluster.start_node("a", **config)
    cluster.start_node("b")
    work(cluster)
    master = cluster.master
    settled(cluster)

    def on_nvme() -> dict[str, Any] | None:
        (a, _) = ask(master, "nodes")["nodes"]
        return dict(a) if a["nvme"] and a["nvme"]["object_bytes"] else None

    a = wait_for(on_nvme, "the node to tell of its NVMe tier")
    assert (a["nvme"]["state"], a["problems"], a["state"]) == ("active", [], "alive")
    assert a["used_bytes"] == total(master, "node_used_bytes", node="a")
    assert a["replicas"] == total(master, "node_replicas", node="a")
    (tenant,) = ask(master, "namespaces")["tenants"]
    assert tenant["tenant"] == "default" and tenant["keys_looked_up"] > tenant["keys_found"]
    assert tenant["hits"] == total(master, "tenant_hits_total", tenant="default") > 0
    assert tenant["read_bytes"] == total(master, "tenant_read_bytes_total", tenant="default")
    read = ask(master, "overview")["traffic"]["read_bytes"]
    assert tenant["read_bytes"] == read - SIZE  # the client by socket maps no memory
    with control(master) as plane:
        plane.master.Drain(master_pb2.DrainRequest(node_id="b"), **plane.call)
    cluster.nodes["a"].terminate()
    # The master looks once a second: a node that is back by then has restarted, no more.
    wait_for(lambda: "restarts" in kinds(master), "the node's end to be told")
    cluster.start_node("a", **config)
    cluster.nodes["b"].kill()
    cluster.wait_state("b", "dead")
    # A file that is refused while the node runs.
    (cluster.folder / "a.json").write_text('{"nobody_knows": 1}')
    cluster.nodes["a"].signal(signal.SIGHUP)
    wanted = {"started", "joined", "evicted", "drain", "restarts", "restarted", "died"}
    wanted |= {"config_refused"}
    wait_for(lambda: wanted <= kinds(master), f"events: {wanted}", 20)
    (a, b) = ask(master, "nodes")["nodes"]
    assert any("nobody_knows" in problem for problem in a["problems"])
    assert b["state"] == "dead" and b["read_bytes_per_s"] == 0


def test_explain(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect(namespace="n")
    store.put(HOSTILE, b"x" * 100)

    def look(key: str) -> Any:
        return ask(cluster.master, "explain", tenant="default", namespace="n", key=key)

    found = look(HOSTILE)
    assert found["key"] == HOSTILE and found["object"]["size"] == 100
    (replica,) = found["object"]["replicas"]
    assert (replica["node_id"], replica["tier"], replica["state"]) == ("a", "dram", "alive")
    assert look("nobody")["object"] is None
    path = "/console/api/explain?key="
    for query in ("", "a" * 1025, "k&tenant=%00", "k&namespace=%0a", "k&tenant="):
        assert http_get(cluster.master, path + query)[0] == 400
    for window in ("x", "-1", "٣", "9" * 40):
        text = urllib.parse.quote(window)
        assert http_get(cluster.master, f"/console/api/overview?window_ms={text}")[0] == 400


def test_the_files_allow_nothing_but_themselves(cluster: Cluster) -> None:
    def get(path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", cluster.master.ports["http_port"])
        connection.request("GET", path)
        reply = connection.getresponse()
        reply.read()
        connection.close()
        return reply

    assert get("/console").getheader("Location") == "console/"
    kinds = {"": "text/html", "main.js": "text/javascript", "console.css": "text/css"}
    for name, kind in kinds.items():
        reply = get(f"/console/{name}")
        assert (reply.status, reply.getheader("Content-Type")) == (200, f"{kind}; charset=utf-8")
        policy = str(reply.getheader("Content-Security-Policy"))
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert reply.getheader("X-Content-Type-Options") == "nosniff"
    for name in ("nobody.js", "..%2froutes.py", "%2e%2e/routes.py", "routes.py", ".."):
        assert get(f"/console/{name}").status == 404
    reply = get("/console/api/overview")
    assert reply.getheader("Content-Type") == "application/json"
    assert reply.getheader("Cache-Control") == "no-store"


def test_a_tenant_sees_its_own(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    secret = "secret-0123456789"
    names = (("root", "operator", "*"), ("one", "client", "default"), ("two", "client", "two"))
    lines = [f"{name} {role} {tenants} {secret}-{name}\n" for name, role, tenants in names]
    tokens.write_text("".join([*lines, f"a node * {secret}-a\n"]))
    for number, (name, _, _) in enumerate(names):
        own = tmp_path / name
        own.touch(0o600)
        own.write_text(lines[number])
    options = ["--auth-token-file", str(tokens)]
    (tmp_path / "c").mkdir()
    cluster = Cluster(tmp_path / "c", options, str(tmp_path / "root"))
    try:
        cluster.start_node("a", auth_token_file=str(tokens))
        for name, tenant in (("one", "default"), ("two", "two")):
            store = cluster.connect(tenant=tenant, token_file=str(tmp_path / name))
            assert store.put("k", b"x")
        master = cluster.master

        def tenants(name: str) -> set[str]:
            found = ask(master, "namespaces", f"{name}:{secret}-{name}")
            return {one["tenant"] for one in found["tenants"]} | {
                one["tenant"] for one in found["namespaces"]
            }

        assert tenants("root") == {"default", "two"}
        assert tenants("one") == {"default"}
        runner = CliRunner()
        where = ["--master", cluster.address, "--token-file"]
        result = runner.invoke(main, ["top", "--json", *where, str(tmp_path / "one")])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["events"] is None
        result = runner.invoke(main, ["top", "--once", *where, str(tmp_path / "one")])
        assert result.exit_code == 0 and "started" not in result.stdout
        result = runner.invoke(main, ["top", "--once", *where, str(tmp_path / "root")])
        assert result.exit_code == 0 and "started" in result.stdout
    finally:
        cluster.close()


def test_top_and_status_with_names_of_others(cluster: Cluster) -> None:
    """Control characters are shown, markup of rich is text; an older node tells less."""
    name = "node[bold]\u202e"
    with simulated(cluster.master, [Simulated(name, used_bytes=1 << 39), Simulated("b")]):
        runner = CliRunner()
        where = ["--master", cluster.address]
        result = runner.invoke(main, ["top", "--once", "--sort", "name", *where])
        assert result.exit_code == 0, result.output
        assert "node[bold]\\u202e" in result.output and "\u202e" not in result.output
        assert "50 %" in result.output
        found = cluster.cli("top")
        assert [one["node_id"] for one in found["nodes"]] == ["b", name]
        assert [one["nvme"] for one in found["nodes"]] == [None, None]
        result = runner.invoke(main, ["status", *where])
        assert "nothing was wanted" in result.output
        result = runner.invoke(main, ["status", "--bytes-per-token", "much", *where])
        assert result.exit_code == 2 and "--bytes-per-token" in result.output


def test_status_without_the_http_port(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(where: Target, endpoint: str, path: str, **query: Any) -> Any:
        return ask_console(where, "http://127.0.0.1:1", path, **query)  # nobody listens there

    monkeypatch.setattr(overview, "ask_console", elsewhere)
    result = CliRunner().invoke(main, ["status", "--json", "--master", cluster.address])
    assert result.exit_code == 0 and json.loads(result.stdout)["lately"] is None
    assert "what the cluster did is not known: master at 127.0.0.1:1" in result.stderr


def test_top_on_a_terminal_goes_on_until_ctrl_c(cluster: Cluster) -> None:
    main_side, other_side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
    arguments = ["top", "--interval-s", "0.5", "--master", cluster.address]
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=other_side, stdout=other_side, env=environment
    )
    os.close(other_side)
    shown = b""
    try:
        for wanted in (b"no node", b"1 alive"):  # joins after the first screen
            while wanted not in shown:
                assert select.select([main_side], [], [], 30)[0], shown
                shown += os.read(main_side, 1 << 16)
            if b"1 alive" not in shown:
                cluster.start_node("a")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main_side)


def test_a_sparkline() -> None:
    assert sparkline([0, 1, None, 2], 2) == "▁▅ █"
    assert sparkline([0, 0], 0) == "▁▁"
