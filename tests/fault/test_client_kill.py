"""Clients that die at any step of a put or get, or sleep through a restart, affect no other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kvstore
from kvstore import Status
from tests.fault import report
from tests.fault.leaks import Footprint, leaks_of
from tests.fault.load import ROOT, Load, other_process
from tests.fault.test_node_points import SEED, config
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import Daemon, python_process, read_line, wait_for
from tests.support.wire import HALF_A_PUT

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(3600)]

# Of a dead client's blocks; the metrics are asked for over HTTP on a busy machine.
_COME_BACK_S = 2.0 + 1.0


class Point(NamedTuple):
    role: str
    transport: str
    passages: int


POINTS = {
    "client_reserved": Point("writer", "auto", 40),
    "client_copying": Point("writer", "auto", 60),
    "client_commit": Point("writer", "auto", 40),
    "client_committed": Point("writer", "auto", 40),
    "client_get_copied": Point("reader", "auto", 40),
    "client_get_sent": Point("reader", "tcp", 40),
    "client_view_held": Point("reader", "auto", 5),
    "client_leased": Point("reader", "auto", 5),
}


def wait_back(node: Daemon, what: str) -> None:
    """Until only this process maps the node's memory and nothing waits for another one."""
    wait_for(
        lambda: (
            metric(node, "kvstore_live_slots") == 1
            and metric(node, "kvstore_quarantined_bytes") == 0
        ),
        f"the blocks of a client that died {what} to come back",
        _COME_BACK_S,
    )


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("name", POINTS)
def test_a_client_dies_at(cluster: Cluster, tmp_path: Path, name: str, cycles: int) -> None:
    chance = random.Random(f"{SEED} {name}")
    point = POINTS[name]
    node = cluster.start_node("a", **config(tmp_path))
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for cycle in range(cycles):
            fault = f"{name}:{chance.randint(1, point.passages)}"
            first = 100 + cycle
            client = other_process(
                cluster.address, load.folder, first, [point.role], point.transport, fault
            )
            try:
                assert client.wait(30) == -signal.SIGKILL, client.communicate()
            finally:
                end(client)
            wait_back(node, f"at {fault}")
            load.wait_progress(f"after {fault}")
        judged = load.stop()
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    wrong = judged.wrong + judged.late
    report.add(f"client killed at {name.removeprefix('client_')}", cycles, wrong, leaks)


def wait_written(history: Path) -> None:
    """Until a client has worked for a while."""
    wait_for(lambda: history.exists() and history.stat().st_size > 5000, "it to work", 30)


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_clients_die_at_any_moment(
    cluster: Cluster, tmp_path: Path, transport: str, cycles: int
) -> None:
    chance = random.Random(f"{SEED} {transport}")
    node = cluster.start_node("a", **config(tmp_path))
    start = Footprint.of(node.pid)
    rounds = 2 * cycles
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for cycle in range(rounds):
            roles = ["writer", "writer", "reader"]
            client = other_process(cluster.address, load.folder, 100 + 10 * cycle, roles, transport)
            try:
                wait_written(load.folder / f"worker-{100 + 10 * cycle}.history")
                time.sleep(chance.uniform(0, 0.05))
            finally:
                end(client)
            wait_back(node, "at any moment")
        judged = load.stop()
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    wrong = judged.wrong + judged.late
    report.add(f"client killed at any moment, {transport}", rounds, wrong, leaks)


HOLD_VIEW_AND_LEASE = """
import sys
sys.path.insert(0, sys.argv[1])
import kvstore
from tests.support.payloads import proof
store = kvstore.connect(sys.argv[2])
key = "viewed"
with store.view(key) as view, store.lookup(["leased"], lease_ms=60_000) as leased:
    print(leased.length)
    sys.stdin.readline()
    print(bytes(view) == proof(key, len(view)))
    sys.stdin.readline()
"""


def test_clients_sleep_through_restarts(cluster: Cluster, cycles: int) -> None:
    """The view alone is in cluster/test_warm_restart.py; here is what else a client may hold."""
    how: dict[str, Any] = {"segment_size": 8 << 20, "log_level": "debug"}
    node = cluster.start_node("a", **how)
    start = Footprint.of(node.pid)
    size = 1 << 20
    wrong: list[str] = []
    rounds = max(1, cycles // 5)
    for round_ in range(rounds):
        unix = next(n["endpoints"]["unix"] for n in cluster.cli("nodes"))
        with kvstore.connect(cluster.address) as store:
            for key in ("viewed", "leased"):
                assert store.put(key, proof(key, 100_000)).ok
        with (
            python_process(HALF_A_PUT, str(ROOT), unix, str(size)) as writer,
            python_process(HOLD_VIEW_AND_LEASE, str(ROOT), cluster.address) as holder,
        ):
            read_line(writer)
            assert read_line(holder) == "1"
            for process in (writer, holder):
                os.kill(process.pid, signal.SIGSTOP)
            for _ in range(2):
                node.kill()
                node = cluster.start_node("a", **how)
            with kvstore.connect(cluster.address) as store:
                assert store.remove("viewed") in (Status.Ok, Status.NotFound)
                keys = [f"pressure/{round_}/{i}" for i in range(240)]
                for key in keys:  # three times what the memory holds
                    assert store.put(key, proof(key, 100_000)) is Status.Ok
                for process in (writer, holder):
                    os.kill(process.pid, signal.SIGCONT)
                    assert process.stdin is not None
                    process.stdin.write("go\n")
                    process.stdin.flush()
                assert read_line(writer) in ("connection lost", str(int(Status.Expired)))
                if read_line(holder) != "True":
                    wrong.append("the view's bytes have changed")
                found = 0
                for key in keys:
                    value = store.get(key)
                    found += value is not None
                    if value not in (None, proof(key, 100_000)):
                        wrong.append(f"{key}: the sleeper wrote into somebody's block")
                assert found > 20
                assert store.get("half") is None
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    report.add("clients asleep through two restarts: write, view, lease", rounds, wrong, leaks)
