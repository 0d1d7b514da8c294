"""The verifier: what it asks, what it makes of the answer, and that nobody holds the others up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore import clock
from kvstore.errors import KvstoreError, Status, error_for
from kvstore.master.lmdb_state import LmdbState
from kvstore.master.model import Endpoints, NodeState, Register, Settings
from kvstore.master.registry import Registry
from kvstore.master.verifier import NodeHello, Verifier
from kvstore.security import Principal, Role, Secret
from tests.support.fake_core import FakeCore
from tests.support.processes import wait_for

Answer = NodeHello | KvstoreError
_SECRET = "secret-number-1-of-the-test"
_CALLER = Principal("p", Role.NODE, ("*",), Secret(_SECRET))


class Plane:
    """A registry, and nodes that answer what a test has put in."""

    def __init__(self, folder: Path) -> None:
        self.state = LmdbState(folder)
        self.registry = Registry(Settings(verify_endpoints=True), FakeCore(), self.state)
        self.answers: dict[str, Answer] = {}
        self.asked: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.verifier = Verifier(self.registry, self.probe, "cluster")

    def probe(self, address: str, **options: Any) -> NodeHello:
        self.asked.append({"address": address, **options})
        if address.startswith("tcp://hangs"):
            assert self.hold.wait(10)
        answer = self.answers.get(address, error_for(Status.Unavailable, "refused"))
        if isinstance(answer, KvstoreError):
            raise answer
        return answer

    def register(self, node_id: str, tcp: str) -> None:
        event = Register(node_id, 7, 0, len(self.asked) + 1, Endpoints(tcp=tcp))
        self.registry.submit(event)
        self.verifier.registered(node_id, _CALLER)

    def state_of(self, node_id: str) -> NodeState:
        return self.registry.cluster.nodes[node_id].state

    def problem_of(self, node_id: str) -> str:
        return wait_for(lambda: self.registry.cluster.nodes[node_id].problem, "a problem")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    made = Plane(tmp_path)
    yield made
    made.hold.set()
    made.verifier.close()
    made.state.close()


def test_the_node_itself_is_published(plane: Plane) -> None:
    plane.answers["tcp://h:1"] = {"node_id": "a", "node_epoch": 1}
    plane.register("a", "tcp://h:1")
    wait_for(lambda: plane.state_of("a") is NodeState.ALIVE, "a to be published")
    assert plane.asked == [
        {
            "address": "tcp://h:1",
            "cluster_id": "cluster",
            "node_id": "a",
            "principal": "p",
            "token": _SECRET,
            "timeout_ms": 2000,
        }
    ]
    assert plane.registry.unpublished() == []
    told = ("set_node_endpoints", "a", "tcp://h:1", "", "", ("", "", ""))
    assert told in plane.registry._core.calls  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"node_id": "b", "node_epoch": 1}, "tcp://h:1 is node 'b', not 'a'"),
        ({"node_id": "a", "node_epoch": 2}, "another process of node 'a' (epoch 2, not 1)"),
        (error_for(Status.Unauthenticated, "wrong token"), "does not answer the master as node"),
        (error_for(Status.DeadlineExceeded, "late"), "see advertise_host"),
    ],
)
def test_anything_else_is_not(plane: Plane, answer: Answer, words: str) -> None:
    plane.answers["tcp://h:1"] = answer
    plane.register("a", "tcp://h:1")
    assert words in plane.problem_of("a")
    assert plane.state_of("a") is NodeState.JOINING


def test_failed_endpoints_are_asked_again_after_growing_pauses(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = 1_000_000
    monkeypatch.setattr(clock, "monotonic_ms", lambda: now_ms)
    plane.register("a", "tcp://h:1")
    plane.problem_of("a")
    for pause_ms in (500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000):
        wait_for(lambda: not plane.verifier._running, "the attempt to end")
        asked = len(plane.asked)
        now_ms += pause_ms - 1
        plane.verifier.look()
        assert len(plane.asked) == asked
        now_ms += 1
        plane.verifier.look()
        wait_for(lambda: len(plane.asked) == asked + 1, f"another attempt after {pause_ms} ms")  # noqa: B023
    plane.answers["tcp://h:1"] = {"node_id": "a", "node_epoch": 1}
    wait_for(lambda: not plane.verifier._running, "the attempt to end")
    now_ms += 30_000
    plane.verifier.look()
    wait_for(lambda: plane.state_of("a") is NodeState.ALIVE, "a to be published")


def test_endpoints_that_hang_hold_up_a_new_node_for_one_round_only(plane: Plane) -> None:
    plane.hold.clear()
    for number in range(30):
        plane.register(f"h{number}", f"tcp://hangs:{number}")
    wait_for(lambda: len(plane.asked) == 8, "as many attempts as there are threads")
    plane.answers["tcp://h:1"] = {"node_id": "a", "node_epoch": 1}
    plane.register("a", "tcp://h:1")
    assert plane.state_of("a") is NodeState.JOINING  # and register has returned
    plane.hold.set()
    wait_for(lambda: plane.state_of("a") is NodeState.ALIVE, "a to be published")
    wait_for(lambda: len(plane.asked) == 31, "everybody to be asked once")
