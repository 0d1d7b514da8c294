"""Which way a node's heartbeats take: over its link, or as a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from kvstore._proto import node_pb2, types_pb2
from kvstore.errors import (
    DeadlineExceededError,
    KvstoreError,
    OverloadedError,
    Status,
    UnavailableError,
    error_for,
)
from kvstore.node import session
from kvstore.node.agent import Agent, Identity, Load, Session
from kvstore.node.core_api import Probe

MASTER = "10.0.0.1:50051"
SESSION = Session(5, 1, "c" * 32, b"s" * 16, MASTER, 1000)
LOAD = Load(capacity_bytes=9, used_bytes=3, index_entries=1, index_limit=2, refuses_writes=False)
DRAINING = node_pb2.HeartbeatReply(state=types_pb2.NODE_STATE_DRAINING, sample_level=3)


class Stub:
    """The control plane."""

    def __init__(self) -> None:
        self.requests: list[node_pb2.HeartbeatRequest] = []

    async def Heartbeat(self, request: node_pb2.HeartbeatRequest, **_: Any) -> Any:
        self.requests.append(request)
        return node_pb2.HeartbeatReply(state=types_pb2.NODE_STATE_ALIVE)


class Link:
    """NodeCore.heartbeat."""

    def __init__(self, answer: bytes | KvstoreError) -> None:
        self.requests: list[node_pb2.HeartbeatRequest] = []
        self._answer = answer

    def heartbeat(self, request: bytes, timeout_ms: int) -> bytes:
        self.requests.append(node_pb2.HeartbeatRequest.FromString(request))
        assert timeout_ms == session.link_timeout_ms(SESSION.heartbeat_ms)
        if isinstance(self._answer, KvstoreError):
            raise self._answer
        return self._answer


def beat(
    link: Callable[[bytes, int], bytes] | None, master: str = MASTER
) -> tuple[Agent, Stub, Status]:
    """One heartbeat of a registered node."""
    stub = Stub()
    identity = Identity("a", {"rack": "r1"}, (), types_pb2.Endpoints(tcp="tcp://h:1"))
    agent = Agent([MASTER], identity, None, cast(Probe, None))
    agent.session = SESSION
    agent._stub, agent._master = cast(Any, stub), master
    if link is not None:
        agent.use_link(link)
    return agent, stub, asyncio.run(agent._heartbeat(SESSION, LOAD))


def test_an_answer_over_the_link_needs_no_call() -> None:
    link = Link(DRAINING.SerializeToString())
    agent, stub, status = beat(link.heartbeat)
    assert status is Status.Ok and not stub.requests
    assert (agent.state, agent.sample_level) == (types_pb2.NODE_STATE_DRAINING, 3)
    (request,) = link.requests
    assert (request.node_id, request.session_id, request.used_bytes) == ("a", 5, 3)


@pytest.mark.parametrize(
    "answer",
    [
        UnavailableError("the link is down"),
        DeadlineExceededError("late"),
        OverloadedError("another one waits"),
        b"\xff no reply",
    ],
    ids=["down", "late", "overloaded", "garbage"],
)
def test_without_an_answer_the_same_goes_as_a_call(answer: bytes | KvstoreError) -> None:
    link = Link(answer)
    agent, stub, status = beat(link.heartbeat)
    assert status is Status.Ok and stub.requests == link.requests
    assert agent.state == types_pb2.NODE_STATE_ALIVE


def test_a_refusal_over_the_link_counts() -> None:
    _, stub, status = beat(Link(error_for(Status.NotFound, "register again")).heartbeat)
    assert status is Status.NotFound and not stub.requests


def test_the_link_to_another_master_is_not_used() -> None:
    link = Link(DRAINING.SerializeToString())
    _, stub, status = beat(link.heartbeat, "10.0.0.2:50051")
    assert status is Status.Ok and len(stub.requests) == 1 and not link.requests


def test_before_there_is_a_link_heartbeats_are_calls() -> None:
    _, stub, status = beat(None)
    assert status is Status.Ok and len(stub.requests) == 1


def test_both_ways_fit_into_the_ttl() -> None:
    assert session.link_timeout_ms(1000) == 1000  # and a call's 2 s: below the 5 s of a session
    assert session.link_timeout_ms(20_000) == 2000
    assert session.link_timeout_ms(50) == 250
