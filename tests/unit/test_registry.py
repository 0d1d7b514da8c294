"""Decisions are carried out: disk first, then the native side; and the journal between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import clock
from kvstore.errors import IoError, KvstoreError, Status
from kvstore.master.core_api import CoreNode
from kvstore.master.hard_state import HardState
from kvstore.master.journal import Journal
from kvstore.master.model import Drain, Endpoints, Heartbeat, NodeState, Register, Settings
from kvstore.master.records import NodeRecord
from kvstore.master.registry import Registry, new_session_id
from tests.support.fake_core import FakeCore
from tests.support.processes import wait_for

SERVING = Endpoints(tcp="tcp://h:1")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[HardState]:
    opened = HardState(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


def seen(node_id: str, up: bool) -> CoreNode:
    return CoreNode(node_id=node_id, connected=up, synced=up, applied_seq=0, replicas=0)


def test_a_registration_is_written_and_told(state: HardState, core: FakeCore) -> None:
    registry = Registry(Settings(), core, state)
    labels = {"host": "h", "rack": "r7", "rdma_domain": "pod-1", "group": "g"}
    cluster = registry.submit(Register("a", 7, 0, 5, SERVING, labels))
    assert cluster is registry.cluster
    assert core.calls[0] == ("register_node", "a", 5, 1, int(NodeState.ALIVE), False)
    assert ("set_node_endpoints", "a", "tcp://h:1", "", "h", ("", "r7", "pod-1")) in core.calls
    (record,) = state.nodes()
    assert (record.node_id, record.node_epoch, record.incarnation) == ("a", 1, 7)
    assert abs(record.last_seen_unix_ms - clock.unix_ms()) < 10_000


def test_a_heartbeat_without_a_link_is_told(state: HardState, core: FakeCore) -> None:
    registry = Registry(Settings(), core, state)
    registry.submit(Register("a", 7, 0, 5, SERVING))
    beat = Heartbeat("a", 5, 100, 40, SERVING)
    core.seen = [seen("a", True)]
    registry.look_at_links()
    registry.submit(beat)
    assert ("node_heard", "a") not in core.calls
    core.seen = [seen("a", False)]
    registry.look_at_links()
    registry.submit(beat)
    assert ("node_heard", "a") in core.calls


def test_what_the_native_side_knows_it_is_not_told_again(state: HardState, core: FakeCore) -> None:
    registry = Registry(Settings(slow_start_ms=1), core, state)
    registry.submit(Register("a", 7, 0, 5, SERVING))
    core.seen = [seen("a", True)]
    beat = Heartbeat("a", 5, 100, 40, SERVING)
    registry.submit(beat)
    last = ("set_node", "a", int(NodeState.ALIVE), 600, 60, 100)

    def has_full_weight() -> bool:
        registry.tick()
        return last in core.calls

    wait_for(has_full_weight, "the slow start to end")
    for _ in range(3):
        registry.tick()
        registry.submit(beat)
    told = [call for call in core.calls if call[0] == "set_node"]
    assert told[-1] == last
    assert len(told) == len(set(told))
    assert core.names().count("set_node_endpoints") == 1
    assert core.names().count("set_copy_policy") == 1


def test_a_refusal_changes_nothing(state: HardState, core: FakeCore) -> None:
    registry = Registry(Settings(), core, state)
    for event in (Heartbeat("a", 5, 1, 1, SERVING), Drain("a")):
        with pytest.raises(KvstoreError) as caught:
            registry.submit(event)
        assert caught.value.status is Status.NotFound
    assert core.calls == [] and state.nodes() == []


def test_a_disk_that_refuses_refuses_the_registration(
    state: HardState, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: NodeRecord) -> None:
        raise IoError("disk full")

    registry = Registry(Settings(), core, state)
    monkeypatch.setattr(state, "put_node", full)
    with pytest.raises(IoError):
        registry.submit(Register("a", 7, 0, 5, SERVING))
    assert registry.cluster.nodes == {} and core.calls == []


def test_the_nodes_of_a_previous_life_are_awaited(state: HardState, core: FakeCore) -> None:
    now = clock.unix_ms()
    for node_id, left, age_ms in (("a", False, 0), ("b", True, 0), ("c", False, 25 * 3600_000)):
        state.put_node(
            NodeRecord(
                node_id=node_id,
                node_epoch=4,
                incarnation=7,
                draining=False,
                left=left,
                last_seen_unix_ms=now - age_ms,
            )
        )
    registry = Registry(Settings(), core, state)
    assert registry.cluster.rebuilding and registry.cluster.awaited == {"a", "c"}
    assert ("register_node", "a", 0, 4, int(NodeState.DEAD), True) in core.calls
    registry.tick()  # c was gone for longer than the retention
    assert ("remove_node", "c") in core.calls
    assert [r.node_id for r in state.nodes()] == ["a", "b"]
    registry.submit(Register("a", 7, 4, 5, SERVING))
    core.seen = [seen("a", True)]
    registry.tick()
    assert "finish_rebuild" in core.names() and not registry.cluster.rebuilding


def test_session_ids_are_never_zero_and_do_not_repeat() -> None:
    drawn = {new_session_id() for _ in range(1000)}
    assert len(drawn) == 1000 and 0 not in drawn and max(drawn) < 2**64


def drain(journal: Journal) -> None:
    journal.start()
    journal.stop()


def test_operations_are_on_disk_before_they_are_done(state: HardState, core: FakeCore) -> None:
    core.batches = [[(1, b"one"), (2, b"two")], [(3, b"three")]]
    journal = Journal(core, state)
    drain(journal)
    assert state.ops() == [b"one", b"two", b"three"]
    assert [call for call in core.calls if call[0] == "journal_done"] == [
        ("journal_done", 2),
        ("journal_done", 3),
    ]
    assert (journal.written, journal.failures) == (3, 0)


def test_the_log_is_trimmed_with_the_epochs_of_its_flushes(
    state: HardState, core: FakeCore
) -> None:
    core.batches = [[(1, b"one"), (2, b"two")]]
    core.trimmed = (1, 77)
    drain(Journal(core, state))
    assert state.ops() == [b"two"]
    assert state.trimmed() == (1, 77)
    assert state.namespaces() == [("default", "", 4)]


def test_a_disk_that_refuses_acknowledges_nothing(
    state: HardState, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(records: object) -> None:
        journal.request_stop()
        raise IoError("disk full")

    core.batches = [[(1, b"one")]]
    journal = Journal(core, state)
    monkeypatch.setattr(state, "append_ops", full)
    journal.start()
    journal.stop()
    assert journal.failures == 1 and "journal_done" not in core.names()


def test_a_disk_without_room_is_told_to_the_native_side_and_in_readyz(
    state: HardState, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(core, state)
    ready = journal.readiness(lambda: (True, {"rebuilding": False}))
    monkeypatch.setattr(state, "room_bytes", lambda: 100)
    drain(journal)
    assert core.room == 100
    assert ready() == (True, {"rebuilding": False, "journal_full": journal.refusal})
    assert "full" in journal.refusal
    monkeypatch.undo()
    again = Journal(core, state)
    drain(again)
    assert core.room > 1_000_000 and again.refusal == ""
