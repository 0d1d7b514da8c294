"""The master's ring: increases of counts that restart with their process, in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.activity import Activity, Labels
from kvstore.master.history import (
    COUNTERS,
    INTERVAL_MS,
    KEPT_MS,
    History,
    evictions,
    hit_ratio,
    misses,
)
from kvstore.master.model import Cluster, Endpoints, Node

START_UNIX_MS = 1_700_000_000_000


def node(node_id: str = "a", hits: int = 0, **fields: Any) -> Node:
    counters: dict[tuple[str, Labels], int] = {("hits", ("client", "shm")): hits} if hits else {}
    values: dict[str, Any] = {
        "node_epoch": 1,
        "incarnation": 7,
        "last_seen_ms": 0,
        "session_id": 5,
        "joined_ms": 1,
        "capacity_bytes": 100,
        "used_bytes": 40,
        "published": Endpoints(tcp="tcp://h:1"),
        "activity": Activity(counters),
    }
    return Node(node_id, **{**values, **fields})


def cluster(*nodes: Node) -> Cluster:
    return Cluster(0, nodes=MappingProxyType({one.node_id: one for one in nodes}))


def stats(**lookups: int) -> dict[str, Any]:
    return {"lookups": {"hit": 0, **lookups}, "objects": 3}


class Ring:
    """A history with a clock that moves by a second with every look."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.history = History(START_UNIX_MS, 0)

    def see(self, *nodes: Node, after_ms: int = 1000, **lookups: int) -> dict[str, int]:
        self.now_ms += after_ms
        unix_ms = START_UNIX_MS + self.now_ms
        return self.history.observe(cluster(*nodes), stats(**lookups), unix_ms, self.now_ms)

    def hits(self) -> int:
        return self.history.window(KEPT_MS).counts["hits_shm"]


def test_a_new_node_counts_from_its_first_report_on() -> None:
    ring = Ring()
    assert ring.see(node(hits=5)) == {"hits_shm": 5}
    assert ring.see(node(hits=8)) == {"hits_shm": 3}
    assert ring.see(node(hits=8)) == {}
    assert ring.hits() == 8


def test_a_restarted_node_loses_nothing_and_counts_nothing_twice() -> None:
    ring = Ring()
    ring.see(node(hits=100))
    ring.see(node(incarnation=8))  # registered, without a report
    assert ring.hits() == 100
    ring.see(node(hits=30, incarnation=8))
    ring.see(node(hits=130, incarnation=8))
    assert ring.hits() == 230


def test_a_new_session_of_the_same_process_counts_nothing_twice() -> None:
    ring = Ring()
    ring.see(node(hits=100))
    ring.see(node(session_id=0, activity=Activity()))
    assert ring.see(node(session_id=6)) == {}  # its report comes with the next heartbeat
    assert ring.see(node(hits=101, session_id=6)) == {"hits_shm": 1}
    assert ring.hits() == 101


def test_what_was_before_this_master_does_not_count() -> None:
    ring = Ring()
    old: dict[str, Any] = {"joined_ms": 0}
    ring.see(node(session_id=0, **old))
    ring.see(node(**old))
    assert ring.see(node(hits=1_000_000, **old)) == {}
    assert ring.see(node(hits=1_000_001, **old)) == {"hits_shm": 1}


def test_a_node_that_was_forgotten_takes_nothing_away() -> None:
    ring = Ring()
    ring.see(node("a", hits=3), node("b", hits=4))
    ring.see(node("b", hits=4))
    assert ring.hits() == 7
    assert ring.history.rates("a")["hits_shm"] == 0


def test_misses_are_the_masters_own() -> None:
    ring = Ring()
    ring.see(absent=50)  # before
    ring.see(absent=52, evicted=1)
    counts = ring.history.window(KEPT_MS).counts
    assert {name: count for name, count in misses(counts).items() if count} == {
        "absent": 2,
        "evicted": 1,
    }
    assert hit_ratio(7, misses(counts).values()) == 0.7
    assert hit_ratio(0, ()) is None


def test_evictions_of_an_older_node_have_no_cause() -> None:
    told = {"evicted_memory": 3, "evicted_index": 2, "evicted_nvme": 1, "evictions": 9}
    assert evictions(told) == {"memory": 3, "index": 2, "nvme": 1, "expired": 0, "unknown": 4}


def test_values_at_the_end_are_those_of_living_nodes() -> None:
    ring = Ring()
    ring.see(node("a", used_bytes=40), node("b", used_bytes=2, session_id=0))
    series = ring.history.series(KEPT_MS, 10)
    assert series["used_bytes"] == [40] and series["nodes"] == [1] and series["objects"] == [3]


def test_the_ring_keeps_six_hours_and_no_more() -> None:
    ring = Ring()
    looks = KEPT_MS // INTERVAL_MS + 50
    for hits in range(1, looks + 1):
        ring.see(node(hits=hits), after_ms=INTERVAL_MS)
    window = ring.history.window(10 * KEPT_MS)
    assert window.length_ms == KEPT_MS
    assert window.counts["hits_shm"] == KEPT_MS // INTERVAL_MS
    assert window.from_unix_ms == START_UNIX_MS + ring.now_ms - KEPT_MS
    assert ring.history.window(60_000).counts["hits_shm"] == 6


def test_rates_are_of_the_last_seconds() -> None:
    ring = Ring()
    for hits in range(0, 400, 10):
        ring.see(node(hits=hits))
    assert ring.history.rates("a")["hits_shm"] == pytest.approx(10)
    ring.see(node(hits=0, incarnation=8))
    ring.see(node(hits=6, incarnation=8), after_ms=2000)
    assert ring.history.rates("a")["hits_shm"] == pytest.approx(3)
    assert ring.history.rates("nobody")["hits_shm"] == 0


@given(
    st.lists(st.tuples(st.integers(1, 30_000), st.integers(0, 50)), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 2_000_000),
)
def test_points_add_up_to_the_window(
    looks: list[tuple[int, int]], points: int, length_ms: int
) -> None:
    ring, hits = Ring(), 0
    for after_ms, more in looks:
        hits += more
        ring.see(node(hits=hits), after_ms=after_ms)
    window = ring.history.window(length_ms)
    series = ring.history.series(length_ms, points)
    assert {len(column) for column in series.values()} <= {*range(1, points + 2)}
    for name in COUNTERS:
        assert sum(series[name]) == window.counts[name]
    assert sum(series["length_ms"]) == window.length_ms
    assert series["at_unix_ms"] == sorted(series["at_unix_ms"])
    assert ring.hits() == hits
    assert window.length_ms >= min(length_ms, ring.now_ms)


def test_a_report_that_was_seen_is_passed_over() -> None:
    """By identity: comparing the counts of thousands of nodes each second would cost more."""
    ring, one = Ring(), node(hits=5)
    ring.see(one)
    assert ring.see(replace(one, used_bytes=99)) == {}
    assert ring.history.series(KEPT_MS, 1)["used_bytes"] == [99]
