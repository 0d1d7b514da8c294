"""The master's durable state, in LMDB: epoch, cluster id, secret, nodes, namespaces, remove log.

Every write is durable when the call returns (LMDB syncs at commit). The lock on the data directory
proves that exactly one master is active: no second one opens the same state.

Tables: ``meta`` (name → value), ``nodes`` (node id → JSON), ``namespaces`` (tenant NUL name →
epoch), ``ops`` (big-endian number → the native side's record: removes, flushes and pins).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import lmdb
import msgspec

from kvstore.errors import IoError, UnavailableError, VersionMismatchError
from kvstore.limits import MAX_EPOCH

FORMAT_VERSION = 1
_LOCK_FILE = "lock"
_FIRST_MAP_BYTES = 64 << 20
_TABLES = ("meta", "nodes", "namespaces", "ops")

T = TypeVar("T")


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Durable record of a node."""

    node_id: str
    node_epoch: int
    incarnation: int
    draining: bool
    left: bool
    last_seen_unix_ms: int


class HardState:
    """The open data directory of the one active master; thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Lock and open a data directory, create it if missing, and start a new epoch.

        Args:
            directory: created with mode 0700.

        Raises:
            UnavailableError: Another master holds the directory; the message names its process.
            VersionMismatchError: A newer kvstore wrote it.
            IoError: A call of the operating system failed.
        """
        self._directory = directory
        # LMDB's map may only grow while no transaction of this process is open.
        self._mutex = threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = _lock(directory / _LOCK_FILE)
        except OSError as error:
            raise IoError(f"data directory {directory}: {error.strerror}") from error
        try:
            self._env = lmdb.open(
                str(directory), map_size=_FIRST_MAP_BYTES, max_dbs=len(_TABLES), mode=0o600
            )
            self._tables = {name: self._env.open_db(name.encode()) for name in _TABLES}
            self._start_epoch()
        except lmdb.Error as error:
            self._unlock()
            raise IoError(f"data directory {directory}: {error}") from error
        except BaseException:
            self._env.close()
            self._unlock()
            raise

    def _start_epoch(self) -> None:
        def step(txn: lmdb.Transaction) -> None:
            meta = self._tables["meta"]
            version = int(txn.get(b"format", default=b"1", db=meta))
            if version > FORMAT_VERSION:
                raise VersionMismatchError(
                    f"data directory {self._directory} has format {version}, this kvstore supports "
                    f"{FORMAT_VERSION}: start the version that wrote it, or a newer one"
                )
            epoch = int(txn.get(b"epoch", default=b"0", db=meta)) + 1
            if epoch > MAX_EPOCH:
                raise IoError(f"data directory {self._directory}: no epochs are left")
            txn.put(b"format", b"%d" % FORMAT_VERSION, db=meta)
            txn.put(b"epoch", b"%d" % epoch, db=meta)
            if txn.get(b"cluster_id", db=meta) is None:
                txn.put(b"cluster_id", secrets.token_hex(16).encode(), db=meta)
                txn.put(b"hash_secret", secrets.token_bytes(16), db=meta)

        self._write(step)
        self.epoch = int(self._meta(b"epoch"))
        self.cluster_id = self._meta(b"cluster_id").decode()
        self.hash_secret = self._meta(b"hash_secret")

    def _meta(self, name: bytes, default: bytes = b"") -> bytes:
        with self._mutex, self._env.begin(db=self._tables["meta"]) as txn:
            return bytes(txn.get(name, default=default))

    def _rows(self, table: str) -> list[tuple[bytes, bytes]]:
        with self._mutex, self._env.begin(db=self._tables[table]) as txn:
            return [(bytes(key), bytes(value)) for key, value in txn.cursor()]

    def _write(self, step: Callable[[lmdb.Transaction], T]) -> T:
        """Run one write transaction; the map grows when it is full."""
        while True:
            try:
                with self._mutex, self._env.begin(write=True) as txn:
                    return step(txn)
            except lmdb.MapFullError:
                with self._mutex:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except lmdb.Error as error:
                raise IoError(f"data directory {self._directory}: {error}") from error

    def nodes(self) -> list[NodeRecord]:
        """The known nodes."""
        return [msgspec.json.decode(value, type=NodeRecord) for _, value in self._rows("nodes")]

    def put_node(self, record: NodeRecord) -> None:
        """Write a known node."""
        key, value = record.node_id.encode(), msgspec.json.encode(record)
        self._write(lambda txn: txn.put(key, value, db=self._tables["nodes"]))

    def delete_node(self, node_id: str) -> None:
        """Forget a node."""
        self._write(lambda txn: txn.delete(node_id.encode(), db=self._tables["nodes"]))

    def namespaces(self) -> list[tuple[str, str, int]]:
        """Tenant, name and epoch of the namespaces that were flushed."""
        rows = [(key.split(b"\0"), int(value)) for key, value in self._rows("namespaces")]
        return [(tenant.decode(), name.decode(), epoch) for (tenant, name), epoch in rows]

    def ops(self) -> list[bytes]:
        """The records of the operations log, in order."""
        return [record for _, record in self._rows("ops")]

    def append_ops(self, records: Iterable[tuple[int, bytes]]) -> None:
        """Add records to the operations log, all in one transaction."""
        rows = [(seq.to_bytes(8, "big"), record) for seq, record in records]

        def step(txn: lmdb.Transaction) -> None:
            for key, record in rows:
                txn.put(key, record, db=self._tables["ops"])

        self._write(step)

    def trimmed(self) -> tuple[int, int]:
        """Number of the last trimmed operation, and the resulting version floor."""
        return int(self._meta(b"trimmed_seq", b"0")), int(self._meta(b"version_floor", b"0"))

    def trim(
        self, seq: int, version_floor: int, namespaces: Iterable[tuple[str, str, int]]
    ) -> None:
        """Delete the operations up to `seq`, which every known node has applied.

        Args:
            seq: the last number to delete.
            version_floor: lowest version that is valid on nodes that missed these operations.
            namespaces: current epochs, which stand for the flushes among the deleted records.
        """
        rows = [
            (b"\0".join((tenant.encode(), name.encode())), b"%d" % epoch)
            for tenant, name, epoch in namespaces
            if epoch
        ]

        def step(txn: lmdb.Transaction) -> None:
            for key, epoch in rows:
                txn.put(key, epoch, db=self._tables["namespaces"])
            txn.put(b"trimmed_seq", b"%d" % seq, db=self._tables["meta"])
            txn.put(b"version_floor", b"%d" % version_floor, db=self._tables["meta"])
            last = seq.to_bytes(8, "big")
            with txn.cursor(db=self._tables["ops"]) as cursor:
                more = cursor.first()
                while more and bytes(cursor.key()) <= last:
                    more = cursor.delete()

        self._write(step)

    def close(self) -> None:
        """Close the state and release the lock."""
        self._env.close()
        self._unlock()

    def _unlock(self) -> None:
        os.close(self._lock_fd)


def _lock(path: Path) -> int:
    """Lock a file that is never deleted; the lock is released when the process exits.

    An open-file-description lock would pass to forked children, a record lock does not.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise UnavailableError(
            f"data directory {path.parent}: another master is active (process {holder})"
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd
