"""Heartbeats that came over links: who they are of, their errors, and that each has an answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvstore._proto import node_pb2
from kvstore.errors import InvalidArgumentError, Status
from kvstore.master.heartbeats import Heartbeats
from tests.support.fake_core import FakeCore
from tests.support.processes import wait_for

Handler = Callable[[node_pb2.HeartbeatRequest], node_pb2.HeartbeatReply]
Answer = tuple[int, int, int, bytes]


def request(node_id: str = "a", session_id: int = 5, used: int = 0) -> bytes:
    return node_pb2.HeartbeatRequest(
        node_id=node_id, session_id=session_id, used_bytes=used
    ).SerializeToString()


def handle(wire: node_pb2.HeartbeatRequest) -> node_pb2.HeartbeatReply:
    if wire.used_bytes == 1:
        raise InvalidArgumentError("used_bytes")
    if wire.used_bytes == 2:
        raise ZeroDivisionError
    return node_pb2.HeartbeatReply(sample_level=7)


def answers(*requests: bytes, handler: Handler = handle) -> tuple[Heartbeats, list[Answer]]:
    """Answer a batch of the link of node a with session 5."""
    core = FakeCore()
    core.heartbeats.append([(3, 10 + i, "a", 5, one) for i, one in enumerate(requests)])
    heartbeats = Heartbeats(core, handler)
    heartbeats.start()
    try:
        wait_for(lambda: "answer_heartbeats" in core.names(), "the answers")
    finally:
        heartbeats.stop()
    ((_, found),) = [call for call in core.calls if call[0] == "answer_heartbeats"]
    return heartbeats, found


def test_a_batch_is_answered_one_by_one() -> None:
    heartbeats, found = answers(request(), request(used=1), request())
    ok, refused = int(Status.Ok), int(Status.InvalidArgument)
    assert [one[:3] for one in found] == [(3, 10, ok), (3, 11, refused), (3, 12, ok)]
    assert node_pb2.HeartbeatReply.FromString(found[0][3]).sample_level == 7
    assert b"used_bytes" in found[1][3]
    (family,) = heartbeats.families()
    counted = {s.labels["status"]: s.value for s in family.samples}
    assert counted == {"Ok": 2, "InvalidArgument": 1}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (request(node_id="b"), Status.PermissionDenied),
        (request(session_id=6), Status.NotFound),
        (b"\xff", Status.InvalidArgument),
        (b"", Status.PermissionDenied),
    ],
    ids=["node", "session", "garbage", "empty"],
)
def test_it_speaks_for_its_link_alone(given: bytes, status: Status) -> None:
    handled: list[node_pb2.HeartbeatRequest] = []

    def handler(wire: node_pb2.HeartbeatRequest) -> node_pb2.HeartbeatReply:
        handled.append(wire)
        return node_pb2.HeartbeatReply()

    _, ((_, _, code, _),) = answers(given, handler=handler)
    assert code == status and not handled


def test_an_error_of_ours_is_answered_without_its_text() -> None:
    _, found = answers(request(used=2), request())
    assert [one[2] for one in found] == [Status.Internal, Status.Ok]
    assert b"ZeroDivisionError" not in found[0][3]
