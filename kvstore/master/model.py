"""What the master's policy knows: the cluster as a value, and the events that change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from kvstore.activity import Activity

TIER_NVME = 2
"""As in types.proto: room below the memory, which placement does not count."""


class NodeState(IntEnum):
    """Life of a node; the numbers are those of NodeState in native types.h."""

    JOINING = 0
    """Registered, does not serve yet."""
    ALIVE = 1
    DRAINING = 2
    """Serves reads, takes no writes, its objects are being copied away."""
    DEAD = 3
    """Missed its heartbeats or left; its replicas are misses until it returns."""


@dataclass(frozen=True)
class Settings:
    """The numbers of the policy; all times in milliseconds."""

    heartbeat_ms: int = 1000
    node_ttl_ms: int = 5000
    retention_ms: int = 24 * 3600 * 1000
    slow_start_ms: int = 30_000
    repair_copies: int = 2000
    """Copies a second."""


@dataclass(frozen=True)
class Endpoints:
    """Where a node is reached; an empty string is "not at all"."""

    tcp: str = ""
    unix: str = ""
    http: str = ""

    @property
    def serving(self) -> bool:
        """Whether anybody can reach the node's blocks."""
        return bool(self.tcp or self.unix)


@dataclass(frozen=True)
class Snapshot:
    """How far a node is with an operator's snapshot."""

    request: int = 0
    """Its number; 0: none was taken up."""
    done: bool = False
    objects: int = 0
    """Written."""
    bytes: int = 0
    left: int = 0
    error: str = ""


@dataclass(frozen=True)
class Segment:
    """A shared-memory region of a node."""

    name: str
    tier: int
    capacity_bytes: int


@dataclass(frozen=True)
class Node:
    """A node as the master knows it. Known nodes that are away have the session 0."""

    node_id: str
    node_epoch: int
    incarnation: int
    last_seen_ms: int
    """Time of its last sign of life."""
    session_id: int = 0
    session_ms: int = 0
    """When that session was opened."""
    heartbeat_ms: int = 0
    """How often it was last told to report."""
    joined_ms: int = 0
    """When its process first came; the slow start counts from here."""
    draining: bool = False
    refuses_writes: bool = False
    """While draining: the node has heard of it and its last write is over."""
    left: bool = False
    """It said goodbye; nobody waits for it after a restart."""
    linked: bool = False
    """Its block-protocol link to this master is up."""
    synced: bool = False
    """It has announced all it holds to this master."""
    capacity_bytes: int = 0
    used_bytes: int = 0
    endpoints: Endpoints = Endpoints()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    segments: tuple[Segment, ...] = ()
    activity: Activity = field(default_factory=Activity)
    """What it told last, for metrics."""
    snapshot_request: int = 0
    """The last one that was asked for in this session; 0: none."""
    snapshot: Snapshot = Snapshot()
    """What the node says of it."""
    persisted_ms: int = 0
    """When its record was last written to disk."""

    @property
    def ephemeral(self) -> bool:
        """Whether it has nothing to come back with: its memory ends with its process."""
        return self.labels.get("ephemeral") == "true"

    @property
    def state(self) -> NodeState:
        """The state that follows from what is known."""
        if self.session_id == 0:
            return NodeState.DEAD
        if not self.endpoints.serving:
            return NodeState.JOINING
        return NodeState.DRAINING if self.draining else NodeState.ALIVE


@dataclass(frozen=True)
class Cluster:
    """The whole state of the policy."""

    started_ms: int
    ticked_ms: int = 0
    """Time of the last tick; at the start that of the start."""
    nodes: Mapping[str, Node] = field(default_factory=lambda: MappingProxyType({}))
    rebuilding: bool = False
    awaited: frozenset[str] = frozenset()
    """While rebuilding: the known nodes that have not announced everything yet."""


@dataclass(frozen=True)
class Register:
    """A node wants a session. `session_id` is fresh, drawn by the caller."""

    node_id: str
    incarnation: int
    node_epoch: int
    session_id: int
    endpoints: Endpoints = Endpoints()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    segments: tuple[Segment, ...] = ()
    kept_epoch: int = 0
    """Of the memory that the node takes over; its new epoch is above."""


@dataclass(frozen=True)
class Heartbeat:
    """A node is alive and says how full it is."""

    node_id: str
    session_id: int
    capacity_bytes: int
    used_bytes: int
    endpoints: Endpoints
    segments: tuple[Segment, ...] = ()
    refuses_writes: bool = False
    activity: Activity = field(default_factory=Activity)
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Empty: as they were."""
    snapshot: Snapshot = Snapshot()


@dataclass(frozen=True)
class Unregister:
    """A node leaves."""

    node_id: str
    session_id: int


@dataclass(frozen=True)
class Drain:
    """An operator wants a node emptied, or no longer."""

    node_id: str
    cancel: bool = False


@dataclass(frozen=True)
class RequestSnapshot:
    """An operator wants what only a node's DRAM has to be written to NVMe."""

    node_id: str


@dataclass(frozen=True)
class Observe:
    """What the native side saw of a node's link."""

    node_id: str
    linked: bool
    synced: bool


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Register | Heartbeat | Unregister | Drain | RequestSnapshot | Observe | Tick
