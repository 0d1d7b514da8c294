"""Examines the master's state before it is used: format, every record; of LMDB, the whole file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kvstore import lmdb_file
from kvstore.errors import ChecksumMismatchError, VersionMismatchError
from kvstore.master import records

DATA_FILE = "data.mdb"


class Found(NamedTuple):
    """What a state holds."""

    format: int
    meta: dict[bytes, bytes]
    counts: dict[str, int]
    """Records by table."""
    rows: records.Rows
    """Empty unless they were wanted."""

    def number(self, name: bytes) -> int:
        """Return a number of the table meta; 0 if it is not there."""
        return int(self.meta.get(name, b"0"))

    @property
    def cluster_id(self) -> str:
        """Return the id of the cluster; empty in a state that no master has finished to create."""
        return self.meta.get(b"cluster_id", b"").decode()

    @property
    def settled(self) -> bool:
        """Whether a node has joined this cluster, or an operator wanted it to be new."""
        return self.format == 1 or self.number(b"settled") != 0


def examine(path: Path, *, keep: bool = False) -> Found:
    """Check the file of a state that no process has open.

    Args:
        path: of the file, which is there.
        keep: return the rows.

    Raises:
        ChecksumMismatchError: It is damaged; the message names the table and the record.
        VersionMismatchError: A newer kvstore wrote it.
        IoError: It cannot be read.
    """
    audit = Audit(str(path), keep)
    transaction = lmdb_file.check(path, audit.row)
    return audit.end(transaction)


class Audit:
    """Checks the rows: those of meta come first, and say how to read the others."""

    def __init__(self, where: str, keep: bool) -> None:
        """Begin with a state.

        Args:
            where: its name, for messages.
            keep: return the rows.
        """
        self._where = where
        self._keep = keep
        self._stored: dict[bytes, bytes] = {}
        self._found: Found | None = None

    def row(self, table: str, key: bytes, stored: bytes) -> None:
        """Check a row as it is stored; raises as `examine`."""
        if table == "meta":
            self._stored[key] = stored
            return
        if self._found is None:
            self._found = self._begin()
        value = self._value(self._found.format, table, key, stored)
        self._found.counts[table] = self._found.counts.get(table, 0) + 1
        if self._keep:
            self._found.rows.setdefault(table, {})[key] = value

    def end(self, transaction: int | None = None) -> Found:
        """Check the state as a whole, and return it; raises as `examine`.

        Args:
            transaction: that the file says it ends with; None where there is none.
        """
        found = self._found or self._begin()
        if (
            transaction is not None
            and found.format > 1
            and found.meta
            and found.number(b"transaction") != transaction
        ):
            raise ChecksumMismatchError(
                f"{self._where} is damaged: transaction {found.number(b'transaction')} calls "
                f"itself {transaction}"
            )
        if found.meta and not {b"cluster_id", b"hash_secret", b"epoch"} <= found.meta.keys():
            raise ChecksumMismatchError(f"{self._where} is damaged: table meta lacks a record")
        return found

    def _begin(self) -> Found:
        version = self._stored.get(records.FORMAT, b"1" if self._stored else b"")
        number = records.number(version) or 0
        if number > records.FORMAT_VERSION:
            raise VersionMismatchError(
                f"{self._where} has format {number}, this kvstore supports "
                f"{records.FORMAT_VERSION}: start the version that wrote it, or a newer one"
            )
        if number == 0 and self._stored:
            raise ChecksumMismatchError(
                f"{self._where} is damaged: {records.damaged('meta', records.FORMAT, 'no number')}"
            )
        number = number or records.FORMAT_VERSION
        meta = {key: self._value(number, "meta", key, value) for key, value in self._stored.items()}
        counts, rows = {"meta": len(meta)}, {"meta": meta} if self._keep else {}
        return Found(number, meta, counts, rows)

    def _value(self, version: int, table: str, key: bytes, stored: bytes) -> bytes:
        try:
            value = stored if version == 1 else records.unseal(table, key, stored)
            records.check(table, key, value)
        except ChecksumMismatchError as error:
            raise ChecksumMismatchError(f"{self._where} is damaged: {error}") from None
        return value
