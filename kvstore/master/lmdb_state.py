"""The master's durable state in LMDB, in a data directory (hard_state.py has the records).

LMDB syncs at commit. The lock on the data directory proves that exactly one master is active: no
second one opens the same state. The whole file is checked before LMDB maps it (state_audit.py), and
the file ``cluster`` repeats the cluster's id (cluster_file.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from kvstore.errors import (
    ChecksumMismatchError,
    InvalidArgumentError,
    IoError,
    NoSpaceError,
    UnavailableError,
)
from kvstore.lmdb_file import is_empty
from kvstore.logging import EventLogger
from kvstore.master import cluster_file, state_audit
from kvstore.master.cluster_file import ClusterFile
from kvstore.master.hard_state import HardState, Row, opening
from kvstore.master.records import FORMAT, FORMAT_VERSION, TABLES, seal, unseal
from kvstore.master.state_audit import DATA_FILE, Found

_log = EventLogger("master.state")
_LOCK_FILE = "lock"
_FIRST_MAP_BYTES = 64 << 20
# Free pages are kept inside the file: a full disk cannot take them away.
_RESERVE_BYTES = 4 << 20
_RESERVE_KEY = b"reserve"
_RESERVE_STEP_PAGES = 128  # so that LMDB's list of them stays shorter than a page
# What a transaction needs beside its records: copies of the pages on the way to them.
_SLACK_PAGES = 48
_PAGES_FOR_RECORDS = 0.5  # of those left then; measured: 0.8 and more

T = TypeVar("T")


class LmdbState(HardState):
    """The open data directory of the one active master; thread-safe."""

    def __init__(self, directory: Path, *, new_cluster: bool = False) -> None:
        """Lock, check and open a data directory, create it if missing, and start a new epoch.

        Args:
            directory: created with mode 0700.
            new_cluster: begin another cluster where the state is missing, lost or damaged; what is
                left of it is renamed.

        Raises:
            UnavailableError: Another master holds the directory; the message names its process.
            VersionMismatchError: A newer kvstore wrote it.
            ChecksumMismatchError: The state is damaged, or lost: it is not that of the cluster
                which the directory belongs to.
            InvalidArgumentError: A new cluster was wanted, but the state is whole and in use.
            NoSpaceError: The disk is full.
            IoError: A call of the operating system failed.
        """
        super().__init__()
        self._directory = directory
        # LMDB's map may only grow while no transaction of this process is open.
        self._mutex = threading.Lock()
        self._free_before = 0
        """Free pages before the last transaction."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IoError(f"data directory {directory}: {error.strerror}") from error
        self._lock_fd = _lock(directory)
        try:
            found, remembered = examine(directory, new_cluster=new_cluster)
            self._open(found, remembered, new_cluster)
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _open(self, found: Found | None, remembered: ClusterFile | None, settled: bool) -> None:
        with self._failures():
            self._env = lmdb.open(
                str(self._directory), map_size=_FIRST_MAP_BYTES, max_dbs=len(TABLES), mode=0o600
            )
        try:
            with self._failures():
                self._tables = {name: self._env.open_db(name.encode()) for name in TABLES}
            if found is not None and found.format < FORMAT_VERSION:
                self._upgrade()
            last_epoch = remembered.epoch if remembered else 0
            where = f"data directory {self._directory}"
            begun = opening(dict(self._rows("meta")), where, last_epoch, settled)
            self._put([("meta", name, value) for name, value in begun.items()])
            self._adopt(dict(self._rows("meta")))
            self._drop_reserve()
            self._remember()
        except BaseException:
            self._env.close()
            raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn LMDB's exceptions into ours."""
        try:
            yield
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            # A write that is cut short is an I/O error to LMDB.
            short = os.strerror(errno.EIO) in str(error) and self._disk_bytes() < 1 << 20
            full = short or os.strerror(errno.ENOSPC) in str(error)
            kind = NoSpaceError if full else IoError
            raise kind(f"data directory {self._directory}: {error}") from error

    def _upgrade(self) -> None:
        """Rewrite the records of format 1, which had no checksums."""

        def step(txn: lmdb.Transaction) -> None:
            for table in TABLES:
                with txn.cursor(db=self._tables[table]) as cursor:
                    rows = [(bytes(key), bytes(value)) for key, value in cursor]
                for key, value in rows:
                    self._store(txn, table, key, value)
            self._store(txn, "meta", FORMAT, b"%d" % FORMAT_VERSION)
            self._store(txn, "meta", b"settled", b"1")

        self._write(step)
        _log.info("state_upgraded", directory=str(self._directory), format=FORMAT_VERSION)

    def _remember(self) -> None:
        try:
            cluster_file.write(self._directory, ClusterFile(self.cluster_id, self.epoch))
        except IoError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENOSPC:
                raise
            _log.warning("cluster_file_not_written", error=error)

    def _rows(self, table: str) -> list[tuple[bytes, bytes]]:
        with self._failures(), self._mutex, self._env.begin(db=self._tables[table]) as txn:
            stored = [(bytes(key), bytes(value)) for key, value in txn.cursor()]
        return [(key, unseal(table, key, value)) for key, value in stored]

    def _put(self, rows: Sequence[Row], ops_up_to: int | None = None) -> None:
        def step(txn: lmdb.Transaction) -> None:
            for table, key, value in rows:
                self._store(txn, table, key, value)
            if ops_up_to is not None:
                self._cut(txn, ops_up_to.to_bytes(8, "big"))

        self._write(step)

    def _store(self, txn: lmdb.Transaction, table: str, key: bytes, value: bytes) -> None:
        txn.put(key, seal(table, key, value), db=self._tables[table])

    def _cut(self, txn: lmdb.Transaction, last: bytes) -> None:
        with txn.cursor(db=self._tables["ops"]) as cursor:
            more = cursor.first()
            while more and bytes(cursor.key()) <= last:
                more = cursor.delete()

    def _write(self, step: Callable[[lmdb.Transaction], T]) -> T:
        """Run one write transaction; the map grows when it is full."""
        while True:
            try:
                with self._failures(), self._mutex, self._env.begin(write=True) as txn:
                    self._free_before = self._free_pages(txn)
                    self._store(txn, "meta", b"transaction", b"%d" % txn.id())
                    return step(txn)
            except lmdb.MapFullError:
                with self._mutex:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2)

    def room_bytes(self) -> int:
        """Bytes of records that can surely be written, even if the disk fills up meanwhile."""
        with self._failures():
            with self._mutex, self._env.begin() as txn:
                # LMDB keeps what the last transaction has freed until the next but one.
                pages = min(self._free_before, self._free_pages(txn))
            free = max(0, pages - _SLACK_PAGES) * self._page_bytes()
        # Nobody writes this share of a disk's free space before it is asked for again.
        return int(free * _PAGES_FOR_RECORDS) + self._disk_bytes() // 8

    def reserve(self) -> None:
        """Keep free pages inside the file, unless there are enough, or the disk has no room.

        Raises:
            KvstoreError: The disk failed, or became full.
        """
        with self._failures():
            page = self._page_bytes()
            wanted = min(_RESERVE_BYTES, self._disk_bytes() // 4) // page
            with self._mutex, self._env.begin() as txn:
                missing = wanted - self._free_pages(txn)
        if missing <= wanted // 2 or missing < _SLACK_PAGES:
            return
        steps = [
            min(_RESERVE_STEP_PAGES, missing - at) for at in range(0, missing, _RESERVE_STEP_PAGES)
        ]
        keys = [_RESERVE_KEY + b"%d" % number for number in range(len(steps))]

        def grow(txn: lmdb.Transaction) -> None:
            for key, pages in zip(keys, steps, strict=True):
                self._store(txn, "meta", key, bytes(max(1, pages - 1) * page))

        self._write(grow)
        self._drop_reserve()
        self._write(lambda txn: None)  # the pages that were freed last are usable from here on

    def _drop_reserve(self) -> None:
        """Delete the records that made the file grow, one by one: then their pages are free."""
        with self._failures(), self._mutex, self._env.begin(db=self._tables["meta"]) as txn:
            names = [bytes(key) for key, _ in txn.cursor()]
        for name in names:
            if name.startswith(_RESERVE_KEY):
                self._delete("meta", name)

    def _delete(self, table: str, key: bytes) -> None:
        self._write(lambda txn: txn.delete(key, db=self._tables[table]))

    def _free_pages(self, txn: lmdb.Transaction) -> int:
        """Pages of the file that no table uses, before a transaction that has not written yet."""
        tables = [self._env.stat(), *(txn.stat(db) for db in self._tables.values())]
        used = sum(t["branch_pages"] + t["leaf_pages"] + t["overflow_pages"] for t in tables)
        return int(self._env.info()["last_pgno"]) + 1 - 2 - used

    def _page_bytes(self) -> int:
        return int(self._env.stat()["psize"])

    def _disk_bytes(self) -> int:
        try:
            found = os.statvfs(self._directory)
        except OSError as error:
            raise IoError(f"data directory {self._directory}: {error.strerror}") from error
        return found.f_bavail * found.f_frsize

    def serves_at(self, where: Mapping[str, Any]) -> None:
        """Nothing: the lock lets nobody stand by."""

    def hand_over(self) -> None:
        """Nothing: the lock is held until the state is closed."""

    def close(self) -> None:
        """Close the state and release the lock."""
        self._env.close()
        os.close(self._lock_fd)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a data directory that is there, while it is checked, read or replaced.

    Raises:
        UnavailableError: A master holds it; the message names its process.
        IoError: There is no such directory, or the operating system refused.
    """
    if not directory.is_dir():
        raise IoError(f"data directory {directory}: {os.strerror(errno.ENOENT)}")
    descriptor = _lock(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def examine(
    directory: Path, *, new_cluster: bool = False, keep: bool = False
) -> tuple[Found | None, ClusterFile | None]:
    """Check the state of a locked data directory.

    Args:
        directory: of the state.
        new_cluster: put aside what is lost or damaged.
        keep: return the rows.

    Returns:
        What was found, None for a new directory; and what the cluster's file says.

    Raises:
        ChecksumMismatchError, VersionMismatchError, InvalidArgumentError, IoError: As LmdbState.
    """
    path = directory / DATA_FILE
    remembered, why = cluster_file.read(directory)
    try:
        found = None if is_empty(path) else state_audit.examine(path, keep=keep)
        if found is not None and not found.meta:
            found = None
        _compare(directory, found, remembered, why)
    except ChecksumMismatchError as error:
        if not new_cluster:
            raise ChecksumMismatchError(
                f"{error}; restore it (kvstore-master --import FILE --force), or begin another "
                "cluster (--new-cluster)"
            ) from None
        _log.warning("state_given_up", error=error, kept_as=put_aside(directory))
        return None, None
    if new_cluster and found is not None and found.settled:
        raise InvalidArgumentError(
            f"data directory {directory} holds cluster {found.cluster_id}, and is whole: start "
            "without --new-cluster, or with another directory"
        )
    return found, remembered


def _compare(
    directory: Path, found: Found | None, remembered: ClusterFile | None, why: str
) -> None:
    """Refuse a state that is not the one which the cluster's file names."""
    if found is None and (remembered or why):
        whose = (
            f"is that of cluster {remembered.cluster_id}" if remembered else f"is not new: {why}"
        )
        raise ChecksumMismatchError(
            f"data directory {directory} {whose}, but its state ({DATA_FILE}) is missing or empty"
        )
    if found is not None and remembered and remembered.cluster_id != found.cluster_id:
        raise ChecksumMismatchError(
            f"data directory {directory} is that of cluster {remembered.cluster_id}, but its state "
            f"({DATA_FILE}) is of cluster {found.cluster_id}"
        )
    if found is not None and why:
        _log.warning("cluster_file_replaced", why=why)


def put_aside(directory: Path) -> str:
    """Rename the state's files, so that a new one can take their place; returns the new name."""
    number = 1
    while (directory / f"{DATA_FILE}.{number}").exists():
        number += 1
    try:
        for name in (DATA_FILE, cluster_file.NAME):
            if os.path.lexists(directory / name):
                (directory / name).rename(directory / f"{name}.{number}")
        cluster_file.sync_names(directory)
    except OSError as error:
        raise IoError(f"data directory {directory}: {error.strerror}") from error
    return f"{DATA_FILE}.{number}"


def _lock(directory: Path) -> int:
    """Lock a file that is never deleted; the lock is released when the process exits.

    An open-file-description lock would pass to forked children, a record lock does not.
    """
    path = directory / _LOCK_FILE
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = -1
    try:
        fd = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UnavailableError(
                f"data directory {directory}: another master is active (process {holder})"
            ) from error
        os.ftruncate(fd, 0)
        with suppress(OSError):  # a full disk: only the message of another process lacks it
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise IoError(f"data directory {directory}: {_LOCK_FILE}: {error.strerror}") from error
    except UnavailableError:
        os.close(fd)
        raise
    return fd
