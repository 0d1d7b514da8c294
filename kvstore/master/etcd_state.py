"""The master's durable state in etcd, below a prefix (hard_state.py has the records).

Keys are PREFIX/TABLE/KEY, with the bytes of KEY as they are; values end with the same checksums as
in LMDB. The key PREFIX/leader names the active master and fences every write (leadership.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvstore.errors import ChecksumMismatchError, InvalidArgumentError
from kvstore.master.etcd_client import (
    MOST_TXN_BYTES,
    MOST_TXN_WRITES,
    EtcdClient,
    delete,
    delete_range,
    put,
)
from kvstore.master.hard_state import HardState, Row, Where, opening
from kvstore.master.leadership import Leadership
from kvstore.master.records import FORMAT_VERSION, TABLES, seal, unseal
from kvstore.master.state_audit import Audit, Found

# What one write may have waiting: etcd's quota is shared, and it says only that it is used up.
_ROOM_BYTES = 16 << 20


class EtcdState(HardState):
    """The state of the one active master; thread-safe."""

    def __init__(
        self, client: EtcdClient, leadership: Leadership, *, new_cluster: bool = False
    ) -> None:
        """Check the state and start a new epoch.

        Args:
            client: of etcd; closed with the state.
            leadership: held by this master; given up with the state.
            new_cluster: do not count as a new cluster that was begun by mistake.

        Raises:
            KvstoreError: As `examine`; or etcd takes no writes.
        """
        super().__init__()
        self._client = client
        self._leadership = leadership
        found = examine(client, new_cluster=new_cluster)
        meta = found.meta if found else {}
        begun = opening(meta, client.where, settled=new_cluster)
        self._put([("meta", name, value) for name, value in begun.items()])
        self._adopt({**meta, **begun})

    def _key(self, table: str, key: bytes) -> bytes:
        return self._client.prefix + table.encode() + b"/" + key

    def _rows(self, table: str) -> list[tuple[bytes, bytes]]:
        prefix = self._key(table, b"")
        rows = [(key[len(prefix) :], stored) for key, stored in self._client.rows(prefix)]
        return [(key, unseal(table, key, stored)) for key, stored in rows]

    def _put(self, rows: Sequence[Row], ops_up_to: int | None = None) -> None:
        # A transaction writes a key once.
        stored = {self._key(t, key): seal(t, key, value) for t, key, value in rows}
        *earlier, last = batches(list(stored.items()))
        for batch in earlier:
            self._leadership.commit([put(key, value) for key, value in batch])
        operations = [put(key, value) for key, value in last]
        if ops_up_to is not None:
            end = ops_up_to.to_bytes(8, "big") + b"\0"
            operations.append(delete_range(self._key("ops", b""), self._key("ops", end)))
        self._leadership.commit(operations)

    def _delete(self, table: str, key: bytes) -> None:
        name = self._key(table, key)
        self._leadership.commit([delete(name)])

    def reserve(self) -> None:
        """Nothing is set aside: raises if etcd is known not to take writes."""
        self._leadership.check()

    def room_bytes(self) -> int:
        """Bytes that may wait to be written."""
        return _ROOM_BYTES

    def serves_at(self, where: Mapping[str, Any]) -> None:
        """Write these addresses into the key ``leader``."""
        self._leadership.serves_at(where)

    def standbys(self) -> list[Where] | None:
        """Those that the last renewal of the lease has found."""
        return self._leadership.standbys

    def hand_over(self) -> None:
        """Give up the lease, so that a standby begins at once."""
        self._leadership.resign()

    def close(self) -> None:
        """Give up the lease, and close the connections."""
        self._leadership.resign()
        self._client.close()


def batches(rows: list[tuple[bytes, bytes]]) -> list[list[tuple[bytes, bytes]]]:
    """Divide rows into transactions that etcd takes, in order; at least one, the last the fullest.

    Args:
        rows: keys and values.
    """
    found: list[list[tuple[bytes, bytes]]] = [[]]
    size = 0
    for row in reversed(rows):
        row_bytes = len(row[0]) + len(row[1])
        if found[-1] and (len(found[-1]) == MOST_TXN_WRITES or size + row_bytes > MOST_TXN_BYTES):
            found.append([])
            size = 0
        found[-1].append(row)
        size += row_bytes
    return [batch[::-1] for batch in found[::-1]]


def examine(client: EtcdClient, *, new_cluster: bool = False, keep: bool = False) -> Found | None:
    """Check the state below a prefix, as of one moment; changes nothing.

    Args:
        client: of etcd.
        new_cluster: refuse a state that is in use.
        keep: return the rows.

    Returns:
        What was found; None where there is nothing.

    Raises:
        InvalidArgumentError: Keys below the prefix are not kvstore's; or a new cluster was wanted,
            but the state is in use.
        ChecksumMismatchError: The state is damaged; the message names the table and the record.
        VersionMismatchError: A newer kvstore wrote it.
        UnavailableError: etcd cannot be reached.
    """
    rows = []
    for key, stored in client.rows(client.prefix):
        name = key[len(client.prefix) :]
        table, slash, rest = name.partition(b"/")
        if slash and table.decode(errors="replace") in TABLES:
            rows.append((table.decode(), rest, stored))
        elif name != b"leader" and table != b"standbys":
            raise InvalidArgumentError(
                f"{client.where}: the key {key.decode(errors='replace')!r} is not kvstore's; "
                "choose a prefix that nothing else uses"
            )
    if not rows:
        return None
    try:
        if rows[0][0] != "meta":
            raise ChecksumMismatchError(f"{client.where} is damaged: table meta is missing")
        audit = Audit(client.where, keep)
        for table_name, rest, stored in rows:
            audit.row(table_name, rest, stored)
        found = audit.end()
        if found.format < FORMAT_VERSION:
            raise ChecksumMismatchError(f"{client.where} is damaged: format {found.format}")
    except ChecksumMismatchError as error:
        raise ChecksumMismatchError(
            f"{error}; restore etcd's backup, or choose another prefix: nothing was overwritten"
        ) from None
    if new_cluster and found.settled:
        raise InvalidArgumentError(
            f"{client.where} holds cluster {found.cluster_id}, and is whole: start without "
            "--new-cluster, or with another prefix"
        )
    return found
