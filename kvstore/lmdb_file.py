"""Reads an LMDB data file without mapping it: what is damaged is found before LMDB trusts it.

LMDB believes its file: a page that is missing ends the process with SIGBUS, a wrong page number in
the tree of free pages overwrites others later. So the whole structure is walked first, with plain
reads: both meta pages, every branch and leaf page that the newer one reaches, the chains of long
values, and the list of free pages. Values are not judged; their owner does that.

Layout (LMDB 0.9, lmdb.h and mdb.c): pages of one size with a header of 16 bytes; pages 0 and 1 are
the meta pages of even and odd transactions.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvstore.errors import ChecksumMismatchError, IoError

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _META = 0x01, 0x02, 0x04, 0x08
_BIG_VALUE, _TABLE = 0x01, 0x02
_INTEGER_KEYS = 0x08
_NO_PAGE = 2**64 - 1
_MOST_DEPTH = 32
_HEADER = struct.Struct("=QHHHH")  # page number, pad, flags, lower, upper
_META_HEAD = struct.Struct("=IIQQ")  # magic, version, address, map size
_DATABASE = struct.Struct("=IHHQQQQQ")
_META_TAIL = struct.Struct("=QQ")  # last page, transaction
_NODE = struct.Struct("=HHHH")  # low and high half of a size or page, flags, bytes of the key
_META_BYTES = _HEADER.size + _META_HEAD.size + 2 * _DATABASE.size + _META_TAIL.size

Row = Callable[[str, bytes, bytes], None]
"""Called with the table, the key and the value of every row."""


class _Database(NamedTuple):
    """LMDB's record of a table; `pad` is the size of a page in that of the free pages."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Meta(NamedTuple):
    """A meta page."""

    free: _Database
    main: _Database
    last_page: int
    transaction: int


def is_empty(path: Path) -> bool:
    """Say whether LMDB would begin a new database here: there is no file, or nothing in it.

    Raises:
        ChecksumMismatchError: Something else than a file has its name.
        IoError: The operating system refused.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise IoError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ChecksumMismatchError(f"{path} is not a regular file")
    return status.st_size == 0


def check(path: Path, row: Row | None = None) -> int:
    """Walk a data file.

    Args:
        path: of the file; no process may write to it meanwhile.
        row: receives the rows of all tables, ordered by table and key; None: values longer than a
            page are not read.

    Returns:
        The number of the last transaction.

    Raises:
        ChecksumMismatchError: The file is damaged; the message says where.
        IoError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise IoError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ChecksumMismatchError(f"{path} is not a regular file")
        return _Walk(path, descriptor, row).run()
    except OSError as error:
        if isinstance(error, IoError):
            raise
        raise IoError(f"{path}: {error.strerror}") from error
    except struct.error:
        raise ChecksumMismatchError(f"{path} is damaged: a page ends too early") from None
    finally:
        os.close(descriptor)


class _Walk:
    """One walk through a file."""

    def __init__(self, path: Path, descriptor: int, row: Row | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._row = row
        self._size = os.fstat(descriptor).st_size
        self._page_bytes = 0
        self._used = bytearray()

    def run(self) -> int:
        meta = self._newest_meta()
        if meta.last_page >= max(2, 2 * self._size):  # before anything of that size is allocated
            raise self._cut_short((meta.last_page + 1) * self._page_bytes)
        self._used = bytearray(meta.last_page + 1)
        self._used[0:2] = b"\1\1"
        _Tree(self, "free pages", meta.free, self._free_row).walk()
        _Tree(self, "tables", meta.main, self._table_row).walk()
        return meta.transaction

    def damaged(self, what: str) -> ChecksumMismatchError:
        return ChecksumMismatchError(f"{self._path} is damaged: {what}")

    def _cut_short(self, wanted: int) -> ChecksumMismatchError:
        return self.damaged(f"it was cut short, to {self._size:,} bytes of {wanted:,}")

    def _newest_meta(self) -> _Meta:
        first = self._meta(0, self._read(0, _META_BYTES))
        self._page_bytes = size = first.free.pad
        if size < 512 or size > 65536 or size & (size - 1):
            raise self.damaged(f"meta page 0 names pages of {size} bytes")
        second = self._meta(1, self._read(size, _META_BYTES))
        numbers = (first.transaction, second.transaction)
        in_turn = numbers[0] % 2 == 0 and numbers[1] % 2 == 1 and abs(numbers[0] - numbers[1]) == 1
        if second.free.pad != size or not (in_turn or numbers == (0, 0)):
            raise self.damaged(f"its meta pages do not belong together (transactions {numbers})")
        return max(second, first, key=lambda meta: meta.transaction)

    def _meta(self, number: int, raw: bytes) -> _Meta:
        page, _, flags, _, _ = _HEADER.unpack_from(raw)
        magic, version, _, _ = _META_HEAD.unpack_from(raw, _HEADER.size)
        if (page, flags, magic, version) != (number, _META, _MAGIC, _VERSION):
            raise self.damaged(f"page {number} is not a meta page of LMDB")
        at = _HEADER.size + _META_HEAD.size
        free = _Database(*_DATABASE.unpack_from(raw, at))
        main = _Database(*_DATABASE.unpack_from(raw, at + _DATABASE.size))
        if free.flags != _INTEGER_KEYS or main.flags != 0:
            raise self.damaged(f"meta page {number} has unknown flags")
        return _Meta(free, main, *_META_TAIL.unpack_from(raw, at + 2 * _DATABASE.size))

    def _read(self, offset: int, size: int) -> bytes:
        raw = b""
        while len(raw) < size:
            more = os.pread(self._descriptor, size - len(raw), offset + len(raw))
            if not more:
                raise self._cut_short(offset + size)
            raw += more
        return raw

    def page(self, number: int) -> bytes:
        """Read a page of a tree that nothing else uses."""
        self._take(number)
        raw = self._read(number * self._page_bytes, self._page_bytes)
        if _HEADER.unpack_from(raw)[0] != number:
            raise self.damaged(f"page {number} says that it is another one")
        return raw

    def _take(self, number: int) -> None:
        if not 2 <= number < len(self._used):
            raise self.damaged(f"there is no page {number}")
        if self._used[number]:
            raise self.damaged(f"page {number} is used twice")
        self._used[number] = 1

    def long_value(self, number: int, size: int) -> tuple[int, bytes]:
        """Return the number of pages of a long value, and its bytes if they are wanted."""
        if number * self._page_bytes >= self._size:
            raise self._cut_short((number + 1) * self._page_bytes)
        raw = self._read(number * self._page_bytes, _HEADER.size)
        page, _, flags, low, high = _HEADER.unpack_from(raw)
        pages = low | high << 16
        needed = (_HEADER.size - 1 + size) // self._page_bytes + 1
        if (page, flags) != (number, _OVERFLOW) or pages < needed or pages > len(self._used):
            raise self.damaged(f"page {number} does not begin a value of {size} bytes")
        for one in range(number, number + pages):
            self._take(one)
        offset = number * self._page_bytes + _HEADER.size
        if offset + size > self._size:
            raise self._cut_short(offset + size)
        return pages, self._read(offset, size) if self._row is not None else b""

    def _free_row(self, key: bytes, flags: int, value: bytes) -> None:
        if flags & _TABLE or len(value) < 8 or len(value) % 8:
            raise self.damaged("the list of free pages")
        numbers = struct.unpack(f"={len(value) // 8}Q", value)
        if numbers[0] >= len(numbers):
            raise self.damaged("the list of free pages")
        for number in numbers[1 : numbers[0] + 1]:
            self._take(number)

    def _table_row(self, key: bytes, flags: int, value: bytes) -> None:
        if flags != _TABLE or len(value) != _DATABASE.size:
            raise self.damaged(f"the record of table {key!r}")
        name = key.decode(errors="replace")
        table = _Database(*_DATABASE.unpack(value))
        if table.flags or table.pad:
            raise self.damaged(f"the record of table {name} has unknown flags")
        _Tree(self, f"table {name}", table, lambda k, f, v: self._tell(name, k, f, v)).walk()

    def _tell(self, table: str, key: bytes, flags: int, value: bytes) -> None:
        if flags & _TABLE:
            raise self.damaged(f"table {table} has a table inside")
        if self._row is not None:
            self._row(table, key, value)


class _Tree:
    """The tree of one table."""

    def __init__(
        self, walk: _Walk, name: str, database: _Database, row: Callable[[bytes, int, bytes], None]
    ) -> None:
        self._walk = walk
        self._name = name
        self._database = database
        self._row = row
        self._by_number = bool(database.flags & _INTEGER_KEYS)
        self._last: bytes | None = None
        self._counts = [0, 0, 0, 0]  # as in the database's record

    def walk(self) -> None:
        found = self._database
        if found.depth > _MOST_DEPTH:
            raise self._walk.damaged(f"{self._name}: a depth of {found.depth}")
        if found.root != _NO_PAGE:
            self._page(found.root, found.depth, None)
        elif found.depth:
            raise self._walk.damaged(f"{self._name}: no root")
        counted = tuple(self._counts)
        if counted != (found.branches, found.leaves, found.overflows, found.entries):
            raise self._walk.damaged(f"{self._name}: pages or rows are missing")

    def _page(self, number: int, depth: int, least: bytes | None) -> None:
        raw = self._walk.page(number)
        _, _, flags, lower, upper = _HEADER.unpack_from(raw)
        wanted = _LEAF if depth == 1 else _BRANCH
        if flags != wanted or depth < 1 or not _HEADER.size <= lower <= upper <= len(raw):
            raise self._walk.damaged(f"{self._name}: page {number}")
        count = (lower - _HEADER.size) // 2
        if count == 0:
            raise self._walk.damaged(f"{self._name}: page {number} is empty")
        offsets = struct.unpack_from(f"={count}H", raw, _HEADER.size)
        if min(offsets) < upper or max(offsets) + _NODE.size > len(raw):
            raise self._walk.damaged(f"{self._name}: page {number}")
        self._counts[1 if depth == 1 else 0] += 1
        for index, offset in enumerate(offsets):
            if depth == 1:
                self._leaf_node(number, raw, offset, least if index == 0 else None)
                continue
            low, high, upmost, key_bytes = _NODE.unpack_from(raw, offset)
            key = raw[offset + _NODE.size : offset + _NODE.size + key_bytes] if index else least
            if index:
                assert key is not None
                self._in_order(number, key, key_bytes)
            self._page(low | high << 16 | upmost << 32, depth - 1, key)

    def _leaf_node(self, page: int, raw: bytes, offset: int, least: bytes | None) -> None:
        low, high, flags, key_bytes = _NODE.unpack_from(raw, offset)
        begin = offset + _NODE.size + key_bytes
        key, size = raw[offset + _NODE.size : begin], low | high << 16
        self._in_order(page, key, key_bytes)
        if (least is not None and self._order(key) < self._order(least)) or flags & ~3:
            raise self._walk.damaged(f"{self._name}: page {page}")
        if flags & _BIG_VALUE:
            (first,) = struct.unpack_from("=Q", raw, begin)
            pages, value = self._walk.long_value(first, size)
            self._counts[2] += pages
        else:
            value = raw[begin : begin + size]
            if len(value) != size:
                raise self._walk.damaged(f"{self._name}: page {page}")
        self._counts[3] += 1
        self._last = key
        self._row(key, flags, value)

    def _in_order(self, page: int, key: bytes, key_bytes: int) -> None:
        whole = len(key) == key_bytes > 0 and (not self._by_number or key_bytes == 8)
        if not whole or (self._last is not None and self._order(key) <= self._order(self._last)):
            raise self._walk.damaged(f"{self._name}: page {page} has keys out of order")

    def _order(self, key: bytes) -> tuple[int, bytes]:
        return (int(struct.unpack("=Q", key)[0]), b"") if self._by_number else (0, key)
