"""Interface of the native side for the node: ``kvstore._native.NodeCore`` and a probe.

The agent is written against these protocols, so that its unit tests need no extension. All calls
are thread-safe and release the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from kvstore.refusals import Refusal
from kvstore.security import NativePrincipal
from kvstore.sessions import CoreSession

if TYPE_CHECKING:
    from kvstore._native import NodeOptions, NodeTunables


class MasterHello(TypedDict):
    """A master's hello on its block port."""

    cluster_id: str
    master_epoch: int
    grpc_endpoint: str
    http_endpoint: str


class Uses(TypedDict):
    """Uses of sampled keys, as UseSample of node.proto describes them."""

    level: int
    records: bytes
    hits: int
    puts: int
    lost: int


CoreSpan = tuple[bytes, bytes, bytes, int, int, int, int, int, int]
"""Trace id, parent's id, id, kind, beginning (µs since 1970), length in µs, keys, found, bytes."""


class Probe(Protocol):
    """``kvstore._native.probe_master``: exchange hellos with a master."""

    def __call__(
        self, address: str, *, role: int, principal: str, token: str, timeout_ms: int
    ) -> MasterHello:
        """Raise UnavailableError without an answer, UnauthenticatedError when refused."""


class NodeCoreApi(Protocol):
    """The native node: block store, servers for clients and peers, link to the master."""

    def start(self) -> tuple[str, str]:
        """Listen and connect to the master; the bound TCP and Unix endpoints, "" for none."""

    def set_session(self, session_id: int, master_endpoints: list[str]) -> None:
        """Reconnect under a new registration."""

    def sessions(self) -> list[CoreSession]:
        """Sessions of the block port, and the link to the master."""

    def end_sessions(self, ids: Sequence[int], reason: str) -> int:
        """End some of them; how many there were."""

    def set_principals(self, principals: list[NativePrincipal]) -> None:
        """Replace the principals that may connect."""

    def set_credentials(self, principal: str, token: str) -> None:
        """Set the node's credentials for further connections."""

    def set_tunables(self, tunables: NodeTunables) -> None:
        """Set parameters that may change while it serves, for new reservations and connections."""

    def set_draining(self, draining: bool) -> None:
        """Refuse new objects, or accept them again."""

    def link_state(self) -> str:
        """Return "down", "syncing" or "up"."""

    def heartbeat(self, request: bytes, timeout_ms: int) -> bytes:
        """Send a HeartbeatRequest over the link to the master; return its HeartbeatReply.

        Raise UnavailableError when it did not go over the link, or nothing came back in time; else
        what the master raised.
        """

    def stats(self) -> dict[str, Any]:
        """Counters and histograms, for metrics and heartbeats."""

    def take_uses(self, level: int) -> Uses:
        """Return the uses of sampled keys since the last call; sample at `level` from now on."""

    def take_prefixes(self) -> list[tuple[str, str, str, int, int]]:
        """Return tenant, namespace, first key, reads and bytes of the chains read most since."""

    def take_spans(self) -> list[CoreSpan]:
        """Return the spans of traced requests that finished since the last call."""

    def client_counters(self) -> list[dict[str, Any]]:
        """Counters of the clients of this host."""

    def stop(self) -> None:
        """Close everything; idempotent."""

    def snapshot(self, timeout_ms: int) -> dict[str, int]:
        """Write DRAM-only objects to NVMe: {objects, bytes, left}.

        Raise UnsupportedError without an NVMe tier, OverloadedError while another snapshot is being
        written, the NVMe tier's own error when it is not active.
        """

    def audit(self) -> None:
        """Check the store's invariants; slow. Raise KvstoreError when one is violated."""

    def take_refusals(self) -> list[Refusal]:
        """Return peers refused since the last call (kvstore.refusals)."""

    def damage(self) -> str:
        """Describe what another process has done to the shared memory; "" while it is whole."""

    def take_lost_clients(self) -> list[str]:
        """Return clients that spoiled their slots since the last call, a phrase each."""

    def segment_descriptor(self, domain: int) -> int:
        """Return a writable descriptor of a domain's segment, which the caller closes."""

    def adopt_ucx(self, domain: int, socket: int) -> None:
        """Serve the UCX process of a domain; owns the socket."""

    def ucx_ended(self, domain: int) -> None:
        """Note that this process has ended, and can write into the segment no more."""

    def beginning(self) -> dict[str, Any]:
        """Describe what was taken over from an earlier process of the node."""

    def close(self, *, remove_files: bool = False) -> None:
        """Release the memory; its files stay for the next process or are removed. After stop."""


class SegmentFilesApi(Protocol):
    """``kvstore._native.SegmentFiles``: the node's folder, locked."""

    @property
    def kept_epoch(self) -> int:
        """Epoch of the process that wrote the files; 0 without any."""


class SegmentFilesFactory(Protocol):
    """``kvstore._native.SegmentFiles``."""

    def __call__(
        self, directory: str, domains: list[str], *, discard_foreign: bool
    ) -> SegmentFilesApi:
        """Lock the folder; raise UnavailableError when another process holds it."""


class NodeCoreFactory(Protocol):
    """``kvstore._native.NodeCore``."""

    def __call__(self, options: NodeOptions, *, files: SegmentFilesApi | None) -> NodeCoreApi:
        """Create segment and store; nothing listens yet."""
