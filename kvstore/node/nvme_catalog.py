"""The NVMe tier's checkpoint: one manifest per sealed log file, in LMDB.

It caches information that is also in the log files. A missing or damaged row costs the next
start a scan of that file, never an object: a failing write is therefore only reported, and an
unreadable database is recreated. LMDB has no checksums, and reading damaged pages may crash the
process: the file's structure is checked before LMDB maps it, and a file whose last read did not
complete is discarded (see `read`).

Keys are sequence numbers of log files (8 bytes, big-endian): LMDB's limit of 511 bytes
per key does not apply to object keys, which are inside the rows.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import lmdb

from kvstore import lmdb_file
from kvstore.errors import ChecksumMismatchError, IoError, VersionMismatchError
from kvstore.logging import EventLogger

_log = EventLogger("node.nvme")
FORMAT_VERSION = 1
DEFAULT_MAX_BYTES = 16 << 30
_FIRST_MAP_BYTES = 16 << 20
_MAX_SEQ = 2**64 - 1
_TABLES = ("meta", "manifests")
_FILES = ("data.mdb", "lock.mdb")
# Exists while the files of an earlier process are read for the first time.
_READING = "reading"

T = TypeVar("T")


class NvmeCatalog:
    """The open catalog of one node's NVMe tier; thread-safe."""

    def __init__(self, directory: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Open a catalog, create it if missing.

        The caller owns the folder: the NVMe tier's own lock keeps a second process out.

        Args:
            directory: created with mode 0700.
            max_bytes: limit of the file's size; beyond it `save` fails.

        Raises:
            VersionMismatchError: A newer kvstore wrote it.
            IoError: A call of the operating system or the database failed.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        # LMDB's map may only grow while no transaction of this process is open.
        self._mutex = threading.Lock()
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise IoError(f"NVMe catalog {directory}: {error.strerror}") from error
        self._reading = directory / _READING
        try:
            if self._reading.exists():
                self._discard("an earlier start crashed while reading it")
            self._reading.touch(mode=0o600)
            try:
                self._check()
                self._open()
            except (lmdb.Error, ChecksumMismatchError) as error:
                self._discard(str(error))
                self._open()
        except (lmdb.Error, OSError) as error:
            self.read()
            raise IoError(f"NVMe catalog {directory}: {error}") from error
        except VersionMismatchError:
            self.read()
            raise

    def _discard(self, why: str) -> None:
        _log.warning("nvme_catalog_discarded", directory=str(self._directory), why=why)
        for name in _FILES:
            (self._directory / name).unlink(missing_ok=True)

    def _open(self) -> None:
        self._env = lmdb.open(
            str(self._directory),
            map_size=min(_FIRST_MAP_BYTES, self._max_bytes),
            max_dbs=len(_TABLES),
            mode=0o600,
        )
        try:
            self._tables = {name: self._env.open_db(name.encode()) for name in _TABLES}
            self._check_format()
        except BaseException:
            self._env.close()
            raise

    def _check(self) -> None:
        """Refuse a damaged file: touching the missing pages of its map would raise SIGBUS."""
        path = self._directory / _FILES[0]
        if not lmdb_file.is_empty(path):
            lmdb_file.check(path)

    def _check_format(self) -> None:
        meta = self._tables["meta"]
        with self._env.begin(write=True) as txn:
            found = txn.get(b"format", db=meta)
            if found is None:
                txn.put(b"format", b"%d" % FORMAT_VERSION, db=meta)
                return
            if not re.fullmatch(rb"\d{1,9}", bytes(found)):
                raise lmdb.CorruptedError("no format number")
            version = int(bytes(found))
        if version != FORMAT_VERSION:
            raise VersionMismatchError(
                f"NVMe catalog {self._directory} has format {version}, this kvstore supports "
                f"{FORMAT_VERSION}: start the version that wrote it, or delete the folder "
                "(the next start then scans the log files)"
            )

    def _write(self, step: Callable[[lmdb.Transaction], T]) -> T:
        """Run one write transaction; the map grows when it is full, up to its limit."""
        while True:
            try:
                with self._mutex, self._env.begin(write=True) as txn:
                    return step(txn)
            except lmdb.MapFullError as error:
                with self._mutex:
                    size = self._env.info()["map_size"]
                    if size >= self._max_bytes:
                        raise IoError(
                            f"NVMe catalog {self._directory} is full at {size} bytes"
                        ) from error
                    self._env.set_mapsize(min(size * 2, self._max_bytes))
            except lmdb.Error as error:
                raise IoError(f"NVMe catalog {self._directory}: {error}") from error

    def save(self, seq: int, manifest: bytes) -> None:
        """Write a log file's manifest; durable when it returns.

        Args:
            seq: the log file's sequence number, 1 to 2**64 - 1.
            manifest: the native side's bytes, which carry a checksum.

        Raises:
            IoError: The database failed, or has reached its limit.
        """
        key = _key(seq)
        self._write(lambda txn: txn.put(key, manifest, db=self._tables["manifests"]))

    def load(self, seq: int) -> bytes | None:
        """Return the manifest of a log file; None when there is none.

        Raises:
            IoError: The database failed.
        """
        return self._read(lambda txn: _copied(txn.get(_key(seq), db=self._tables["manifests"])))

    def drop(self, seq: int) -> None:
        """Delete a log file's manifest, if there is one.

        Raises:
            IoError: The database failed.
        """
        key = _key(seq)
        self._write(lambda txn: txn.delete(key, db=self._tables["manifests"]))

    def list(self) -> list[int]:
        """List the sequence numbers that have a manifest, ascending.

        Raises:
            IoError: The database failed.
        """

        def step(txn: lmdb.Transaction) -> list[int]:
            with txn.cursor(db=self._tables["manifests"]) as cursor:
                keys = [bytes(key) for key in cursor.iternext(keys=True, values=False)]
            return [int.from_bytes(key, "big") for key in keys if len(key) == 8]

        return self._read(step)

    def _read(self, step: Callable[[lmdb.Transaction], T]) -> T:
        try:
            with self._mutex, self._env.begin() as txn:
                return step(txn)
        except lmdb.Error as error:
            raise IoError(f"NVMe catalog {self._directory}: {error}") from error

    def read(self) -> None:
        """Mark the first read as complete; after a crash before that, the next start scans instead.

        A damaged database may have caused that crash, and would crash every start.
        """
        with contextlib.suppress(OSError):  # the folder may be gone, or its disk
            self._reading.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the database; further calls fail."""
        self.read()
        with self._mutex:
            self._env.close()


def _key(seq: int) -> bytes:
    if not 0 < seq <= _MAX_SEQ:
        raise IoError(f"{seq} is not the number of a log file")
    return seq.to_bytes(8, "big")


def _copied(value: object) -> bytes | None:
    return None if value is None else bytes(value)  # type: ignore[call-overload]
