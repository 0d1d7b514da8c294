"""The master dies again and again, with puts, reads and removes in progress."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.fault import report
from tests.fault.leaks import Footprint, leaks_of
from tests.fault.load import Load
from tests.fault.test_node_points import SEED, config
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(3600)]

_PER_CYCLE = 2
_LONGEST_AWAY_S = 1.5


def test_the_master_dies(cluster: Cluster, tmp_path: Path, cycles: int) -> None:
    chance = random.Random(SEED)
    node = cluster.start_node("a", **config(tmp_path))
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for _ in range(_PER_CYCLE * cycles):
            cluster.master.kill()
            time.sleep(chance.uniform(0, _LONGEST_AWAY_S))
            cluster.restart_master()
            load.wait_progress("with the new master", 30)
        judged = load.stop()
    assert cluster.node_states() == {"a": "alive"}
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    wrong = judged.wrong + judged.late
    report.add("master killed", _PER_CYCLE * cycles, wrong, leaks, judged.outage_s)


def test_master_and_node_die_together(cluster: Cluster, tmp_path: Path, cycles: int) -> None:
    how = config(tmp_path)
    node = cluster.start_node("a", **how)
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for _ in range(cycles):
            cluster.master.kill()
            node.kill()
            cluster.restart_master()
            node = cluster.start_node("a", **how)
            load.wait_progress("with both again", 30)
        judged = load.stop()
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    wrong = judged.wrong + judged.late
    report.add("master and node killed at once", cycles, wrong, leaks, judged.outage_s)
