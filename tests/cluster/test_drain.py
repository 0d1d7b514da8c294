"""What a drain costs is said before it begins and when it ends, and is the truth."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore import Store
from kvstore.cli.operator import main
from kvstore.errors import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster

SIZE = 64 << 10


def run(cluster: Cluster, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["drain", "a", "--master", cluster.address, *arguments])


def fill(cluster: Cluster, count: int) -> Store:
    store = cluster.connect(transport="tcp")
    for number in range(count):
        assert store.put(f"k{number}", proof(f"k{number}", SIZE)) is Status.Ok
    return store


def readable(store: Store, count: int) -> set[str]:
    found = set()
    for number in range(count):
        data = store.get(f"k{number}")
        assert data in (None, proof(f"k{number}", SIZE))
        found |= {f"k{number}"} if data is not None else set()
    return found


def wait_reports(cluster: Cluster) -> None:
    """Wait until the master knows what the nodes hold and have evicted."""

    def told(name: str) -> float:
        try:
            return metric(cluster.master, f"kvstore_cluster_{name}")
        except AssertionError:
            return 0.0  # what never happened is not told

    def same() -> bool:
        own = cluster.nodes.values()
        evicted = sum(metric(node, "kvstore_evictions_total") for node in own)
        used = sum(metric(node, "kvstore_used_bytes") for node in own)
        return (evicted, used) == (told("evictions_total"), told("node_used_bytes"))

    wait_for(same, "the reports of the nodes", 20)


def test_without_space_the_loss_is_said_before_and_after(cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.start_node(name, segment_size="8mb")
    store = fill(cluster, 180)
    before = readable(store, 180)
    wait_reports(cluster)
    looked = json.loads(run(cluster, "--dry-run", "--json").stdout)
    assert cluster.node_states()["a"] == "alive", "a dry run drains nothing"
    expected, alone = looked["expected_loss"], looked["left"]
    assert alone["bytes"] == alone["objects"] * SIZE
    assert expected["bytes"] == alone["bytes"] - looked["room_bytes"] > 0
    told = run(cluster, "--dry-run").stdout
    assert f"a: {alone['objects']} objects (" in told and f"about {expected['objects']} obj" in told
    drained = run(cluster, "--wait-s", "60")
    assert drained.exit_code == 0, drained.output
    assert f"about {expected['objects']} objects (" in drained.stderr.splitlines()[0]
    # All that is gone was evicted by the other node, and is said.
    lost = before - readable(store, 180)
    assert len(lost) >= expected["objects"] > 0
    assert f"a: drained; the other nodes evicted {len(lost)} objects (" in drained.stdout
    again = json.loads(run(cluster, "--json").stdout)
    assert again["drained"] and again["left"] == {"objects": 0, "bytes": 0}


def test_what_never_fits_is_left_and_said(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="16mb")
    store = fill(cluster, 160)
    cluster.start_node("b", segment_size="4mb")
    wait_reports(cluster)
    ended = run(cluster, "--wait-s", "3", "--json")
    assert ended.exit_code == 5, ended.output
    answer = json.loads(ended.stdout)
    expected, left = answer["expected_loss"], answer["left"]
    assert left["objects"] >= expected["objects"] > 0
    assert left["bytes"] == left["objects"] * SIZE >= expected["bytes"]
    said = run(cluster, "--wait-s", "0").stderr
    assert "objects (" in said and "left, lost if it is stopped now" in said
    assert len(readable(store, 160)) == 160, "the node serves what it could not hand on"
    cluster.nodes["a"].terminate()
    wait_for(lambda: cluster.node_states()["a"] == "dead", "the node to have left")
    gone = 160 - len(readable(store, 160))
    assert gone >= expected["objects"]


def test_with_space_nothing_is_lost_and_that_is_said(cluster: Cluster) -> None:
    for name in ("a", "b", "c"):
        cluster.start_node(name, segment_size="8mb")
    store = fill(cluster, 180)
    before = readable(store, 180)
    assert len(before) == 180
    wait_reports(cluster)
    assert "nothing has to be lost" in run(cluster, "--dry-run").stdout
    answer = json.loads(run(cluster, "--wait-s", "60", "--json").stdout)
    assert answer["drained"] is True
    nothing = {"objects": 0, "bytes": 0}
    assert (answer["expected_loss"], answer["evicted_meanwhile"]) == (nothing, nothing)
    assert readable(store, 180) == before
    assert cluster.nodes["a"].terminate() == 0
    assert readable(store, 180) == before
