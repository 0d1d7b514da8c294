"""Interface of the native master for the control plane; ``kvstore._native.MasterCore`` has it.

Policy and services are written against this protocol, so that their unit tests need no extension.
All calls are thread-safe and release the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

from kvstore.audit import Deed
from kvstore.refusals import Refusal
from kvstore.security import NativePrincipal
from kvstore.sessions import CoreSession


class CoreNode(TypedDict):
    """A node as the native side sees it."""

    node_id: str
    connected: bool
    synced: bool
    applied_seq: int
    replicas: int


CoreEvent = tuple[str, str, str, str, int, int, str]
"""Kind (publish, withdraw, remove, flush, node), tenant, namespace, key, version, size, node id."""


CoreHeartbeat = tuple[int, int, str, int, bytes]
"""Link, request, the link's node id and session, and a HeartbeatRequest that nobody has read."""


class CoreReplica(TypedDict):
    """One copy of an object."""

    node_id: str
    tier: int
    state: int
    """Of the node: NodeState of native types.h."""


class CoreObject(TypedDict):
    """The directory's record of an object."""

    size: int
    version: int
    pin: int
    created_ms: int
    ttl_left_ms: int
    """0: it does not expire."""
    replicas_wanted: int
    replicas: list[CoreReplica]


class CoreNamespace(TypedDict):
    """What a namespace holds now, and the keys of lookups since the master's start."""

    tenant: str
    namespace: str
    epoch: int
    objects: int
    bytes: int
    keys_looked_up: int
    keys_found: int


class MasterCoreApi(Protocol):
    """The native master: directory, claims, operations log, copies and the block port."""

    def start(self) -> list[str]:
        """Listen; returns the bound endpoints."""

    def stop(self) -> None:
        """Close the port and end all waits."""

    def take_refusals(self) -> list[Refusal]:
        """Return peers refused since the last call (kvstore.refusals)."""

    def sessions(self) -> list[CoreSession]:
        """Sessions of the block port."""

    def end_sessions(self, ids: Sequence[int], reason: str) -> int:
        """End some of them; how many there were."""

    def keep_deeds(self, wanted: bool) -> None:
        """Say whether take_deeds() will be called; until then there are none."""

    def take_deeds(self) -> tuple[list[Deed], int]:
        """Return what was done over the block protocol since the last call (kvstore.audit)."""

    def set_principals(self, principals: list[NativePrincipal]) -> None:
        """Replace the principals that may connect."""

    def set_principal_share(self, share: float) -> None:
        """Set the largest share of sessions and waiting calls that one principal may hold."""

    def set_tenant_namespaces(self, most: int) -> None:
        """Set how many namespaces the clients of one tenant may create."""

    def set_endpoints(
        self, grpc_endpoint: str, http_endpoint: str, tls_grpc_endpoint: str = ""
    ) -> None:
        """Set the endpoints that the hello announces."""

    def register_node(
        self,
        node_id: str,
        session_id: int,
        node_epoch: int,
        tcp_endpoint: str,
        unix_endpoint: str,
        host: str,
        weight: int,
        capacity_bytes: int,
        free_bytes: int = 0,
        state: int = 0,
        known: bool = False,
        fresh: bool = False,
        locality: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        """Accept a node's link under this session.

        Args:
            node_id: of the node.
            session_id: that its link must present.
            node_epoch: of its process.
            tcp_endpoint: where it serves.
            unix_endpoint: where it serves on its host.
            host: label of its host.
            weight: its share of copies, in thousandths.
            capacity_bytes: of its memory.
            free_bytes: of its memory.
            state: NodeState.
            known: a node of an earlier epoch of the master.
            fresh: a new node with new memory; no remove or flush waits for what it may hold.
            locality: labels numa, rack and rdma_domain, which clients are told.
        """

    def set_node(
        self, node_id: str, state: int, weight: int, free_bytes: int, capacity_bytes: int
    ) -> None:
        """Set a node's state; weight in thousandths."""

    def node_heard(self, node_id: str) -> None:
        """Count what a node without a link holds again: its heartbeat has come."""

    def set_node_endpoints(
        self,
        node_id: str,
        tcp_endpoint: str,
        unix_endpoint: str,
        host: str,
        locality: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        """Set a node's endpoints and host."""

    def remove_node(self, node_id: str) -> None:
        """Forget a node and its replicas."""

    def nodes(self) -> list[CoreNode]:
        """Every registered node."""

    def link_of(self, node_id: str) -> tuple[bool, bool]:
        """Whether a node's link is up, and whether it has announced everything."""

    def links_id(self) -> int:
        """Return a number that changes with the state of any node's link."""

    def set_link_silence(self, silence_ms: int) -> None:
        """End links that bring nothing for that time; 0: never."""

    def finish_rebuild(self) -> None:
        """Grant the claims that waited for the end of the rebuild."""

    def set_copy_policy(self, *, copies_per_s: float | None = None) -> None:
        """Limit the copies for replicas, repair and drain."""

    def drain_left(self, node_id: str) -> tuple[int, int]:
        """Count the objects that no other living, not draining node holds, and their bytes."""

    def under_replicated(self) -> int:
        """Readable objects with fewer living replicas than wanted."""

    def load_ops(self, records: list[bytes]) -> None:
        """Restore the log of earlier epochs, in order, before start."""

    def set_namespace_epoch(self, tenant: str, namespace: str, epoch: int) -> None:
        """Restore a namespace's epoch, before load_ops."""

    def namespaces(self) -> list[tuple[str, str, int]]:
        """Tenant, name and epoch of every namespace."""

    def namespace_uses(self) -> list[CoreNamespace]:
        """What every namespace holds, in no order."""

    def take_heartbeats(self, timeout_ms: int) -> list[CoreHeartbeat]:
        """Block until heartbeats have come over links; empty after that time, or a stop."""

    def answer_heartbeats(self, answers: list[tuple[int, int, int, bytes]]) -> None:
        """Answer them: link, request, status, and a HeartbeatReply or what is wrong."""

    def wait_journal(self, timeout_ms: int) -> list[tuple[int, bytes]]:
        """Block until operations must be made durable: (number, record), ascending."""

    def journal_done(self, seq: int) -> None:
        """Everything up to this number is on disk."""

    def set_journal_room(self, bytes: int, refusal: int) -> None:
        """Bytes of operations that may be waiting for the disk, and the Status that more get."""

    def journal_trimmed(self) -> tuple[int, int]:
        """Records up to the first number may be deleted; the second is the version floor."""

    def flush_then(
        self,
        tenant: str,
        namespace: str,
        timeout_ms: int,
        principal: str,
        done: Callable[[int, list[str], int], None],
    ) -> None:
        """Flush a namespace; calls `done` with status, unreached nodes and the new epoch.

        Args:
            tenant: of the namespace.
            namespace: its name.
            timeout_ms: after which it answers in any case.
            principal: whose share of the waiting calls this takes; empty: nobody's.
            done: called once, from any thread, unless this raises.
        """

    def remove_then(
        self,
        tenant: str,
        namespace: str,
        keys: list[str],
        timeout_ms: int,
        principal: str,
        done: Callable[[list[int], list[str]], None],
    ) -> None:
        """Remove keys; calls `done` with the status of each and the unreached nodes."""

    def recorded_then(
        self, tenant: str, namespace: str, keys: list[str], done: Callable[[int], None]
    ) -> None:
        """Call done(status) when all that nodes have answered of these keys is recorded."""

    def list_keys(
        self, tenant: str, namespace: str, prefix: str, cursor: int, limit: int
    ) -> tuple[list[str], int]:
        """A page of keys and the next cursor, 0 at the end."""

    def inspect(self, tenant: str, namespace: str, key: str) -> CoreObject | None:
        """The directory's record of a key."""

    def locate(
        self, tenant: str, namespace: str, keys: list[str]
    ) -> tuple[list[tuple[str, int]], int]:
        """Prefix lengths by node, longest first, and the prefix readable anywhere."""

    def poll_events(self, cursor: int, max_events: int) -> tuple[list[CoreEvent], int, bool]:
        """Events after the cursor, the next cursor, and whether events were lost."""

    def wait_events(self, cursor: int, timeout_ms: int) -> bool:
        """Block until there are events after the cursor; False when the time has passed."""

    def stats(self) -> dict[str, Any]:
        """Counters, for metrics."""
