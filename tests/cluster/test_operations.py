"""Drain, routing by Locate and Watch, the operator's tool, the metrics, an embedded store's end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import python_process, read_line, wait_for

pytestmark = pytest.mark.cluster


def test_drain_under_load_loses_no_object(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="128mb")
    writer = cluster.connect(transport="tcp")
    first = [f"first/{i}" for i in range(400)]
    assert writer.batch_put(first, [proof(k, 20_000) for k in first]) == [Status.Ok] * 400
    cluster.start_node("b", segment_size="128mb")
    cluster.start_node("c", segment_size="128mb")
    stop = threading.Event()
    written: list[str] = []
    failures: list[str] = []

    def load() -> None:
        while not stop.is_set():
            key = f"load/{len(written)}"
            status = writer.put(key, proof(key, 20_000))
            if status is Status.Ok:
                written.append(key)
            else:
                failures.append(f"{key}: {status.name}")
            probe = first[len(written) % 400]
            if writer.get(probe) != proof(probe, 20_000):
                failures.append(f"{probe} was not readable during the drain")
            stop.wait(0.005)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        answer = cluster.cli("drain", "a", "--wait-s", "60")
    finally:
        stop.set()
        thread.join()
    assert answer["drained"] is True
    assert not failures, failures[:5]
    assert cluster.nodes["a"].terminate() == 0
    reader = cluster.connect(transport="tcp")
    for key in first + written:
        assert reader.get(key) == proof(key, 20_000), key


ROUTER = """
import sys
import grpc
from kvstore._proto import master_pb2, master_pb2_grpc, types_pb2

channel = grpc.insecure_channel(sys.argv[1])
master = master_pb2_grpc.MasterStub(channel)
namespace = types_pb2.Namespace(tenant="default", name="")
events = master.Watch(master_pb2.WatchRequest(namespace=namespace))
first = next(events)
print("watching", flush=True)
known = {}
def learn(reply):
    for event in reply.events:
        known.setdefault(event.key, set())
        if event.kind == master_pb2.WatchEvent.KIND_PUBLISH:
            known[event.key].add(event.node_id)
        else:
            known[event.key].discard(event.node_id)
learn(first)
while "end" not in known:
    learn(next(events))
keys = [f"prompt/{i}" for i in range(8)]
by_watch = sorted({node for key in keys for node in known.get(key, ())})
reply = master.Locate(master_pb2.LocateRequest(namespace=namespace, keys=keys))
best = max(reply.prefixes, key=lambda p: p.length)
print(best.node_id, best.length, reply.cluster_length, ",".join(by_watch), flush=True)
"""


def test_a_router_routes_by_locate_and_watch(cluster: Cluster) -> None:
    cluster.start_node("a")
    endpoint = cluster.cli("status")["grpc_endpoint"]
    with python_process(ROUTER, endpoint) as router:
        assert read_line(router) == "watching"
        store = cluster.connect()
        for i in range(5):
            store.put(f"prompt/{i}", b"page")
        store.put("prompt/7", b"beyond the gap")
        store.put("end", b"")
        assert read_line(router) == "a 5 5 a"


def test_the_operators_tool(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_node("a")
    source = tmp_path / "data"
    source.write_bytes(proof("cli", 1000))
    assert cluster.cli("put", "cli", str(source))["status"] == "Ok"
    assert cluster.cli("exists", "cli") == {"cli": True}
    assert cluster.cli("ls", "c") == ["cli"]
    found = cluster.cli("inspect", "cli")
    assert found["size"] == 1000 and found["replicas"][0]["node_id"] == "a"
    nodes = cluster.cli("nodes")
    assert {"node_id", "state", "capacity_bytes", "used_bytes", "endpoints"} <= set(nodes[0])
    status = cluster.cli("status")
    assert status["nodes_alive"] == 1 and status["objects"] == 1
    assert cluster.cli("rm", "cli")["removed"] == 1
    assert cluster.cli("ls") == []
    rows = cluster.cli("bench", "--size", "4kb", "--rounds", "3", "--batch", "4")
    assert rows[0]["get_gbps"] > 0


def test_replay_on_a_cluster(cluster: Cluster) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    report = cluster.cli("replay", "--block-bytes", "4kb", "--limit", "300")
    assert report["wrong_bytes"] == 0
    assert report["hit_rate"] > 0.3
    wanted = {"blocks", "get_gbps", "put_gbps", "lookup_p50_us", "misses", "evictions"}
    assert wanted <= set(report)
    for reason in ("checksum", "node_down", "io_error"):
        assert report["misses"].get(reason, 0) == 0


def test_a_replay_counts_its_own_evictions_only(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="32mb")
    first = cluster.cli("replay", "--limit", "200")["evictions"]
    second = cluster.cli("replay", "--limit", "200", "--seed", "2")["evictions"]
    assert first > 0 and second > 0
    assert first + second == cluster.connect().stats()["evictions"]


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_metrics_show_what_happened(cluster: Cluster) -> None:
    node = cluster.start_node("a", segment_size="32mb")
    store = cluster.connect()
    for i in range(64):
        store.put(f"m/{i}", bytes(1 << 20))
        store.get(f"m/{i}")
    store.get("nobody")

    def shown(port: int, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in text_string_to_metric_families(_metrics(port))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    master_port, node_port = (int(p.ports["http_port"]) for p in (cluster.master, node))
    for prefix, port in (("kvstore_cluster", master_port), ("kvstore", node_port)):
        for name, least, labels in (
            ("hits_total", 64, {"seen_by": "client", "path": "shm"}),
            ("misses_total", 1, {"seen_by": "client", "reason": "absent"}),
            ("bytes_total", 64 << 20, {"operation": "put", "path": "shm"}),
            ("puts_total", 64, {"result": "ok"}),
            ("evictions_total", 1, {}),
            ("latency_seconds_count", 64, {"operation": "put"}),
        ):
            wait_for(
                lambda: shown(port, f"{prefix}_{name}", **labels) >= least,  # noqa: B023
                f"{prefix}_{name} to reach {least}",
                5,
                0.1,
            )
    a = {"node": "a"}
    assert shown(master_port, "kvstore_cluster_node_capacity_bytes", **a) == 32 << 20
    assert 0 < shown(master_port, "kvstore_cluster_node_used_bytes", **a) <= 32 << 20
    assert shown(master_port, "kvstore_cluster_hits_total", **a) >= 64


def _left_over() -> set[str]:
    shared = {path.name for path in Path("/dev/shm").iterdir()}
    # A simulation that runs beside the tests comes and goes.
    return {name for name in shared if not name.startswith("kvstore-sim-")} | {
        path.name for path in Path("/tmp").iterdir() if path.name.startswith("kvstore")
    }


@pytest.mark.alone
@pytest.mark.parametrize("end", ["close", "exit", "kill"])
def test_an_embedded_store_leaves_nothing_behind(end: str) -> None:
    before = _left_over()
    code = (
        "import sys, os, kvstore\n"
        "store = kvstore.open(segment_size='32mb')\n"
        "store.put('k', bytes(1 << 20))\n"
        "assert store.get('k') == bytes(1 << 20)\n"
        "print('ready')\n"
        "sys.stdin.readline()\n"
        "store.close() if sys.argv[1] == 'close' else None\n"
    )
    with python_process(code, end) as process:
        assert read_line(process) == "ready"
        if end == "kill":
            os.kill(process.pid, signal.SIGKILL)
        else:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.wait(20) == (-signal.SIGKILL if end == "kill" else 0)
    assert _left_over() <= before


@pytest.mark.parametrize("program", ["operator", "master", "node"])
def test_every_command_has_help_with_an_example(program: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", f"kvstore.cli.{program}", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "Example" in answer.stdout


def test_a_typo_in_config_json_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"segment_sise": "1gb"}))
    answer = subprocess.run(
        [sys.executable, "-m", "kvstore.cli.node", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert answer.returncode == 2
    assert "segment_sise" in answer.stderr and "segment_size" in answer.stderr
