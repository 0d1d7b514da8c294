"""A node with an NVMe tier: neither evictions nor the loss of its memory lose objects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import MissReason, Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster
SIZE = 64 << 10
SEGMENT = 4 << 20
COUNT = 200
"""Of objects: three times what the memory holds."""


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "segment_size": SEGMENT,
        "nvme_dir": str(tmp_path / "nvme"),
        "nvme_size": "64mb",
        "log_level": "debug",
    }


def fill(store: kvstore.Store, node: Daemon, first: int = 0, count: int = COUNT) -> list[str]:
    """Put objects, never faster than the NVMe tier writes them."""
    keys = [f"k/{i}" for i in range(first, first + count)]
    for key in keys:
        assert store.put(key, proof(key, SIZE)) is Status.Ok
        wait_for(
            lambda: metric(node, "kvstore_unwritten_bytes") <= SEGMENT / 2, "NVMe to keep up", 20
        )
    return keys


def lose_memory(cluster: Cluster) -> None:
    """As a power loss does, once the process is gone."""
    shutil.rmtree(cluster.segment_dirs["a"])


def test_what_memory_evicts_is_read_from_nvme(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config)
    store = cluster.connect()
    keys = fill(store, node)
    assert metric(node, "kvstore_evictions_total") > 0
    assert metric(node, "kvstore_evicted_unwritten_total") == 0
    assert store.prefix_length(keys) == COUNT
    assert store.batch_get(keys) == [proof(key, SIZE) for key in keys]
    assert cluster.connect(transport="tcp").batch_get(keys) == [proof(key, SIZE) for key in keys]
    assert metric(node, "kvstore_nvme_hits_total") > 0
    for tier in ("dram", "nvme"):
        assert metric(node, "kvstore_tier_hits_total", tier=tier) > 0
    held = store.view(keys[0])
    with held as view:
        assert view is not None and bytes(view) == proof(keys[0], SIZE)
    with store.lookup(keys[:20], lease_ms=5000) as leased:
        assert leased.length == 20
    assert store.put(keys[0], b"other") is Status.AlreadyExists


@pytest.mark.parametrize("ending", ["kill", "terminate"])
def test_both_tiers_survive_a_restart(
    cluster: Cluster, config: dict[str, Any], ending: str
) -> None:
    node = cluster.start_node("a", **config)
    store = cluster.connect()
    keys = fill(store, node)
    assert store.remove(keys[0]) is Status.Ok
    getattr(node, ending)()
    node = cluster.start_node("a", **config)
    fresh = cluster.connect()
    assert fresh.get(keys[0]) is None
    assert fresh.batch_get(keys[1:]) == [proof(key, SIZE) for key in keys[1:]]


def test_a_stop_saves_everything_for_a_power_loss(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config)
    store = cluster.connect()
    keys = fill(store, node)
    assert node.terminate() == 0
    assert "snapshot_written" in node.log.read_text()
    lose_memory(cluster)
    node = cluster.start_node("a", **config)
    fresh = cluster.connect()
    assert fresh.batch_get(keys) == [proof(key, SIZE) for key in keys]
    assert metric(node, "kvstore_nvme_promoted_objects_total") > 0


def test_a_power_loss_costs_what_no_snapshot_has(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config)
    store = cluster.connect()
    saved = fill(store, node, 0, 40)
    written = cluster.cli("snapshot", "a")
    assert written["done"] and written["left"] == 0 and not written["error"]
    lost = [f"late/{i}" for i in range(5)]
    for key in lost:
        assert store.put(key, proof(key, SIZE)) is Status.Ok
    assert store.remove(saved[7]) is Status.Ok
    node.kill()
    lose_memory(cluster)
    cluster.start_node("a", **config)
    fresh = cluster.connect()
    expected = [None if key == saved[7] else proof(key, SIZE) for key in saved]
    assert fresh.batch_get(saved) == expected
    assert fresh.batch_get(lost) == [None] * len(lost)
    # What is lost may be put again, and what was removed too.
    assert fresh.put(lost[0], proof(lost[0], SIZE)) is Status.Ok
    assert fresh.put(saved[7], b"again") is Status.Ok


def test_several_devices_are_one_tier(
    cluster: Cluster, config: dict[str, Any], tmp_path: Path
) -> None:
    both = [str(tmp_path / "first"), str(tmp_path / "second")]
    node = cluster.start_node("a", **{**config, "nvme_dir": both})
    store = cluster.connect()
    keys = fill(store, node)
    assert store.remove(keys[0]) is Status.Ok
    assert node.terminate() == 0
    lose_memory(cluster)
    node = cluster.start_node("a", **{**config, "nvme_dir": both[::-1]})
    expected = [None, *(proof(key, SIZE) for key in keys[1:])]
    assert cluster.connect().batch_get(keys) == expected
    node.terminate()
    lose_memory(cluster)
    cluster.start_node("a", **{**config, "nvme_dir": both[0]})
    found = cluster.connect().batch_get(keys)
    assert COUNT / 4 < sum(value is not None for value in found) < COUNT * 3 / 4
    assert all(value in (None, wanted) for value, wanted in zip(found, expected, strict=True))


def test_snapshots_are_written_by_themselves(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config, snapshot_interval_ms=200)
    store = cluster.connect()
    keys = fill(store, node, 0, 20)
    written = "kvstore_nvme_snapshot_objects_total"  # counted at the end of each snapshot
    wait_for(lambda: metric(node, written) == len(keys), "a snapshot", 20)
    assert metric(node, "kvstore_unwritten_bytes") == 0


def test_a_snapshot_without_nvme_says_what_is_missing(cluster: Cluster) -> None:
    cluster.start_node("a")
    from click.testing import CliRunner

    from kvstore.cli.operator import main

    result = CliRunner().invoke(main, ["snapshot", "a", "--master", cluster.address])
    assert result.exit_code == 5
    assert "nvme_dir" in result.stderr
    result = CliRunner().invoke(main, ["snapshot", "nobody", "--master", cluster.address])
    assert result.exit_code == 1
    assert "nobody" in result.stderr


def test_objects_on_nvme_alone_are_drained(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config)
    store = cluster.connect()
    keys = fill(store, node, 0, 100)
    cluster.start_node("b")
    assert cluster.cli("drain", "a")["drained"] is True
    assert node.terminate() == 0
    cluster.wait_state("a", "dead")
    assert cluster.connect().batch_get(keys) == [proof(key, SIZE) for key in keys]


def test_the_folder_of_another_node_is_refused(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config)
    fill(cluster.connect(), node, 0, 5)
    other = cluster.start_node("b", wait=False, **config)
    assert other.process.wait(20) == 3
    assert "nvme" in other.log.read_text()
    assert node.terminate() == 0
    other = cluster.start_node("b", wait=False, **config)
    assert other.process.wait(20) != 0
    assert "discard_foreign_nvme" in other.log.read_text()
    cluster.start_node("b", **config, discard_foreign_nvme=True)


def test_a_chain_is_brought_up_ahead_of_its_reader(
    cluster: Cluster, config: dict[str, Any]
) -> None:
    node = cluster.start_node("a", **config)
    store = cluster.connect()
    chain = [f"chain/{i}" for i in range(20)]
    for i, key in enumerate(chain):
        parent = chain[i - 1] if i else None
        assert store.put(key, proof(key, SIZE), parent=parent) is Status.Ok
    fill(store, node)
    assert "dram" not in store.explain(chain[5])[0]["tiers"]
    assert store.get(chain[0]) == proof(chain[0], SIZE)
    wait_for(
        lambda: all("dram" in store.explain(key)[0]["tiers"] for key in chain[1:16]),
        "the pages that follow to be in memory",
        20,
    )
    before = metric(node, "kvstore_nvme_hits_total")
    assert store.batch_get(chain[1:16]) == [proof(key, SIZE) for key in chain[1:16]]
    assert metric(node, "kvstore_nvme_hits_total") == before
    wait_for(
        lambda: metric(node, "kvstore_nvme_prefetch_used_total") >= 15, "the uses to be counted", 20
    )


def test_a_prefetch_brings_up_what_is_asked_for(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config, prefetch_depth=0)
    store = cluster.connect()
    keys = fill(store, node)
    wanted = keys[10:20]
    assert not any("dram" in store.explain(key)[0]["tiers"] for key in wanted)
    assert store.prefetch([*wanted, "never put"]) == len(wanted)
    wait_for(
        lambda: all("dram" in store.explain(key)[0]["tiers"] for key in wanted),
        "them to be in memory",
        20,
    )
    assert metric(node, "kvstore_nvme_prefetched_objects_total") == len(wanted)
    fill(store, node, 1000)
    assert metric(node, "kvstore_nvme_prefetch_wasted_total") == len(wanted)


def test_explain_tells_where_an_object_is_and_was(cluster: Cluster, config: dict[str, Any]) -> None:
    node = cluster.start_node("a", **config)
    cluster.start_node("b")
    store = cluster.connect(transport="tcp")
    keys = fill(store, node, 0, 30)
    (known,) = [one for one in cluster.cli("explain", keys[0]) if one["tiers"]]
    assert known["size"] == SIZE
    assert known["put_ms"] is not None
    assert store.remove(keys[0]) is Status.Ok
    from click.testing import CliRunner

    from kvstore.cli.operator import main

    result = CliRunner().invoke(main, ["explain", keys[0], "--master", cluster.address])
    assert result.exit_code == 1
    assert "removed" in result.stdout


def test_batches_and_lookups_say_why_a_key_is_a_miss(
    cluster: Cluster, config: dict[str, Any]
) -> None:
    node = cluster.start_node("a", **config)
    store = cluster.connect()
    keys = fill(store, node, 0, 20)
    assert store.remove(keys[3]) is Status.Ok
    assert store.put("short-lived", b"x", ttl_ms=1) is Status.Ok
    wanted = [keys[0], keys[3], "never put"]
    reasons: list[MissReason] = []
    assert store.batch_get(wanted, reasons=reasons)[0] == proof(keys[0], SIZE)
    assert reasons == [MissReason.None_, MissReason.Removed, MissReason.Absent]
    buffers = [bytearray(SIZE) for _ in wanted]
    assert store.batch_get_into(wanted, buffers, reasons=reasons)[0] == SIZE
    assert reasons == [MissReason.None_, MissReason.Removed, MissReason.Absent]
    assert store.lookup(keys).reason is MissReason.Removed
    assert store.lookup(keys[:3]).reason is MissReason.None_
    assert store.lookup([*keys[:3], "never put"]).reason is MissReason.Absent
    node.kill()
    wait_for(lambda: store.lookup(keys).reason is MissReason.NodeDown, "the node to be missed", 20)
