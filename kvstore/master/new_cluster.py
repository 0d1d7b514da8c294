"""Whether a new cluster was begun by mistake: nodes may belong to an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvstore.errors import InvalidArgumentError, Status, error_for
from kvstore.logging import EventLogger
from kvstore.master.hard_state import HardState
from kvstore.master.records import is_cluster_id
from kvstore.tasks import Readiness

_log = EventLogger("master.state")


class NewCluster:
    """Until its first node has joined, a cluster is new, and may have been begun by mistake.

    A data directory that was lost or confused looks like a new one. So a node that presents another
    cluster makes a new one refuse every node, until an operator has decided.
    """

    def __init__(self, state: HardState) -> None:
        """Judge by the state of this master."""
        self._state = state
        self.refusal = ""
        """Why no node may join; empty: nodes may."""

    def admit(self, node_id: str, cluster_id: str) -> None:
        """Check the cluster that a node presents.

        Args:
            node_id: of the node.
            cluster_id: that its memory belongs to; empty: none yet.

        Raises:
            InvalidArgumentError: It is no id of a cluster.
            VersionMismatchError: The node belongs to another cluster.
            UnavailableError: So does this or another node, and this cluster is new.
        """
        if cluster_id and not is_cluster_id(cluster_id):
            raise InvalidArgumentError("cluster_id is not 32 hexadecimal digits")
        own = self._state.cluster_id
        foreign = bool(cluster_id) and cluster_id != own
        if foreign and not self._state.settled and not self.refusal:
            self.refusal = (
                f"this master has just begun cluster {own}, but node {node_id!r} belongs to "
                f"cluster {cluster_id}: restore the state of that one (kvstore-master --import "
                "FILE --force), or restart this master with --new-cluster to begin anew"
            )
            _log.error("new_cluster_refused", error=self.refusal)
        if self.refusal:
            raise error_for(Status.Unavailable, self.refusal)
        if foreign:
            raise error_for(
                Status.VersionMismatch,
                f"node {node_id!r} belongs to cluster {cluster_id}, not to this one ({own})",
            )

    def joined(self) -> None:
        """Note that a node has joined."""
        if not self._state.settled:
            self._state.settle()

    def readiness(self, ready: Readiness) -> Readiness:
        """Make /readyz fail, with the reason, while no node may join."""

        def with_refusal() -> tuple[bool, Mapping[str, Any]]:
            is_ready, details = ready()
            if not self.refusal:
                return is_ready, details
            return False, {**details, "nodes_refused": self.refusal}

        return with_refusal
