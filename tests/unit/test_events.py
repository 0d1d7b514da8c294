"""Recent events: what is found between two states of the cluster, and what goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvstore.master.events import KEPT, ONGOING_MS, Events, Happened, between
from kvstore.master.history import KEPT_MS, REASONS
from kvstore.master.model import Cluster, Endpoints, Health, Node, Nvme
from kvstore.master.savings import LOST, Rates, in_tokens, savings
from tests.unit.test_history import cluster, node

OK = node(endpoints=Endpoints(tcp="tcp://h:1"), health=Health("0.1.0"))


def kinds(before: Cluster, after: Cluster) -> list[str]:
    return [one.kind for one in between(before, after)]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (OK, OK, []),
        (OK, replace(OK, used_bytes=7), []),
        (OK, replace(OK, session_id=0), ["died"]),
        (OK, replace(OK, session_id=0, left=True), ["left"]),
        (replace(OK, session_id=0), replace(OK, session_id=9), ["returned"]),
        (OK, replace(OK, incarnation=8), ["restarted"]),
        (replace(OK, session_id=0), replace(OK, incarnation=8, session_id=9), ["restarted"]),
        (OK, replace(OK, draining=True), ["drain"]),
        (replace(OK, draining=True), OK, ["undrain"]),
        (OK, replace(OK, problem="nobody answers"), ["unreachable"]),
        (replace(OK, problem="nobody answers"), OK, []),
        (OK, replace(OK, health=Health("0.1.0", config_refused="`x`")), ["config_refused"]),
        (replace(OK, health=Health("0.1.0", config_refused="`x`")), OK, ["config_accepted"]),
        (OK, replace(OK, health=Health("0.1.0", ("nvme off: gone",))), ["degraded"]),
        (replace(OK, health=Health("0.1.0", ("memory: full",))), OK, ["whole"]),
        # A new session begins without a report: it says nothing about the node.
        (replace(OK, health=Health("0.1.0", ("memory: full",))), replace(OK, health=Health()), []),
        (OK, replace(OK, health=Health("0.1.0", nvme=Nvme("active"))), []),
    ],
)
def test_what_happened_to_a_node(before: Node, after: Node, wanted: list[str]) -> None:
    assert kinds(cluster(before), cluster(after)) == wanted


def test_nodes_that_come_and_go() -> None:
    assert kinds(cluster(), cluster(OK)) == ["joined"]
    assert kinds(cluster(OK), cluster()) == ["forgotten"]
    rebuilding = replace(cluster(OK), rebuilding=True)
    assert kinds(rebuilding, cluster(OK)) == ["rebuilt"]
    (joined,) = between(cluster(), cluster(OK))
    assert joined.text == "joined, tcp://h:1, version 0.1.0"


def test_what_lasts_is_one_event_that_counts() -> None:
    events = Events()
    for second in range(5):
        events.counted({"evicted_memory": 10, "evictions": 10}, 1000 * second)
    events.counted({"evicted_index": 1, "evictions": 1}, 5000)
    events.counted({}, 6000)
    (index, memory) = events.latest()
    assert (memory.count, memory.unix_ms, memory.last_unix_ms) == (50, 0, 4000)
    assert (index.count, index.text) == (1, "objects evicted for an entry of the index")
    events.counted({"evicted_memory": 3, "evictions": 3}, ONGOING_MS)
    assert [event.count for event in events.latest()] == [3, 1, 50]
    events.counted({"wrong_checksums": 2}, ONGOING_MS)
    assert events.latest()[0].is_warning and events.latest()[0].kind == "checksum"


def test_the_list_is_bounded() -> None:
    events = Events()
    for number in range(KEPT + 10):
        events.add(Happened("joined", f"n{number}", "joined"), number)
        events.counted({"evicted_memory": 1, "evictions": 1}, number)
    latest = events.latest()
    assert len(latest) == KEPT
    assert latest[0].node_id == f"n{KEPT + 9}"
    numbers = [event.number for event in latest]
    assert numbers == sorted(set(numbers), reverse=True)


def test_hours_of_evictions_leave_room_for_the_rest() -> None:
    events = Events()
    everything = {f"evicted_{cause}": 1 for cause in ("memory", "index", "nvme", "expired")}
    for second in range(KEPT_MS // 1000):
        events.counted({**everything, "wrong_checksums": 1, "evictions": 3}, 1000 * second)
    assert len(events.latest()) <= KEPT // 2


def test_a_refused_configuration_of_the_master_is_told_once() -> None:
    events = Events()
    for why in ("", "`port`: wrong", "`port`: wrong", ""):
        events.refused(why, 0)
    assert [event.kind for event in events.latest()] == ["config_accepted", "config_refused"]


def test_savings() -> None:
    missed = dict.fromkeys(REASONS, 0) | {"evicted": 3, "absent": 100, "removed": 9}
    found = savings(Rates(1000, 500), 1_000_000, missed, 2000)
    assert (found["saved_tokens"], found["saved_s"]) == (1000, 2)
    assert (found["wasted_bytes"], found["wasted_tokens"], found["wasted_s"]) == (6000, 6, 0.012)
    unknown = savings(Rates(), 1_000_000, missed, 2000)
    assert (unknown["saved_bytes"], unknown["saved_tokens"], unknown["saved_s"]) == (
        1_000_000,
        None,
        None,
    )
    assert in_tokens(Rates(0, 10), 5, 5)["saved_s"] is None
    assert {reason.value for reason in LOST} < {*REASONS}
