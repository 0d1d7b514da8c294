"""Converts between wire messages and policy values; checks every limit on the way in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvstore import limits
from kvstore._proto import master_pb2, node_pb2, types_pb2
from kvstore.activity import FAMILIES, OPERATIONS, Activity, Labels
from kvstore.errors import InvalidArgumentError, TooLargeError
from kvstore.master import model
from kvstore.master.core_api import CoreEvent, CoreNamespace, CoreNode, CoreObject
from kvstore.master.hard_state import Where
from kvstore.metrics import Latency
from kvstore.scopes import Need, Verb
from kvstore.security import Principal
from kvstore.text import printable

_EVENT_KINDS = {
    "publish": master_pb2.WatchEvent.KIND_PUBLISH,
    "withdraw": master_pb2.WatchEvent.KIND_WITHDRAW,
    "remove": master_pb2.WatchEvent.KIND_REMOVE,
    "flush": master_pb2.WatchEvent.KIND_FLUSH,
    "node": master_pb2.WatchEvent.KIND_NODE,
}
_EVENT_BITS = 40


def check_node_id(node_id: str) -> str:
    """Return a node id that is not empty and within the limits, or raise InvalidArgumentError."""
    if not node_id or not limits.is_valid_name(node_id):
        raise InvalidArgumentError("node_id is empty, too long or has control characters")
    return node_id


def check_namespace(namespace: types_pb2.Namespace) -> tuple[str, str]:
    """Return tenant and name, or raise InvalidArgumentError."""
    if not namespace.tenant or not limits.is_valid_name(namespace.tenant):
        raise InvalidArgumentError("namespace.tenant is empty, too long or has control characters")
    if not limits.is_valid_name(namespace.name):
        raise InvalidArgumentError("namespace.name is too long or has control characters")
    return namespace.tenant, namespace.name


def check_keys(keys: Sequence[str]) -> list[str]:
    """Return the keys as a list, or raise TooLargeError or InvalidArgumentError."""
    if len(keys) > limits.MAX_BATCH_KEYS:
        raise TooLargeError(f"{len(keys)} keys; at most {limits.MAX_BATCH_KEYS}")
    for position, key in enumerate(keys):
        if not limits.is_valid_key(key):
            raise InvalidArgumentError(f"keys[{position}] is not 1 to 1024 bytes long")
    return list(keys)


def check_timeout(timeout_ms: int) -> int:
    """Return the time-out, the default for 0, or raise InvalidArgumentError."""
    if timeout_ms > limits.MAX_TIMEOUT_MS:
        raise InvalidArgumentError(f"timeout_ms is above {limits.MAX_TIMEOUT_MS}")
    return timeout_ms or limits.DEFAULT_TIMEOUT_MS


def endpoints_from(wire: types_pb2.Endpoints) -> model.Endpoints:
    """Read a node's endpoints."""
    found = model.Endpoints(tcp=wire.tcp, unix=wire.unix, http=wire.http)
    for text in (found.tcp, found.unix, found.http):
        if len(text.encode()) > limits.MAX_ENDPOINT_BYTES:
            raise InvalidArgumentError("an endpoint is too long")
    return found


def segments_from(wire: Sequence[types_pb2.Segment]) -> tuple[model.Segment, ...]:
    """Read a node's segments."""
    if len(wire) > limits.MAX_SEGMENTS:
        raise TooLargeError(f"{len(wire)} segments; at most {limits.MAX_SEGMENTS}")
    return tuple(model.Segment(s.name, int(s.tier), s.capacity_bytes) for s in wire)


def register_from(wire: node_pb2.RegisterRequest, session_id: int) -> model.Register:
    """Read a registration; `session_id` is the one that it would get."""
    if wire.incarnation == 0:
        raise InvalidArgumentError("incarnation is 0")
    if wire.node_epoch > limits.MAX_EPOCH or wire.kept_epoch >= limits.MAX_EPOCH:
        raise InvalidArgumentError(f"node_epoch or kept_epoch is above {limits.MAX_EPOCH}")
    return model.Register(
        node_id=check_node_id(wire.node_id),
        incarnation=wire.incarnation,
        node_epoch=wire.node_epoch,
        kept_epoch=wire.kept_epoch,
        session_id=session_id,
        endpoints=endpoints_from(wire.endpoints),
        labels=labels_from(wire.labels),
        segments=segments_from(wire.segments),
        stage=_stage_from(wire),
        segment_id=wire.segment_id,
        take_over=wire.take_over,
    )


def _stage_from(wire: node_pb2.RegisterRequest) -> model.Stage:
    try:
        stage = model.Stage(wire.stage)
    except ValueError:
        raise InvalidArgumentError(f"unknown stage {wire.stage}") from None
    if (stage is model.Stage.PREPARE) != (wire.node_epoch == 0) and stage is not (
        model.Stage.AT_ONCE
    ):
        raise InvalidArgumentError("node_epoch belongs to STAGE_ENTER, and not to STAGE_PREPARE")
    return stage


def labels_from(wire: Mapping[str, str]) -> dict[str, str]:
    """Read a node's labels."""
    labels = dict(wire)
    if len(labels) > limits.MAX_LABELS or not all(
        map(limits.is_valid_name, [*labels, *labels.values()])
    ):
        raise InvalidArgumentError("labels: too many, or one is invalid")
    return labels


def activity_from(wire: node_pb2.Activity) -> Activity:
    """Read a node's activity; unknown families and operations are ignored.

    Lists are taken by slices, in one step each: this is most of what a heartbeat costs.
    """
    for name, rows, limit in (
        ("counters", len(wire.counters), limits.MAX_ACTIVITY_COUNTERS),
        ("latencies", len(wire.latencies), limits.MAX_ACTIVITY_LATENCIES),
    ):
        if rows > limit:
            raise TooLargeError(f"activity.{name}: {rows}; at most {limit}")
    counters: dict[tuple[str, Labels], int] = {}
    for counter in wire.counters:
        name, labels = counter.family, tuple(counter.labels[:])
        family = FAMILIES.get(name)
        if family is None or len(family.labels) != len(labels):
            continue
        if not all(map(limits.is_valid_name, labels)):
            raise InvalidArgumentError(f"activity: a label of {name} is invalid")
        counters[name, labels] = counter.value
    latencies: dict[str, Latency] = {}
    for latency in wire.latencies:
        bounds, counts = latency.bounds_us[:], latency.counts[:]
        if len(bounds) > limits.MAX_ACTIVITY_BUCKETS or len(bounds) != len(counts):
            raise InvalidArgumentError("activity: too many buckets, or bounds without counts")
        if bounds != sorted(bounds):
            raise InvalidArgumentError("activity: the bounds are not ascending")
        if latency.operation in OPERATIONS:
            latencies[latency.operation] = Latency(
                tuple(zip(bounds, counts, strict=True)), latency.sum_us
            )
    return Activity(counters, latencies)


def heartbeat_from(wire: node_pb2.HeartbeatRequest) -> model.Heartbeat:
    """Read a heartbeat."""
    return model.Heartbeat(
        node_id=check_node_id(wire.node_id),
        session_id=wire.session_id,
        capacity_bytes=wire.capacity_bytes,
        used_bytes=wire.used_bytes,
        index_entries=wire.index_entries,
        index_limit=wire.index_limit,
        endpoints=endpoints_from(wire.endpoints),
        segments=segments_from(wire.segments),
        refuses_writes=wire.refuses_writes,
        activity=activity_from(wire.activity),
        labels=labels_from(wire.labels),
        snapshot=snapshot_from(wire.snapshot),
        health=health_from(wire.health),
    )


def health_from(wire: node_pb2.NodeHealth) -> model.Health:
    """Read what a node says of itself; texts are truncated."""
    nvme = wire.nvme
    return model.Health(
        software_version=_brief(wire.software_version),
        lacks=tuple(map(_brief, wire.lacks[: limits.MAX_LACKS])),
        config_refused=_brief(wire.config_refused),
        nvme=model.Nvme(_brief(nvme.state), nvme.capacity_bytes, nvme.object_bytes, nvme.objects)
        if wire.HasField("nvme")
        else None,
    )


def _brief(text: str) -> str:
    return printable(text[: limits.MAX_NAME_BYTES])


def snapshot_from(wire: types_pb2.SnapshotProgress) -> model.Snapshot:
    """Read a snapshot's progress; its error is truncated."""
    return model.Snapshot(
        request=wire.request,
        done=wire.done,
        objects=wire.objects,
        bytes=wire.bytes,
        left=wire.left,
        error=wire.error[: limits.MAX_NAME_BYTES],
    )


def snapshot_to(snapshot: model.Snapshot) -> types_pb2.SnapshotProgress:
    """Describe a snapshot's progress."""
    return types_pb2.SnapshotProgress(
        request=snapshot.request,
        done=snapshot.done,
        objects=snapshot.objects,
        bytes=snapshot.bytes,
        left=snapshot.left,
        error=snapshot.error,
    )


def state_to(state: model.NodeState) -> types_pb2.NodeState.ValueType:
    """Convert a state to the wire's, where 0 is "unspecified".

    A restarting node is a dead one there, with the time left beside it: older tools know no more.
    """
    if state is model.NodeState.RESTARTING:
        state = model.NodeState.DEAD
    return types_pb2.NodeState.ValueType(int(state) + 1)


def node_to(
    node: model.Node, core: CoreNode | None, weight: float, drain_left: int, now_ms: int
) -> types_pb2.NodeInfo:
    """Describe a node.

    Args:
        node: the policy's record.
        core: the native side's record, if there is one.
        weight: its share of new writes.
        drain_left: objects that only it holds; 0 unless it is draining.
        now_ms: the time.
    """
    return types_pb2.NodeInfo(
        node_id=node.node_id,
        state=state_to(node.state),
        endpoints=types_pb2.Endpoints(
            tcp=node.endpoints.tcp, unix=node.endpoints.unix, http=node.endpoints.http
        ),
        labels=dict(node.labels),
        capacity_bytes=node.capacity_bytes,
        used_bytes=node.used_bytes,
        index_entries=node.index_entries,
        index_limit=node.index_limit,
        objects=core["replicas"] if core else 0,
        weight=weight,
        node_epoch=node.node_epoch,
        last_heartbeat_age_ms=max(0, now_ms - node.last_seen_ms),
        drain_left_objects=drain_left,
        segments=[
            types_pb2.Segment(
                name=s.name, tier=types_pb2.Tier.ValueType(s.tier), capacity_bytes=s.capacity_bytes
            )
            for s in node.segments
        ],
        linked=node.linked,
        endpoint_problem=node.problem,
        restarting_ms=max(1, node.returns_by_ms - now_ms) if node.returns_by_ms else 0,
    )


def inspect_to(found: CoreObject) -> master_pb2.InspectReply:
    """Describe an object. The native side numbers tiers from 0, the wire from 1."""
    return master_pb2.InspectReply(
        size_bytes=found["size"],
        version=found["version"],
        pin=types_pb2.Pin.ValueType(found["pin"]),
        created_unix_ms=found["created_ms"],
        replicas=[
            types_pb2.Replica(
                node_id=replica["node_id"], tier=types_pb2.Tier.ValueType(replica["tier"] + 1)
            )
            for replica in found["replicas"]
        ],
        ttl_left_ms=found["ttl_left_ms"],
        replicas_wanted=found["replicas_wanted"],
    )


def namespace_to(one: CoreNamespace) -> master_pb2.NamespaceInfo:
    """Describe what a namespace holds."""
    return master_pb2.NamespaceInfo(
        namespace=types_pb2.Namespace(tenant=one["tenant"], name=one["namespace"]),
        epoch=one["epoch"],
        objects=one["objects"],
        bytes=one["bytes"],
        keys_looked_up=one["keys_looked_up"],
        keys_found=one["keys_found"],
    )


def watch_filter(request: master_pb2.WatchRequest) -> tuple[str, str] | None:
    """Return the namespace a watch is restricted to, None for all."""
    return check_namespace(request.namespace) if request.HasField("namespace") else None


def events_to(
    events: Iterable[CoreEvent], wanted: tuple[str, str] | None, principal: Principal
) -> list[master_pb2.WatchEvent]:
    """Convert events to the wire's.

    Args:
        events: from the ring.
        wanted: only those of this namespace (and of nodes); None for all.
        principal: the watcher; events of what it may not watch are left out.
    """
    return [
        master_pb2.WatchEvent(
            kind=_EVENT_KINDS[kind],
            namespace=types_pb2.Namespace(tenant=tenant, name=name),
            key=key,
            version=version,
            size_bytes=size,
            node_id=node_id,
        )
        for kind, tenant, name, key, version, size, node_id in events
        if kind == "node"
        or (wanted in (None, (tenant, name)) and _may_hear(principal, tenant, key))
    ]


def _may_hear(principal: Principal, tenant: str, key: str) -> bool:
    """Say whether a watcher may know of an event; those of a whole namespace have no key."""
    if not principal.is_limited():
        return principal.may_use(tenant)
    return principal.may(tenant, Need(Verb.WATCH, [key] if key else ()))


def cursor_to(master_epoch: int, number: int) -> int:
    """Make a cursor that is valid for this epoch of the master only."""
    return master_epoch << _EVENT_BITS | number


def cursor_from(master_epoch: int, cursor: int) -> int:
    """Read a cursor; 0 (start over) when it is of another epoch."""
    epoch, number = cursor >> _EVENT_BITS, cursor & ((1 << _EVENT_BITS) - 1)
    return number if epoch == master_epoch else 0


def standby_to(where: Where) -> master_pb2.Standby:
    """A master that stands by, as it told."""
    return master_pb2.Standby(
        host=str(where.get("host", "")),
        block_endpoint=str(where.get("block", "")),
        http_endpoint=str(where.get("http", "")),
    )
