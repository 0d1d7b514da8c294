"""The NVMe tier's checkpoint: one manifest per sealed segment, in LMDB.

It is a cache of what the segment files say themselves. A row that is missing or damaged costs the
next start a scan of that segment, never an object, so writes are durable when they return but a
failing one is only reported. Keys are segment sequence numbers (8 bytes, big-endian): LMDB's limit
of 511 bytes a key says nothing about object keys, which are inside the rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import lmdb

from kvstore.errors import IoError, VersionMismatchError

FORMAT_VERSION = 1
DEFAULT_MAX_BYTES = 16 << 30
_FIRST_MAP_BYTES = 16 << 20
_MAX_SEQ = 2**64 - 1
_TABLES = ("meta", "manifests")

T = TypeVar("T")


class NvmeCatalog:
    """The open catalog of one node's NVMe tier; thread-safe."""

    def __init__(self, directory: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Open a catalog, create it when missing.

        The caller owns the folder: the tier's own lock keeps a second process out.

        Args:
            directory: created with mode 0700.
            max_bytes: what the file may grow to; beyond it `save` fails.

        Raises:
            VersionMismatchError: A newer kvstore wrote it.
            IoError: The operating system or the database refused.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        # LMDB's map may only grow while no transaction of this process is open.
        self._mutex = threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IoError(f"NVMe catalog {directory}: {error.strerror}") from error
        try:
            self._env = lmdb.open(
                str(directory),
                map_size=min(_FIRST_MAP_BYTES, max_bytes),
                max_dbs=len(_TABLES),
                mode=0o600,
            )
        except lmdb.Error as error:
            raise IoError(f"NVMe catalog {directory}: {error}") from error
        try:
            self._tables = {name: self._env.open_db(name.encode()) for name in _TABLES}
            self._check_format()
        except lmdb.Error as error:
            self._env.close()
            raise IoError(f"NVMe catalog {directory}: {error}") from error
        except BaseException:
            self._env.close()
            raise

    def _check_format(self) -> None:
        def step(txn: lmdb.Transaction) -> int:
            meta = self._tables["meta"]
            found = txn.get(b"format", db=meta)
            if found is None:
                txn.put(b"format", b"%d" % FORMAT_VERSION, db=meta)
                return FORMAT_VERSION
            return int(bytes(found)) if bytes(found).isdigit() else -1

        version = self._write(step)
        if version != FORMAT_VERSION:
            raise VersionMismatchError(
                f"NVMe catalog {self._directory} has format {version}, this kvstore knows "
                f"{FORMAT_VERSION}: start the version that wrote it, or delete the folder "
                "(the next start then scans the segments)"
            )

    def _write(self, step: Callable[[lmdb.Transaction], T]) -> T:
        """Run one write transaction; the map grows when it is full, up to its bound."""
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
        """Write a segment's manifest; durable when it returns.

        Args:
            seq: the segment's sequence number, 1 to 2**64 - 1.
            manifest: the native side's bytes, which check themselves.

        Raises:
            IoError: The database refused, or has reached its bound.
        """
        key = _key(seq)
        self._write(lambda txn: txn.put(key, manifest, db=self._tables["manifests"]))

    def load(self, seq: int) -> bytes | None:
        """The manifest of a segment; None when there is none.

        Raises:
            IoError: The database refused.
        """
        return self._read(lambda txn: _copied(txn.get(_key(seq), db=self._tables["manifests"])))

    def drop(self, seq: int) -> None:
        """Delete a segment's manifest, if there is one.

        Raises:
            IoError: The database refused.
        """
        key = _key(seq)
        self._write(lambda txn: txn.delete(key, db=self._tables["manifests"]))

    def list(self) -> list[int]:
        """The sequence numbers that have a manifest, ascending.

        Raises:
            IoError: The database refused.
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

    def close(self) -> None:
        """Close the database; further calls fail."""
        with self._mutex:
            self._env.close()


def _key(seq: int) -> bytes:
    if not 0 < seq <= _MAX_SEQ:
        raise IoError(f"no segment has the number {seq}")
    return seq.to_bytes(8, "big")


def _copied(value: object) -> bytes | None:
    return None if value is None else bytes(value)  # type: ignore[call-overload]
