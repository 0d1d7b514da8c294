"""Decisions are carried out: disk first, then the native side; and the journal between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvstore import clock
from kvstore.errors import IoError, KvstoreError, Status, TooLargeError
from kvstore.master.core_api import CoreNode
from kvstore.master.hard_state import HardState
from kvstore.master.journal import Journal
from kvstore.master.lmdb_state import LmdbState
from kvstore.master.model import Drain, Endpoints, Heartbeat, NodeState, Register, Settings
from kvstore.master.records import NodeRecord
from kvstore.master.registry import Registry, new_session_id
from tests.support.fake_core import FakeCore
from tests.support.processes import wait_for

SERVING = Endpoints(tcp="tcp://h:1")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[HardState]:
    opened = LmdbState(tmp_path)
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
    def full(records: object) -> None:
        raise IoError("disk full")

    registry = Registry(Settings(), core, state)
    monkeypatch.setattr(state, "put_nodes", full)
    with pytest.raises(IoError):
        registry.submit(Register("a", 7, 0, 5, SERVING))
    assert registry.cluster.nodes == {} and core.calls == []


def test_registrations_that_come_together_are_written_together(
    state: HardState, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's transaction takes long; the others wait, and share the next."""
    registry = Registry(Settings(), core, state)
    others, written = 20, []
    waiting = registry._registrations

    def put_nodes(records: Iterable[NodeRecord]) -> None:
        written.append([record.node_id for record in records])
        if len(written) == 1:
            wait_for(lambda: len(waiting) == others, "the others to wait")

    monkeypatch.setattr(state, "put_nodes", put_nodes)
    names = [f"n{number}" for number in range(others + 1)]
    with ThreadPoolExecutor(len(names)) as pool:
        first = pool.submit(registry.submit, Register(names[0], 7, 0, 5, SERVING))
        wait_for(lambda: written, "the first transaction")
        rest = [pool.submit(registry.submit, Register(n, 7, 0, 5, SERVING)) for n in names[1:]]
        seen = [future.result(20) for future in (first, *rest)]
    assert list(map(len, written)) == [1, others]
    assert all(name in cluster.nodes for name, cluster in zip(names, seen, strict=True))
    assert set(registry.cluster.nodes) == set(names)
    assert core.names().count("register_node") == len(names)


def test_one_that_fails_among_registrations_fails_alone(
    state: HardState, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(Settings(), core, state)
    registry.submit(Register("known", 7, 0, 5, SERVING))
    opened = core.register_node

    def register_node(node_id: str, *arguments: Any, **named: Any) -> None:
        if node_id == "broken":
            raise TooLargeError("the node table is full")
        opened(node_id, *arguments, **named)

    monkeypatch.setattr(core, "register_node", register_node)
    events = [
        Register("before", 7, 0, 5, SERVING),
        Register("known", 8, 1, 6, SERVING),  # another process runs as this node
        Register("broken", 7, 0, 5, SERVING),
        Register("behind", 7, 0, 5, SERVING),
    ]
    with ThreadPoolExecutor(len(events)) as pool, registry._mutex:
        futures = [pool.submit(registry.submit, event) for event in events]
        wait_for(lambda: len(registry._registrations) == len(events), "all of them to wait")
    statuses = [getattr(future.exception(), "status", None) for future in futures]
    assert statuses == [None, Status.AlreadyExists, Status.TooLarge, None]
    assert set(registry.cluster.nodes) == {"known", "before", "behind"}


def test_links_are_looked_at_when_one_has_changed(state: HardState, core: FakeCore) -> None:
    registry = Registry(Settings(), core, state)
    registry.submit(Register("a", 7, 0, 5, SERVING))
    core.still = True
    registry.tick()
    core.seen = [seen("a", True)]
    registry.tick()
    assert not registry.cluster.nodes["a"].linked
    registry.look_at_link("a")
    assert registry.cluster.nodes["a"].linked
    core.seen = [seen("a", False)]
    core.still = False
    registry.tick()
    assert not registry.cluster.nodes["a"].linked


def test_the_nodes_of_a_previous_life_are_awaited(state: HardState, core: FakeCore) -> None:
    now = clock.unix_ms()
    for node_id, left, age_ms in (("a", False, 0), ("b", True, 0), ("c", False, 25 * 3600_000)):
        record = NodeRecord(
            node_id=node_id,
            node_epoch=4,
            incarnation=7,
            draining=False,
            left=left,
            last_seen_unix_ms=now - age_ms,
        )
        state.put_nodes([record])
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
