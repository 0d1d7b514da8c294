"""The master's policy for nodes: ``decide(settings, cluster, event, now) -> decisions``.

Pure: no clock, no I/O, no randomness. The registry carries the decisions out in order and answers
the caller only after all of them: a record is on disk before it is visible.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

from kvstore.errors import Status
from kvstore.limits import MAX_NODES, MAX_RESTART_MS
from kvstore.master.model import (
    TIER_NVME,
    Cluster,
    Drain,
    Endpoints,
    Event,
    ForgetNode,
    Heartbeat,
    Node,
    NodeState,
    Observe,
    Register,
    RequestSnapshot,
    Settings,
    Stage,
    Tick,
    Unregister,
    Verified,
)

# A full cache still accepts writes (by evicting), but fewer of them.
MIN_FREE_RATIO = 0.02
# Share of a node that has just joined; it grows to 1 during the slow start.
SLOW_START_SHARE = 0.1
# Of all nodes together: in a larger cluster each reports less often. One costs the master up to
# half a millisecond of a core, and whether a node lives is seen by its link as well.
HEARTBEATS_PER_S = 50
MAX_HEARTBEAT_MS = 30_000
# A link brings a ping every two seconds (native/src/node/master_link.h) while nothing else comes.
LINK_SILENCE_MS = 5_000
# Ticks may come late; a heartbeat sets the weight in any case.
_TICK_SLACK_MS = 1_000


@dataclass(frozen=True)
class Persist:
    """Write the node's record to disk."""

    node: Node


@dataclass(frozen=True)
class OpenSession:
    """Accept the node's link under its new session; an older link is closed."""

    node: Node
    fresh: bool
    """A new node with new memory: it holds nothing yet."""


@dataclass(frozen=True)
class SetNode:
    """Set the node's state at the native side."""

    node: Node
    state: NodeState
    weight: float
    """Share of new writes, 0 to 1."""


@dataclass(frozen=True)
class Heard:
    """Count what a node without a link holds as readable again."""

    node_id: str


@dataclass(frozen=True)
class Forget:
    """Delete the node's record and replicas."""

    node_id: str


@dataclass(frozen=True)
class FinishRebuild:
    """Grant claims from now on."""

    missing: tuple[str, ...]
    """Known nodes that did not come back in time."""


@dataclass(frozen=True)
class SetCopyRate:
    """Limit the copies per second for repair and drain."""

    copies_per_s: int


@dataclass(frozen=True)
class SetLinkSilence:
    """End links that bring nothing for that time."""

    silence_ms: int
    """0: never."""


@dataclass(frozen=True)
class Refuse:
    """Change nothing and answer with an error."""

    status: Status
    message: str


Decision = (
    Persist
    | OpenSession
    | SetNode
    | Heard
    | Forget
    | FinishRebuild
    | SetCopyRate
    | SetLinkSilence
    | Refuse
)
Outcome = tuple[Cluster, list[Decision]]


def start(known: list[Node], now_ms: int) -> Cluster:
    """Make the state of a master that has just started.

    Args:
        known: the nodes of earlier epochs, as read from disk.
        now_ms: the time.

    Returns:
        A cluster without registrations, rebuilding until the nodes have announced or their TTL has
        passed.
    """
    nodes = {n.node_id: replace(n, session_id=0, linked=False, synced=False) for n in known}
    awaited = frozenset(n.node_id for n in known if not n.left)
    return Cluster(
        started_ms=now_ms,
        ticked_ms=now_ms,
        nodes=MappingProxyType(nodes),
        rebuilding=bool(awaited),
        awaited=awaited,
    )


def decide(settings: Settings, cluster: Cluster, event: Event, now_ms: int) -> Outcome:
    """Decide what follows from an event.

    Args:
        settings: the parameters of the policy.
        cluster: the state before.
        event: what happened.
        now_ms: the time, on the same clock as all other times here.

    Returns:
        The state afterwards, and the decisions in order.
    """
    match event:
        case Register():
            return _register(settings, cluster, event, now_ms)
        case Heartbeat():
            return _heartbeat(settings, cluster, event, now_ms)
        case Unregister():
            return _unregister(settings, cluster, event, now_ms)
        case ForgetNode():
            return _forget(cluster, event)
        case RequestSnapshot():
            return _request_snapshot(cluster, event)
        case Drain():
            return _drain(settings, cluster, event, now_ms)
        case Observe():
            return _observe(settings, cluster, event, now_ms)
        case Verified():
            return _verified(settings, cluster, event, now_ms)
        case Tick():
            return _tick(settings, cluster, now_ms)


def heartbeat_ms(settings: Settings, cluster: Cluster) -> int:
    """Compute the interval of the nodes' heartbeats: longer in a large cluster."""
    shared_ms = min(MAX_HEARTBEAT_MS, len(cluster.nodes) * 1000 // HEARTBEATS_PER_S)
    return max(settings.heartbeat_ms, shared_ms)


def link_silence_ms(settings: Settings, cluster: Cluster) -> int:
    """Compute after how long a silent link is given up, where heartbeats alone would tell late.

    Not during a rebuild: then a frame may wait behind those of a thousand other links.
    """
    if cluster.rebuilding or heartbeat_ms(settings, cluster) <= settings.heartbeat_ms:
        return 0
    return max(settings.node_ttl_ms, LINK_SILENCE_MS)


def weight(settings: Settings, node: Node, now_ms: int) -> float:
    """Compute a node's share of new writes.

    Args:
        settings: gives the length of the slow start.
        node: the node.
        now_ms: the time.

    Returns:
        0 for a node that is not alive or not linked; else its free ratio, at least MIN_FREE_RATIO,
        times the slow start's ramp: an empty new node would otherwise attract every write.
    """
    if node.state is not NodeState.ALIVE or not node.linked or node.capacity_bytes <= 0:
        return 0.0
    free = 1 - min(node.used_bytes, node.capacity_bytes) / node.capacity_bytes
    age = max(0, now_ms - node.joined_ms) / settings.slow_start_ms
    ramp = min(1.0, SLOW_START_SHARE + (1 - SLOW_START_SHARE) * age)
    return max(free, MIN_FREE_RATIO) * ramp


def drain_takers(settings: Settings, cluster: Cluster, node: Node, now_ms: int) -> list[Node]:
    """Return the nodes that take copies of what lies on a draining one."""
    others = (n for n in cluster.nodes.values() if n.node_id != node.node_id)
    return [n for n in others if weight(settings, n, now_ms) > 0 and n.endpoints.tcp]


def room(node: Node) -> int:
    """Return the bytes that a node takes before it drops an object, as it told last."""
    free = max(0, node.capacity_bytes - node.used_bytes)
    nvme = node.health.nvme
    return free + (max(0, nvme.capacity_bytes - nvme.object_bytes) if nvme else 0)


def dropped(nodes: Iterable[Node]) -> tuple[int, int]:
    """Return the objects that nodes have dropped for room since their start, and their bytes.

    What an NVMe tier keeps is not dropped; of what it drops, only the number is known.
    """
    objects = size = 0
    for node in nodes:
        counters = node.activity.counters
        if node.health.nvme is None:
            objects += counters.get(("evictions", ()), 0)
            size += counters.get(("evicted_bytes", ()), 0)
        else:
            objects += counters.get(("evictions_by_cause", ("nvme",)), 0)
    return objects, size


def drain_waits_for(
    settings: Settings, cluster: Cluster, node: Node, left: int, now_ms: int
) -> str:
    """Say why a drain does not advance.

    Args:
        settings: parameters of the policy.
        cluster: the state.
        node: that is draining.
        left: objects that no other node has.
        now_ms: the time.

    Returns:
        A sentence; empty if it advances.
    """
    if not node.linked:
        silent_s = max(0, now_ms - node.last_seen_ms) / 1000
        state = "not linked to the master" if node.session_id else node.state.name.lower()
        return (
            f"{node.node_id} is {state} (last heartbeat {silent_s:.0f} s ago): "
            "its objects cannot be copied before it returns"
        )
    if left == 0:
        return "" if node.refuses_writes else f"{node.node_id} finishes its last writes"
    if cluster.rebuilding:
        return f"the master waits for {', '.join(sorted(cluster.awaited))} to announce its objects"
    if settings.repair_copies == 0:
        return f"{left:,} objects are not copied while repair_copies is 0"
    if drain_takers(settings, cluster, node, now_ms):
        return ""
    others = [n for n in cluster.nodes.values() if n.node_id != node.node_id]
    states = ", ".join(
        f"{n.node_id} is {n.state.name.lower()}"
        if n.endpoints.tcp or not n.session_id
        else f"{n.node_id} has no tcp transport"
        for n in sorted(others, key=lambda n: n.node_id)
    )
    return f"nowhere to move {left:,} objects: {states or 'there is no other node'}"


def _with(cluster: Cluster, node: Node) -> Cluster:
    nodes = cluster.nodes.copy()  # at once; {**nodes} looks every key up
    nodes[node.node_id] = node
    return replace(cluster, nodes=MappingProxyType(nodes))


def _without(cluster: Cluster, node: Node) -> Cluster:
    others = {k: v for k, v in cluster.nodes.items() if k != node.node_id}
    return replace(cluster, nodes=MappingProxyType(others))


def _set(settings: Settings, node: Node, now_ms: int) -> SetNode:
    return SetNode(node, node.state, weight(settings, node, now_ms))


def _published(settings: Settings, before: Endpoints, wanted: Endpoints) -> Endpoints:
    """Return what others may be told of a node's endpoints.

    A Unix socket is not verified: only clients of its host reach it, and they check who answers.
    """
    if not settings.verify_endpoints or wanted.tcp in ("", before.tcp):
        return wanted
    return before


def next_epoch(cluster: Cluster, event: Register) -> int:
    """Return the epoch of a starting process: above all that the node or its memory had."""
    known = cluster.nodes.get(event.node_id)
    # Its memory may hold an epoch that the master has forgotten with the node.
    return max(known.node_epoch if known else 0, event.kept_epoch) + 1


def _conflict(known: Node, event: Register, now_ms: int) -> str:
    """Say why another process may not be replaced, or superseded this one; empty: it may go on."""
    if known.incarnation == event.incarnation:
        return ""
    if event.node_epoch and (event.stage is Stage.AT_ONCE or event.node_epoch <= known.node_epoch):
        # The earlier process must not fight for the name, and no two may have one epoch.
        return f"another process now runs as node {event.node_id!r}"
    # The same segment proves that the process before is dead: it held the lock of the folder.
    another = known.segment_id and event.segment_id and known.segment_id != event.segment_id
    if known.linked and another and not event.take_over:
        age_s = max(0, now_ms - known.last_seen_ms) / 1000
        return (
            f"node {event.node_id!r} is alive at {known.endpoints.tcp or known.endpoints.unix} "
            f"(last heartbeat {age_s:.1f} s ago) with another segment: set another node_id, or "
            "start with --take-over to replace it"
        )
    return ""


def _register(settings: Settings, cluster: Cluster, event: Register, now_ms: int) -> Outcome:
    known = cluster.nodes.get(event.node_id)
    conflict = _conflict(known, event, now_ms) if known else ""
    if conflict:
        return cluster, [Refuse(Status.AlreadyExists, conflict)]
    if known is None and len(cluster.nodes) >= MAX_NODES:
        return cluster, [
            Refuse(Status.Overloaded, f"the limit of {MAX_NODES} known nodes is reached")
        ]
    if event.stage is Stage.PREPARE:
        return cluster, []
    begins = event.stage is Stage.ENTER or event.node_epoch == 0
    same = known is not None and known.incarnation == event.incarnation
    last_epoch = max(known.node_epoch if known else 0, event.kept_epoch)
    node_epoch = max(last_epoch, event.node_epoch) if event.node_epoch else last_epoch + 1
    stays = known is not None and same and known.node_epoch == node_epoch
    before = known.published if known and stays else Endpoints()
    node = Node(
        node_id=event.node_id,
        node_epoch=node_epoch,
        incarnation=event.incarnation,
        session_id=event.session_id,
        session_ms=now_ms,
        joined_ms=known.joined_ms if known and (same or not begins) else now_ms,
        last_seen_ms=now_ms,
        heartbeat_ms=heartbeat_ms(settings, cluster),
        draining=known.draining if known else False,
        endpoints=event.endpoints,
        published=_published(settings, before, event.endpoints),
        labels=event.labels,
        segments=event.segments,
        capacity_bytes=sum(s.capacity_bytes for s in event.segments if s.tier != TIER_NVME),
        persisted_ms=now_ms,
        segment_id=event.segment_id,
    )
    keeps = bool(event.kept_epoch) or any(s.tier == TIER_NVME for s in event.segments)
    fresh = known is None and begins and not keeps
    opened = OpenSession(node, fresh)
    return _with(cluster, node), [Persist(node), opened, _set(settings, node, now_ms)]


def _forget(cluster: Cluster, event: ForgetNode) -> Outcome:
    node = cluster.nodes.get(event.node_id)
    if node is None:
        return cluster, [Refuse(Status.NotFound, f"no node {event.node_id!r}")]
    if node.session_id != 0:
        return cluster, []
    return _without(cluster, node), [Forget(node.node_id)]


def _session(cluster: Cluster, node_id: str, session_id: int) -> Node | None:
    node = cluster.nodes.get(node_id)
    return node if node and node.session_id == session_id != 0 else None


_NO_SESSION = Refuse(Status.NotFound, "no such session; register again")


def _heartbeat(settings: Settings, cluster: Cluster, event: Heartbeat, now_ms: int) -> Outcome:
    node = _session(cluster, event.node_id, event.session_id)
    if node is None:
        return cluster, [_NO_SESSION]
    node = replace(
        node,
        last_seen_ms=now_ms,
        heartbeat_ms=heartbeat_ms(settings, cluster),
        labels=event.labels or node.labels,
        capacity_bytes=event.capacity_bytes,
        used_bytes=event.used_bytes,
        index_entries=event.index_entries,
        index_limit=event.index_limit,
        endpoints=event.endpoints,
        published=_published(settings, node.published, event.endpoints),
        problem=node.problem if event.endpoints.tcp == node.endpoints.tcp else "",
        segments=event.segments,
        refuses_writes=event.refuses_writes,
        activity=event.activity,
        snapshot=event.snapshot,
        health=event.health,
    )
    decisions: list[Decision] = []
    # The retention counts from the last call: the record must not grow old while the node lives.
    if now_ms - node.persisted_ms >= settings.retention_ms // 24:
        node = replace(node, persisted_ms=now_ms)
        decisions.append(Persist(node))
    if not node.linked:
        decisions.append(Heard(node.node_id))
    return _with(cluster, node), [*decisions, _set(settings, node, now_ms)]


def _end_session(
    settings: Settings,
    cluster: Cluster,
    node: Node,
    now_ms: int,
    left: bool,
    returns_by_ms: int = 0,
) -> Outcome:
    gone = replace(
        node,
        session_id=0,
        linked=False,
        synced=False,
        used_bytes=0,
        left=left,
        returns_by_ms=returns_by_ms,
        persisted_ms=now_ms,
    )
    # The disk comes second here: a full disk must not keep a dead node in placement.
    return _with(cluster, gone), [_set(settings, gone, now_ms), Persist(gone)]


def _unregister(settings: Settings, cluster: Cluster, event: Unregister, now_ms: int) -> Outcome:
    node = _session(cluster, event.node_id, event.session_id)
    if node is None:
        return cluster, [_NO_SESSION]
    # What a draining one held is elsewhere: nobody has to wait for it.
    wait_ms = 0 if node.draining else min(event.returns_in_ms, MAX_RESTART_MS)
    by_ms = now_ms + wait_ms if wait_ms else 0
    return _end_session(settings, cluster, node, now_ms, left=True, returns_by_ms=by_ms)


def _drain(settings: Settings, cluster: Cluster, event: Drain, now_ms: int) -> Outcome:
    node = cluster.nodes.get(event.node_id)
    if node is None:
        return cluster, [Refuse(Status.NotFound, f"no node {event.node_id!r}")]
    if node.draining is not event.cancel:
        return cluster, []
    node = replace(node, draining=not event.cancel, refuses_writes=False, persisted_ms=now_ms)
    return _with(cluster, node), [Persist(node), _set(settings, node, now_ms)]


def _request_snapshot(cluster: Cluster, event: RequestSnapshot) -> Outcome:
    node = cluster.nodes.get(event.node_id)
    if node is None or node.session_id == 0:
        return cluster, [Refuse(Status.NotFound, f"node {event.node_id!r} is not registered")]
    return _with(cluster, replace(node, snapshot_request=node.snapshot_request + 1)), []


def _observe(settings: Settings, cluster: Cluster, event: Observe, now_ms: int) -> Outcome:
    node = cluster.nodes.get(event.node_id)
    if node is None or (node.linked, node.synced) == (event.linked, event.synced):
        return cluster, []
    node = replace(node, linked=event.linked, synced=event.synced)
    return _with(cluster, node), [_set(settings, node, now_ms)]


def _verified(settings: Settings, cluster: Cluster, event: Verified, now_ms: int) -> Outcome:
    node = _session(cluster, event.node_id, event.session_id)
    if node is None or node.endpoints.tcp != event.tcp:
        return cluster, []
    if event.problem:
        return _with(cluster, replace(node, problem=event.problem)), []
    node = replace(node, published=node.endpoints, problem="")
    return _with(cluster, node), [_set(settings, node, now_ms)]


def _tick(settings: Settings, cluster: Cluster, now_ms: int) -> Outcome:
    decisions: list[Decision] = []
    cluster = _excuse(settings, cluster, now_ms)
    for node in list(cluster.nodes.values()):
        silent_ms = now_ms - node.last_seen_ms
        # After a reload a node may still follow the longer interval that it was told before.
        ttl_ms = max(settings.node_ttl_ms, 2 * node.heartbeat_ms)
        if node.session_id and silent_ms >= ttl_ms:
            cluster, more = _end_session(settings, cluster, node, now_ms, left=False)
            decisions += more
        elif node.returns_by_ms and now_ms >= node.returns_by_ms:
            node = replace(node, returns_by_ms=0)
            cluster = _with(cluster, node)
            decisions.append(_set(settings, node, now_ms))
        elif not node.session_id and silent_ms >= _kept_ms(settings, cluster, node):
            cluster = _without(cluster, node)
            decisions.append(Forget(node.node_id))
        elif node.session_id and now_ms - node.joined_ms <= settings.slow_start_ms + _TICK_SLACK_MS:
            decisions.append(_set(settings, node, now_ms))  # the slow start changes the weight
    cluster, more = _rebuild(settings, cluster, now_ms)
    decisions += more
    decisions.append(SetCopyRate(0 if cluster.rebuilding else settings.repair_copies))
    decisions.append(SetLinkSilence(link_silence_ms(settings, cluster)))
    return cluster, decisions


def _kept_ms(settings: Settings, cluster: Cluster, node: Node) -> int:
    """Time after which a dead node, and the removes that it has not applied, are forgotten."""
    awaited = cluster.rebuilding and node.node_id in cluster.awaited
    return settings.node_ttl_ms if node.ephemeral and not awaited else settings.retention_ms


def _excuse(settings: Settings, cluster: Cluster, now_ms: int) -> Cluster:
    """Extend the nodes' TTLs by the time that the master itself did not run (stopped, starved)."""
    deaf_ms = now_ms - cluster.ticked_ms - settings.heartbeat_ms
    nodes = cluster.nodes
    if deaf_ms > 0:
        nodes = MappingProxyType(
            {
                node_id: replace(node, last_seen_ms=min(now_ms, node.last_seen_ms + deaf_ms))
                if node.session_id
                else node
                for node_id, node in nodes.items()
            }
        )
    return replace(cluster, nodes=nodes, ticked_ms=now_ms)


def _rebuild(settings: Settings, cluster: Cluster, now_ms: int) -> Outcome:
    """End the rebuild once every known node has announced or its TTL has passed."""
    if not cluster.rebuilding:
        return cluster, []
    in_time = now_ms - cluster.started_ms < settings.node_ttl_ms
    waiting, missing = set(), set()
    for node_id in cluster.awaited:
        node = cluster.nodes.get(node_id)
        if node and node.session_id:
            # A node that registers but never gets its link up must not delay all puts.
            if not node.synced and (node.linked or now_ms - node.session_ms < settings.node_ttl_ms):
                waiting.add(node_id)
        elif in_time and node:
            waiting.add(node_id)
        else:
            missing.add(node_id)
    if waiting:
        return replace(cluster, awaited=frozenset(waiting | missing)), []
    done = replace(cluster, rebuilding=False, awaited=frozenset())
    return done, [FinishRebuild(tuple(sorted(missing)))]
