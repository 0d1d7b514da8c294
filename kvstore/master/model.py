"""The master's policy state: the cluster as a value, and the events that change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from kvstore.activity import Activity

TIER_NVME = 2
"""As in types.proto: the NVMe tier, which placement does not count."""


class Stage(IntEnum):
    """Which call of a node a registration is; the numbers are those of node.proto."""

    AT_ONCE = 0
    """A session at once: another one of a process that has an epoch, or a process of old."""
    PREPARE = 1
    """A starting process asks for its epoch; nothing is recorded."""
    ENTER = 2
    """A starting process has its ports and its memory."""


class NodeState(IntEnum):
    """Life of a node; the numbers are those of NodeState in native types.h."""

    JOINING = 0
    """Registered, not serving yet."""
    ALIVE = 1
    DRAINING = 2
    """Serves reads, refuses writes; its objects are being copied to other nodes."""
    DEAD = 3
    """Missed its heartbeats or left; its replicas are misses until it returns."""
    RESTARTING = 4
    """Announced that it stops and returns: as dead, but awaited until a deadline. Clients of its
    host read its memory meanwhile."""


@dataclass(frozen=True)
class Settings:
    """Parameters of the policy."""

    heartbeat_ms: int = 1000
    node_ttl_ms: int = 5000
    retention_ms: int = 24 * 3600 * 1000
    slow_start_ms: int = 30_000
    repair_copies: int = 2000
    """Copies per second."""
    verify_endpoints: bool = False
    """Whether a node's TCP endpoint is told to others only once it has answered as that node."""


@dataclass(frozen=True)
class Endpoints:
    """Addresses of a node; empty: none."""

    tcp: str = ""
    unix: str = ""
    http: str = ""

    @property
    def serving(self) -> bool:
        """Whether the node's blocks can be reached."""
        return bool(self.tcp or self.unix)


@dataclass(frozen=True)
class Snapshot:
    """Progress of a node's snapshot that an operator requested."""

    request: int = 0
    """Number of the request; 0: none."""
    done: bool = False
    objects: int = 0
    """Objects written."""
    bytes: int = 0
    left: int = 0
    error: str = ""


@dataclass(frozen=True)
class Nvme:
    """A node's NVMe tier."""

    state: str = ""
    capacity_bytes: int = 0
    object_bytes: int = 0
    objects: int = 0


@dataclass(frozen=True)
class Health:
    """What a node says of itself, to be shown; an older node says nothing."""

    software_version: str = ""
    lacks: tuple[str, ...] = ()
    config_refused: str = ""
    """Why its configuration file is not in effect; empty: it is."""
    nvme: Nvme | None = None


@dataclass(frozen=True)
class Segment:
    """A shared-memory region of a node."""

    name: str
    tier: int
    capacity_bytes: int


@dataclass(frozen=True)
class Node:
    """A node as the master knows it. Known nodes without a registration have session 0."""

    node_id: str
    node_epoch: int
    incarnation: int
    last_seen_ms: int
    """Time of its last call."""
    session_id: int = 0
    session_ms: int = 0
    """When the session was opened."""
    heartbeat_ms: int = 0
    """Heartbeat interval that it was last told."""
    joined_ms: int = 0
    """When its process first registered; the slow start counts from here."""
    draining: bool = False
    refuses_writes: bool = False
    """While draining: the node knows it and its last write has finished."""
    left: bool = False
    """It unregistered; a restarted master does not wait for it."""
    linked: bool = False
    """Its block-protocol link to this master is up."""
    synced: bool = False
    """It has announced all of its objects to this master."""
    capacity_bytes: int = 0
    used_bytes: int = 0
    index_entries: int = 0
    """Entries of its index."""
    index_limit: int = 0
    """Entries that its index has or can grow to; 0: unknown."""
    endpoints: Endpoints = Endpoints()
    """As it announces them."""
    published: Endpoints = Endpoints()
    """As others are told: those that were verified last."""
    problem: str = ""
    """Why the announced endpoint is not published; empty while that is not known."""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    segments: tuple[Segment, ...] = ()
    activity: Activity = field(default_factory=Activity)
    """Its last report, for metrics."""
    snapshot_request: int = 0
    """Number of the last snapshot requested in this session; 0: none."""
    snapshot: Snapshot = Snapshot()
    """Its progress, as the node reports it."""
    health: Health = Health()
    persisted_ms: int = 0
    """When its record was last written to disk."""
    returns_by_ms: int = 0
    """Without a registration: until when it is awaited, as it has announced; 0: it is not."""
    segment_id: int = 0
    """Of its segment's folder; 0: unknown."""

    @property
    def ephemeral(self) -> bool:
        """Whether its objects are lost when its process exits."""
        return self.labels.get("ephemeral") == "true"

    @property
    def state(self) -> NodeState:
        """State that follows from the other fields."""
        if self.session_id == 0:
            return NodeState.RESTARTING if self.returns_by_ms else NodeState.DEAD
        if not self.published.serving:
            return NodeState.JOINING
        return NodeState.DRAINING if self.draining else NodeState.ALIVE


@dataclass(frozen=True)
class Cluster:
    """The whole state of the policy."""

    started_ms: int
    ticked_ms: int = 0
    """Time of the last tick; initially that of the start."""
    nodes: MappingProxyType[str, Node] = field(default_factory=lambda: MappingProxyType({}))
    rebuilding: bool = False
    awaited: frozenset[str] = frozenset()
    """While rebuilding: known nodes that have not announced all of their objects yet."""


@dataclass(frozen=True)
class Register:
    """A node registers. `session_id` is fresh, drawn by the caller."""

    node_id: str
    incarnation: int
    node_epoch: int
    session_id: int
    endpoints: Endpoints = Endpoints()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    segments: tuple[Segment, ...] = ()
    kept_epoch: int = 0
    """Epoch of the memory that the node takes over; its new epoch is higher."""
    stage: Stage = Stage.AT_ONCE
    segment_id: int = 0
    """Of the segment's folder, the same after a restart in it; 0: unknown."""
    take_over: bool = False
    """Replace a living process that has another segment."""


@dataclass(frozen=True)
class Heartbeat:
    """A node reports that it is alive, and its usage."""

    node_id: str
    session_id: int
    capacity_bytes: int
    used_bytes: int
    endpoints: Endpoints
    segments: tuple[Segment, ...] = ()
    refuses_writes: bool = False
    activity: Activity = field(default_factory=Activity)
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Empty: unchanged."""
    snapshot: Snapshot = Snapshot()
    index_entries: int = 0
    index_limit: int = 0
    health: Health = Health()


@dataclass(frozen=True)
class Unregister:
    """A node unregisters."""

    node_id: str
    session_id: int
    returns_in_ms: int = 0
    """It restarts, and is expected back with its objects within this time; 0: it leaves."""


@dataclass(frozen=True)
class ForgetNode:
    """An operator drops a dead node."""

    node_id: str


@dataclass(frozen=True)
class Drain:
    """An operator starts or cancels a drain."""

    node_id: str
    cancel: bool = False


@dataclass(frozen=True)
class RequestSnapshot:
    """An operator requests that a node's DRAM-only objects are written to NVMe."""

    node_id: str


@dataclass(frozen=True)
class Observe:
    """State of a node's link, as the native side sees it."""

    node_id: str
    linked: bool
    synced: bool


@dataclass(frozen=True)
class Verified:
    """A node's TCP endpoint was called."""

    node_id: str
    session_id: int
    tcp: str
    problem: str
    """Why it is not the node's; empty: it is."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    Register
    | Heartbeat
    | Unregister
    | ForgetNode
    | Drain
    | RequestSnapshot
    | Observe
    | Verified
    | Tick
)
