"""The hit ratios of the rules are those that engines have: a replay knows its own."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvstore import store_metrics
from kvstore.replay.runner import Replay
from kvstore.replay.trace import generate
from tests.support import exposition
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster
BLOCK_BYTES = 16 << 10


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_the_ratio_is_that_of_the_replay(cluster: Cluster, transport: str) -> None:
    node = cluster.start_node("a", segment_size="16mb", labels={})
    store = cluster.connect(transport=transport)
    registry = CollectorRegistry()
    store_metrics.register(store, registry)
    requests = generate(seed=1, conversations=60)
    replay = Replay(store, BLOCK_BYTES, max(len(one.hash_ids) for one in requests))
    tally = replay.run(requests, lambda: None)
    assert 0.1 < tally.hit_rate < 0.95, "both hits and misses"
    wait_for(
        lambda: metric(node, "kvstore_tier_hits_total") >= tally.hit_blocks,
        "the node to have added up its clients",
    )
    hits = metric(node, "kvstore_tier_hits_total")
    looked_up = metric(cluster.master, "kvstore_cluster_lookups_total")
    missed = looked_up - metric(cluster.master, "kvstore_cluster_lookups_total", result="hit")
    assert hits / (hits + missed) == pytest.approx(tally.hit_rate, abs=0.01)
    own = exposition.parse(generate_latest(registry).decode())
    read, failed = (
        sum(own[f"kvstore_store_{name}_total"].samples.values()) for name in ("hits", "misses")
    )
    names = {"tenant": "default", "namespace": ""}
    absent = exposition.value(own, "kvstore_store_sought_keys_total", result="absent", **names)
    assert read / (read + failed + absent) == pytest.approx(tally.hit_rate, abs=0.01)
