"""Requests in, replies out: limits, conversions and errors of the control plane's calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore._proto import master_pb2, node_pb2, types_pb2
from kvstore.cli.overview import node_as_dict, state_name
from kvstore.errors import InvalidArgumentError, KvstoreError, Status, TooLargeError
from kvstore.master import convert
from kvstore.master.core_api import CoreNamespace
from kvstore.master.handlers import Bound, MasterHandlers, NodeHandlers
from kvstore.master.hard_state import HardState
from kvstore.master.lmdb_state import LmdbState
from kvstore.master.model import Settings
from kvstore.master.new_cluster import NewCluster
from kvstore.master.prefixes import HotPrefixes
from kvstore.master.registry import Registry
from kvstore.master.reuse import Reuse
from kvstore.security import ANYBODY, Principal, Role, Secret
from tests.support.fake_core import FakeCore

NAMESPACE = types_pb2.Namespace(tenant="default", name="llama")
FIELDS: dict[str, Any] = {
    "node_id": "a",
    "incarnation": 7,
    "endpoints": types_pb2.Endpoints(tcp="tcp://h:1", http="http://h:2"),
    "labels": {"host": "h"},
    "segments": [types_pb2.Segment(name="segment", tier=types_pb2.TIER_DRAM, capacity_bytes=1000)],
}
REGISTER = node_pb2.RegisterRequest(**FIELDS)


def changed(**fields: Any) -> node_pb2.RegisterRequest:
    return node_pb2.RegisterRequest(**{**FIELDS, **fields})


class Plane:
    def __init__(self, state: HardState) -> None:
        self.core = FakeCore()
        self.state = state
        self.registry = Registry(Settings(), self.core, state)
        reuse = Reuse()
        self.nodes = NodeHandlers(self.registry, state, NewCluster(state), reuse, HotPrefixes())
        bound = Bound("h:1", "h:2", "http://h:3")
        self.master = MasterHandlers(self.registry, self.core, state, reuse, lambda: bound)

    def flush(self, request: master_pb2.FlushRequest) -> master_pb2.FlushReply:
        replies: list[master_pb2.FlushReply] = []
        self.master.flush(request, "engine", replies.append)
        return replies[0]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    state = LmdbState(tmp_path)
    yield Plane(state)
    state.close()


def test_a_node_joins_reports_and_leaves(plane: Plane) -> None:
    reply = plane.nodes.register(REGISTER)
    assert (reply.node_epoch, reply.heartbeat_interval_ms, reply.ttl_ms) == (1, 1000, 5000)
    assert reply.cluster_id == plane.state.cluster_id
    assert reply.hash_secret == plane.state.hash_secret
    beat = node_pb2.HeartbeatRequest(
        node_id="a",
        session_id=reply.session_id,
        capacity_bytes=900,
        used_bytes=300,
        endpoints=REGISTER.endpoints,
        segments=REGISTER.segments,
    )
    assert plane.nodes.heartbeat(beat).state == types_pb2.NODE_STATE_ALIVE
    (node,) = plane.master.list_nodes().nodes
    assert (node.node_id, node.state) == ("a", types_pb2.NODE_STATE_ALIVE)
    assert (node.capacity_bytes, node.used_bytes) == (900, 300)
    assert dict(node.labels) == {"host": "h"} and node.endpoints == REGISTER.endpoints
    assert node.segments[0].tier == types_pb2.TIER_DRAM
    status = plane.master.status()
    assert (status.nodes_alive, status.nodes_known, status.used_bytes) == (1, 1, 300)
    assert (status.objects, status.pending_operations) == (11, 6)
    assert status.block_endpoint == "h:1"
    plane.nodes.unregister(node_pb2.UnregisterRequest(node_id="a", session_id=reply.session_id))
    (left,) = plane.master.list_nodes().nodes
    assert left.state == types_pb2.NODE_STATE_DEAD and left.restarting_ms == 0
    with pytest.raises(KvstoreError) as caught:
        plane.nodes.heartbeat(beat)
    assert caught.value.status is Status.NotFound


def test_a_restarting_node_is_dead_for_those_who_know_no_better(plane: Plane) -> None:
    reply = plane.nodes.register(REGISTER)
    goodbye = node_pb2.UnregisterRequest(
        node_id="a", session_id=reply.session_id, returns_in_ms=30_000
    )
    plane.nodes.unregister(goodbye)
    (node,) = plane.master.list_nodes().nodes
    assert node.state == types_pb2.NODE_STATE_DEAD and 0 < node.restarting_ms <= 30_000
    assert state_name(node) == "restarting" and node_as_dict(node)["state"] == "restarting"
    status = plane.master.status()
    assert (status.nodes_alive, status.nodes_known, status.capacity_bytes) == (0, 1, 0)


@pytest.mark.parametrize(
    "request_",
    [
        changed(node_id=""),
        changed(node_id="x" * 256),
        changed(node_id="a\0"),
        changed(incarnation=0),
        changed(node_epoch=1 << 24),
        changed(labels={f"l{i}": "" for i in range(17)}),
        changed(labels={"host": "x" * 256}),
        changed(endpoints=types_pb2.Endpoints(tcp="x" * 513)),
        changed(segments=[types_pb2.Segment()] * 65),
    ],
)
def test_a_registration_outside_the_limits_is_refused(
    plane: Plane, request_: node_pb2.RegisterRequest
) -> None:
    with pytest.raises(InvalidArgumentError):
        plane.nodes.register(request_)
    assert plane.core.calls == []


def test_a_node_of_another_cluster_is_refused(plane: Plane) -> None:
    plane.nodes.register(changed(cluster_id=plane.state.cluster_id))
    with pytest.raises(KvstoreError) as caught:
        plane.nodes.register(changed(node_id="b", cluster_id="0" * 32))
    assert caught.value.status is Status.VersionMismatch
    assert "belongs to cluster 00000000000000000000000000000000" in str(caught.value)
    plane.nodes.register(REGISTER)


def test_a_new_cluster_admits_nobody_once_a_node_of_another_one_has_called(plane: Plane) -> None:
    ready = NewCluster(plane.state).readiness(lambda: (True, {}))
    assert ready() == (True, {})
    guard = plane.nodes._new_cluster
    for request in (changed(cluster_id="0" * 32), changed(node_id="fresh")):
        with pytest.raises(KvstoreError) as caught:
            plane.nodes.register(request)
        assert caught.value.status is Status.Unavailable  # nodes go on asking
        assert "--import" in str(caught.value) and "--new-cluster" in str(caught.value)
    is_ready, details = guard.readiness(lambda: (True, {"rebuilding": False}))()
    assert not is_ready and details["nodes_refused"] == guard.refusal
    assert not plane.state.settled and plane.core.calls == []
    with pytest.raises(InvalidArgumentError, match="hexadecimal"):
        plane.nodes.register(changed(cluster_id="x" * 32))


def test_a_drain_is_over_when_the_node_is_quiet_and_empty(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = plane.nodes.register(REGISTER).session_id
    reply = plane.master.drain(master_pb2.DrainRequest(node_id="a"))
    assert reply.node.state == types_pb2.NODE_STATE_DRAINING
    assert (reply.node.drain_left_objects, reply.drained) == (3, False)
    monkeypatch.setattr(plane.core, "drain_left", lambda node_id: (0, 0))
    assert not plane.master.drain(master_pb2.DrainRequest(node_id="a")).drained
    beat = node_pb2.HeartbeatRequest(
        node_id="a", session_id=session_id, endpoints=REGISTER.endpoints, refuses_writes=True
    )
    assert plane.nodes.heartbeat(beat).state == types_pb2.NODE_STATE_DRAINING
    assert plane.master.drain(master_pb2.DrainRequest(node_id="a")).drained
    gone = node_pb2.UnregisterRequest(node_id="a", session_id=session_id)
    plane.nodes.unregister(gone)  # stopped after its drain, it is still drained
    reply = plane.master.drain(master_pb2.DrainRequest(node_id="a"))
    assert reply.drained and reply.node.state == types_pb2.NODE_STATE_DEAD
    plane.nodes.register(REGISTER)
    reply = plane.master.drain(master_pb2.DrainRequest(node_id="a", cancel=True))
    assert reply.node.state == types_pb2.NODE_STATE_ALIVE and not reply.drained
    with pytest.raises(KvstoreError) as caught:
        plane.master.drain(master_pb2.DrainRequest(node_id="b"))
    assert caught.value.status is Status.NotFound


def test_flush_remove_and_list_reach_the_core(plane: Plane) -> None:
    flushed = plane.flush(master_pb2.FlushRequest(namespace=NAMESPACE))
    assert (flushed.status, flushed.namespace_epoch) == (Status.Partial, 5)
    assert list(flushed.unreached_nodes) == ["gone"]
    request = master_pb2.RemoveRequest(namespace=NAMESPACE, keys=["x", "y"], timeout_ms=7)
    replies: list[master_pb2.RemoveReply] = []
    plane.master.remove(request, "engine", replies.append)
    (removed,) = replies
    assert list(removed.statuses) == [0, 0]
    page = plane.master.list_keys(
        master_pb2.ListKeysRequest(namespace=NAMESPACE, prefix="p", cursor=4)
    )
    assert (list(page.keys), page.cursor) == (["k"], 9)
    assert plane.core.calls == [
        ("flush", "default", "llama", 5000, "engine"),
        ("remove", "default", "llama", ["x", "y"], 7, "engine"),
        ("list_keys", "default", "llama", "p", 4, 1000),
    ]


def use_of(tenant: str, namespace: str, objects: int, size: int) -> CoreNamespace:
    return {
        "tenant": tenant,
        "namespace": namespace,
        "epoch": 1,
        "objects": objects,
        "bytes": size,
        "keys_looked_up": 5,
        "keys_found": 3,
    }


def test_namespaces_are_listed_by_size(plane: Plane) -> None:
    plane.core.uses = [
        use_of("default", "small", 1, 10),
        use_of("default", "llama", 2, 300),
        use_of("other", "", 1, 20),
        {**use_of("default", "left", 0, 0), "keys_looked_up": 0, "keys_found": 0},
    ]
    every = plane.master.list_namespaces(master_pb2.ListNamespacesRequest())
    assert [(n.namespace.tenant, n.namespace.name) for n in every.namespaces] == [
        ("default", "llama"),
        ("other", ""),
        ("default", "small"),
    ]
    first = every.namespaces[0]
    assert (first.epoch, first.objects, first.bytes) == (1, 2, 300)
    assert (first.keys_looked_up, first.keys_found, every.left_out) == (5, 3, 0)
    mine = plane.master.list_namespaces(master_pb2.ListNamespacesRequest(tenant="other"))
    assert [n.bytes for n in mine.namespaces] == [20]
    plane.core.uses = [use_of("t", f"n{i}", 1, i) for i in range(4005)]
    many = plane.master.list_namespaces(master_pb2.ListNamespacesRequest())
    assert (len(many.namespaces), many.left_out) == (4000, 5)
    with pytest.raises(InvalidArgumentError):
        plane.master.list_namespaces(master_pb2.ListNamespacesRequest(tenant="a\nb"))


def test_a_flush_says_what_was_there(plane: Plane) -> None:
    plane.core.uses = [use_of("default", "llama", 2, 300)]
    reply = plane.flush(master_pb2.FlushRequest(namespace=NAMESPACE))
    assert (reply.known, reply.objects, reply.bytes) == (True, 2, 300)
    misspelt = types_pb2.Namespace(tenant="default", name="lama")
    reply = plane.flush(master_pb2.FlushRequest(namespace=misspelt))
    assert (reply.known, reply.objects, reply.bytes) == (False, 0, 0)


def test_locate_and_inspect_describe(plane: Plane) -> None:
    found = plane.master.locate(master_pb2.LocateRequest(namespace=NAMESPACE, keys=["x", "y"]))
    assert [(p.node_id, p.length) for p in found.prefixes] == [("a", 2), ("b", 1)]
    assert found.cluster_length == 2
    plane.core.objects["k"] = {
        "size": 9,
        "version": 1 << 40,
        "pin": 2,
        "created_ms": 1,
        "ttl_left_ms": 500,
        "replicas_wanted": 2,
        "replicas": [{"node_id": "a", "tier": 0, "state": 1}],
    }
    reply = plane.master.inspect(master_pb2.InspectRequest(namespace=NAMESPACE, key="k"))
    assert (reply.size_bytes, reply.pin, reply.created_unix_ms) == (9, types_pb2.PIN_HARD, 1)
    assert (reply.ttl_left_ms, reply.replicas_wanted) == (500, 2)
    assert [(r.node_id, r.tier) for r in reply.replicas] == [("a", types_pb2.TIER_DRAM)]
    with pytest.raises(KvstoreError) as caught:
        plane.master.inspect(master_pb2.InspectRequest(namespace=NAMESPACE, key="other"))
    assert caught.value.status is Status.NotFound


def test_keys_namespaces_and_times_are_bounded(plane: Plane) -> None:
    too_many = master_pb2.LocateRequest(namespace=NAMESPACE, keys=["k"] * 4097)
    with pytest.raises(TooLargeError):
        plane.master.locate(too_many)
    for keys in ([""], ["k" * 1025]):
        with pytest.raises(InvalidArgumentError, match=r"keys\[0\]"):
            plane.master.locate(master_pb2.LocateRequest(namespace=NAMESPACE, keys=keys))
    for wrong in (
        types_pb2.Namespace(),
        types_pb2.Namespace(tenant="t" * 256),
        types_pb2.Namespace(tenant="t", name="n" * 256),
    ):
        with pytest.raises(InvalidArgumentError, match="namespace"):
            plane.flush(master_pb2.FlushRequest(namespace=wrong))
    with pytest.raises(InvalidArgumentError, match="timeout_ms"):
        plane.flush(master_pb2.FlushRequest(namespace=NAMESPACE, timeout_ms=600_001))
    with pytest.raises(InvalidArgumentError, match="limit"):
        plane.master.list_keys(master_pb2.ListKeysRequest(namespace=NAMESPACE, limit=2001))
    assert plane.core.calls == []


def test_a_watcher_sees_its_tenants_and_its_namespace() -> None:
    events = [
        ("publish", "default", "", "k1", 1, 10, "a"),
        ("withdraw", "research", "x", "k2", 2, 0, "a"),
        ("remove", "secret", "", "k3", 3, 0, ""),
        ("flush", "research", "x", "", 0, 0, ""),
        ("node", "", "", "", 0, 0, "b"),
    ]
    kinds = [e.kind for e in convert.events_to(events, None, ANYBODY)]
    assert kinds == [1, 2, 3, 4, 5]
    some = Principal("p", Role.CLIENT, ("default", "research"), Secret("s"))
    assert [e.key for e in convert.events_to(events, None, some)] == ["k1", "k2", "", ""]
    chosen = convert.events_to(events, ("research", "x"), some)
    assert [(e.kind, e.node_id) for e in chosen] == [(2, "a"), (4, ""), (5, "b")]


def test_a_cursor_of_another_life_starts_over() -> None:
    cursor = convert.cursor_to(3, 12345)
    assert convert.cursor_from(3, cursor) == 12345
    assert convert.cursor_from(4, cursor) == 0
    assert convert.cursor_from(3, 0) == 0
