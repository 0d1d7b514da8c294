"""A node that dies at any step of its work restarts, and no client gets a wrong answer."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fault import report
from tests.fault.leaks import Footprint, leaks_of
from tests.fault.load import Load
from tests.support.cluster import Cluster
from tests.support.processes import Daemon, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(3600)]

# Name: at most so many passages before the one that kills. Common ones come later, so that the
# load has gone on for a while.
POINTS = {
    "reserve": 300,
    "claim_sent": 300,
    "claim_granted": 300,
    "commit": 300,
    "entry_inserted": 300,
    "published": 300,
    "announced": 300,
    "evict": 100,
    "withdraw_noted": 200,
    "withdraw_invalidated": 200,
    "demote": 100,
    "demoted": 100,
    "promote": 30,
    "promoted": 30,
    "snapshot": 50,
    "remove": 100,
    "removed": 100,
    "removal_applied": 50,
    "removal_durable": 20,
}
ATTACH_POINTS = (
    "attach_read",
    "attach_inserted",
    "attach_retired",
    "attach_settled",
    "attach_installed",
    "attach_done",
)
SEED = 20240601


def config(folder: Path) -> dict[str, Any]:
    """Small enough to evict, demote, promote and reclaim within a second of load."""
    return {
        "segment_size": 4 << 20,
        "nvme_dir": str(folder / "nvme"),
        "nvme_size": "32mb",
        "promote_reads": 1,
        "snapshot_interval_ms": 300,
        "log_level": "debug",
    }


def wait_death(node: Daemon, point: str, timeout_s: float = 30.0) -> None:
    """Until the node has passed the point that it was to die at."""
    wait_for(lambda: node.process.poll() is not None, f"the node to pass {point}", timeout_s)
    assert node.process.returncode == -signal.SIGKILL, node.log.read_text()[-4000:]


def finish(cluster: Cluster, start: Footprint, load: Load, case: str, cycles: int) -> None:
    """Stop the load, judge what it saw, and look for what was left behind."""
    judged = load.stop()
    assert judged.ops > 0
    leaks = leaks_of(cluster.nodes["a"], start, cluster.segment_dirs["a"])
    report.add(case, cycles, judged.wrong + judged.late, leaks, judged.outage_s)


@pytest.mark.parametrize("point", POINTS)
def test_a_node_dies_at(cluster: Cluster, tmp_path: Path, point: str, cycles: int) -> None:
    how = config(tmp_path)
    chance = random.Random(f"{SEED} {point}")
    node = cluster.start_node("a", **how)
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for _ in range(cycles):
            node.kill()
            passages = chance.randint(1, POINTS[point])
            armed = {"KVSTORE_FAULT_POINT": f"{point}:{passages}"}
            node = cluster.start_node("a", wait=False, environment=armed, **how)
            wait_death(node, f"{point}:{passages}")
            node = cluster.start_node("a", **how)
            load.wait_progress(f"after {point}:{passages}")
        finish(cluster, start, load, f"node killed at {point}", cycles)


@pytest.mark.parametrize("point", ATTACH_POINTS)
def test_a_node_dies_while_it_takes_over(
    cluster: Cluster, tmp_path: Path, point: str, cycles: int
) -> None:
    how = config(tmp_path)
    node = cluster.start_node("a", **how)
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for _ in range(cycles):
            node.kill()
            node = cluster.start_node("a", False, environment={"KVSTORE_FAULT_POINT": point}, **how)
            wait_death(node, point)
            kept = time.monotonic()
            node = cluster.start_node("a", **how)
            assert "segment_kept" in node.log.read_text()
            load.wait_progress(f"after {point} at {kept}")
        finish(cluster, start, load, f"node killed at {point}", cycles)


@pytest.mark.parametrize(
    "point", ["claim_granted", "published", "announced", "remove", "removal_applied"]
)
def test_one_of_two_nodes_dies_at(
    cluster: Cluster, tmp_path: Path, point: str, cycles: int
) -> None:
    """The other one takes the puts, and holds replicas and later versions of the same keys."""
    how = config(tmp_path)
    chance = random.Random(f"{SEED} two {point}")
    node = cluster.start_node("a", **how)
    other = cluster.start_node("b", segment_size=4 << 20, log_level="debug")
    starts = {"a": Footprint.of(node.pid), "b": Footprint.of(other.pid)}
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for _ in range(cycles):
            node.kill()
            passages = chance.randint(1, 50)
            armed = {"KVSTORE_FAULT_POINT": f"{point}:{passages}"}
            node = cluster.start_node("a", wait=False, environment=armed, **how)
            wait_death(node, f"{point}:{passages}")
            load.wait_progress(f"on the other node after {point}:{passages}")
            node = cluster.start_node("a", **how)
            load.wait_progress(f"after {point}:{passages}")
        judged = load.stop()
    leaks = [
        f"{name}: {leak}"
        for name, start in starts.items()
        for leak in leaks_of(cluster.nodes[name], start, cluster.segment_dirs[name])
    ]
    wrong = judged.wrong + judged.late
    report.add(f"one of two nodes killed at {point}", cycles, wrong, leaks, judged.outage_s)
