"""The master's durable state: epoch, cluster id, secret, nodes, namespaces, remove log.

Says what its records are; an implementation says where they lie: LMDB in the data directory
(lmdb_state.py), or etcd (etcd_state.py). Every write is durable when the call returns, and exactly
one master is active on a state.

Tables: ``meta`` (name → value), ``nodes`` (node id → JSON), ``namespaces`` (tenant NUL name →
epoch), ``ops`` (big-endian number → the native side's record: removes, flushes and pins). Every
value ends with a checksum (records.py), and all of them are checked before any is used
(state_audit.py).
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from kvstore.errors import IoError
from kvstore.limits import MAX_EPOCH
from kvstore.master.records import FORMAT, FORMAT_VERSION, NodeRecord

Row = tuple[str, bytes, bytes]
"""Table, key, value without checksum."""
Where = Mapping[str, str | int]
"""Host, process and addresses of a master."""
Lost = Callable[[str], None]
"""Ends the process, with the reason: another master may be active."""


class HardState(ABC):
    """The open state of the one active master; thread-safe."""

    epoch: int
    cluster_id: str
    hash_secret: bytes
    settled: bool
    """Whether a node has joined this cluster, or an operator wanted it to be new."""

    def __init__(self) -> None:
        """Know nothing yet; an implementation opens the state, then calls `_adopt`."""
        self._trimmed = (0, 0)
        self._epochs: dict[bytes, bytes] = {}
        """Namespaces as they were read or written last."""

    @abstractmethod
    def _rows(self, table: str) -> list[tuple[bytes, bytes]]:
        """Keys and values of a table, in the order of the keys."""

    @abstractmethod
    def _put(self, rows: Sequence[Row], ops_up_to: int | None = None) -> None:
        """Write rows, then delete the operations up to a number.

        Durable on return. An implementation that takes several transactions writes in the order
        given, and the last rows together with the deletion.
        """

    @abstractmethod
    def _delete(self, table: str, key: bytes) -> None:
        """Delete a row, durably."""

    @abstractmethod
    def reserve(self) -> None:
        """Prepare room for operations that are accepted from now on, as far as there is any.

        Raises:
            KvstoreError: The state cannot be written; the message says why.
        """

    @abstractmethod
    def room_bytes(self) -> int:
        """Bytes of records that can surely be written.

        Raises:
            KvstoreError: The state cannot be written; the message says why.
        """

    @abstractmethod
    def serves_at(self, where: Mapping[str, Any]) -> None:
        """Tell standbys where this master serves, if there can be standbys."""

    def standbys(self) -> list[Where] | None:
        """Which masters stand by, as of a moment ago; None: nothing can stand by on this state."""
        return None

    @abstractmethod
    def hand_over(self) -> None:
        """Let a standby begin, if there can be one; nothing is written afterwards."""

    @abstractmethod
    def close(self) -> None:
        """Close the state, and let another master begin."""

    def _adopt(self, meta: Mapping[bytes, bytes]) -> None:
        """Take over the table meta, as `opening` has left it."""
        self.epoch = int(meta[b"epoch"])
        self.cluster_id = meta[b"cluster_id"].decode()
        self.hash_secret = meta[b"hash_secret"]
        self.settled = meta.get(b"settled", b"0") != b"0"
        self._trimmed = (
            int(meta.get(b"trimmed_seq", b"0")),
            int(meta.get(b"version_floor", b"0")),
        )

    def settle(self) -> None:
        """Note that a node has joined: from now on this cluster is not a new one."""
        self._put([("meta", b"settled", b"1")])
        self.settled = True

    def nodes(self) -> list[NodeRecord]:
        """The known nodes."""
        return [msgspec.json.decode(value, type=NodeRecord) for _, value in self._rows("nodes")]

    def put_nodes(self, records: Iterable[NodeRecord]) -> None:
        """Write known nodes."""
        rows = [
            ("nodes", record.node_id.encode(), msgspec.json.encode(record)) for record in records
        ]
        if rows:
            self._put(rows)

    def delete_node(self, node_id: str) -> None:
        """Forget a node."""
        self._delete("nodes", node_id.encode())

    def namespaces(self) -> list[tuple[str, str, int]]:
        """Tenant, name and epoch of the namespaces that were flushed."""
        rows = self._rows("namespaces")
        self._epochs = dict(rows)
        split = [(key.split(b"\0"), int(value)) for key, value in rows]
        return [(tenant.decode(), name.decode(), epoch) for (tenant, name), epoch in split]

    def ops(self) -> list[bytes]:
        """The records of the operations log, in order."""
        return [record for _, record in self._rows("ops")]

    def append_ops(self, records: Iterable[tuple[int, bytes]]) -> None:
        """Add records to the operations log; if that fails, the first ones may have been added."""
        self._put([("ops", seq.to_bytes(8, "big"), record) for seq, record in records])

    def trimmed(self) -> tuple[int, int]:
        """Number of the last trimmed operation, and the resulting version floor."""
        return self._trimmed

    def trim(
        self, seq: int, version_floor: int, namespaces: Iterable[tuple[str, str, int]]
    ) -> None:
        """Delete the operations up to `seq`, which every known node has applied.

        Args:
            seq: the last number to delete.
            version_floor: lowest version that is valid on nodes that missed these operations.
            namespaces: current epochs, which stand for the flushes among the deleted records.
        """
        epochs = {
            b"\0".join((tenant.encode(), name.encode())): b"%d" % epoch
            for tenant, name, epoch in namespaces
            if epoch
        }
        changed = {key: epoch for key, epoch in epochs.items() if self._epochs.get(key) != epoch}
        # Epochs only grow, so they may be there before the operations they stand for are gone.
        rows = [("namespaces", key, epoch) for key, epoch in changed.items()]
        rows.append(("meta", b"version_floor", b"%d" % version_floor))
        rows.append(("meta", b"trimmed_seq", b"%d" % seq))
        self._put(rows, ops_up_to=seq)
        self._epochs |= changed
        self._trimmed = (seq, version_floor)


def opening(
    meta: Mapping[bytes, bytes], where: str, last_epoch: int = 0, settled: bool = False
) -> dict[bytes, bytes]:
    """Make the rows of meta with which the next master begins.

    Args:
        meta: what is there; empty for a new cluster.
        where: name of the state, for messages.
        last_epoch: one that was used for certain.
        settled: do not count as a new cluster.

    Returns:
        Rows to write: the next epoch, and what a new cluster lacks.

    Raises:
        IoError: No epochs are left.
    """
    epoch = max(int(meta.get(b"epoch", b"0")), last_epoch) + 1
    if epoch > MAX_EPOCH:
        raise IoError(f"{where}: no epochs are left")
    rows = {FORMAT: b"%d" % FORMAT_VERSION, b"epoch": b"%d" % epoch}
    if b"cluster_id" not in meta:
        rows[b"cluster_id"] = secrets.token_hex(16).encode()
        rows[b"hash_secret"] = secrets.token_bytes(16)
    if settled:
        rows[b"settled"] = b"1"
    return rows
