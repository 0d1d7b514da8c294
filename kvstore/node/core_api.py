"""What the node's control plane uses of the native side: ``kvstore._native.NodeCore`` and a probe.

The agent is written against these protocols, so that its unit tests need no extension. All calls
are thread-safe and release the GIL.
"""

from __future__ import annotations

from typing import Any, Protocol, TypedDict


class MasterHello(TypedDict):
    """What a master says of itself on its block port."""

    cluster_id: str
    master_epoch: int
    grpc_endpoint: str
    http_endpoint: str


class Probe(Protocol):
    """``kvstore._native.probe_master``: say hello to a master and take its answer."""

    def __call__(
        self, address: str, *, role: int, principal: str, token: str, timeout_ms: int
    ) -> MasterHello:
        """Raise UnavailableError when nobody answers, UnauthenticatedError when refused."""


class NodeCoreApi(Protocol):
    """The native node: block store, servers for clients and peers, link to the master."""

    def start(self) -> tuple[str, str]:
        """Listen and connect to the master; the bound TCP and Unix endpoints, "" for none."""

    def set_session(self, session_id: int, master_endpoints: list[str]) -> None:
        """Reconnect under a new registration."""

    def set_principals(self, principals: list[tuple[str, int, list[str], str]]) -> None:
        """Replace who may connect."""

    def set_credentials(self, principal: str, token: str) -> None:
        """Set how the node presents itself from the next connection on."""

    def set_tunables(
        self,
        *,
        client_cap_bytes: int,
        reservation_ms: int,
        shm_tenants: list[str],
        demote_ahead: float,
        promote_reads: int,
        readmit_share: float,
        prefetch_depth: int,
        prefetch_bytes_per_s: int,
    ) -> None:
        """Set what may change while it serves, for reservations and sessions from now on."""

    def set_draining(self, draining: bool) -> None:
        """Take no new objects, or take them again."""

    def link_state(self) -> str:
        """Return "down", "syncing" or "up"."""

    def stats(self) -> dict[str, Any]:
        """Counters and histograms, for metrics and heartbeats."""

    def client_counters(self) -> list[dict[str, Any]]:
        """What the clients of this host counted."""

    def stop(self) -> None:
        """Close everything; idempotent."""

    def snapshot(self, timeout_ms: int) -> dict[str, int]:
        """Write to NVMe what only DRAM has: {objects, bytes, left}.

        Raise UnsupportedError without an NVMe tier, OverloadedError while another one is written,
        the tier's own error when it is not active.
        """

    def audit(self) -> None:
        """Check the store's books; slow. Raise KvstoreError when they are broken."""

    def beginning(self) -> dict[str, Any]:
        """Say what was taken over from an earlier life of the node."""

    def close(self, *, remove_files: bool = False) -> None:
        """Give the memory back; its files stay for the next life, or go. After stop."""


class SegmentFilesApi(Protocol):
    """``kvstore._native.SegmentFiles``: the node's folder, locked."""

    @property
    def kept_epoch(self) -> int:
        """Epoch of the life that wrote what is there; 0 for nothing."""


class SegmentFilesFactory(Protocol):
    """``kvstore._native.SegmentFiles``."""

    def __call__(self, directory: str, *, discard_foreign: bool) -> SegmentFilesApi:
        """Lock the folder; raise UnavailableError when another process has it."""


class NodeCoreFactory(Protocol):
    """``kvstore._native.NodeCore``."""

    def __call__(self, **options: Any) -> NodeCoreApi:
        """Create segment and store; nothing listens yet."""
