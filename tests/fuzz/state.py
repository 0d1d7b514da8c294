"""Targets for the databases of master and node, as an earlier process or a disk has left them.

An input is a list of changes of a small valid database, each a byte for its kind, then
0: page (1 byte), offset in it (2), length (1), bytes; 1: the same for the file beside the database;
2: table (1), length of a key (1), key, length of a value (2), value, which are written as a record
with a right checksum.
"""

from __future__ import annotations

import functools
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from kvstore import _native
from kvstore.config import MasterConfig
from kvstore.errors import IoError, KvstoreError, VersionMismatchError
from kvstore.master import cluster_file, records
from kvstore.master.lmdb_state import LmdbState
from kvstore.master.records import TABLES, NodeRecord
from kvstore.master.registry import Registry
from kvstore.master.server import MasterServer, settings_of
from kvstore.master.state_audit import DATA_FILE
from kvstore.node.nvme_catalog import NvmeCatalog
from kvstore.reload import Reloads
from kvstore.tasks import BackgroundTasks
from tests.support.wire import crc32c

_PAGE_BYTES = 4096
_PAGE, _BESIDE, _RECORD = range(3)


class _Change(NamedTuple):
    kind: int
    where: int
    """A page, or the number of a table."""
    at: bytes | int
    """A key, or an offset."""
    value: bytes


def _changes(raw: bytes) -> Iterator[_Change]:
    while len(raw) >= 5:
        kind = raw[0] % 3
        if kind == _RECORD:
            table, size = raw[1] % len(TABLES), raw[2]
            key, raw = raw[3 : 3 + size], raw[3 + size :]
            if len(raw) < 2:
                return
            (length,) = struct.unpack_from("<H", raw)
            yield _Change(kind, table, key, raw[2 : 2 + length])
            raw = raw[2 + length :]
        else:
            page, offset, length = struct.unpack_from("<BHB", raw, 1)
            yield _Change(kind, page, offset, raw[5 : 5 + length])
            raw = raw[5 + length :]


def _patched(whole: bytes, changes: list[_Change], kind: int) -> bytes:
    changed = bytearray(whole)
    pages = max(1, len(whole) // _PAGE_BYTES)
    for change in changes:
        if change.kind != kind or not isinstance(change.at, int):
            continue
        at = change.where % pages * _PAGE_BYTES + change.at % _PAGE_BYTES
        if not change.value:
            del changed[at:]  # as a disk that was full has left it
        elif at <= len(changed):
            changed[at : at + len(change.value)] = change.value
    return bytes(changed)


@functools.cache
def _master_state() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="kvstore-fuzz-") as name:
        folder = Path(name)
        state = LmdbState(folder)
        for number, node_id in enumerate(("a", "b", "node of a long name " * 10)):
            record = NodeRecord(
                node_id=node_id,
                node_epoch=number,
                incarnation=2**64 - 1,
                draining=number == 1,
                left=number == 2,
                last_seen_unix_ms=1_700_000_000_000,
            )
            state.put_nodes([record])
        state.append_ops([(n, _operation(n)) for n in range(1, 60)])
        state.trim(3, 42, [("t", "s", 2), ("t", "another", 1)])
        state.settle()
        state.close()
        return {file: (folder / file).read_bytes() for file in (DATA_FILE, cluster_file.NAME)}


def _operation(number: int) -> bytes:
    """The record of a remove, as the native log encodes it."""
    head = struct.pack("<4sQBIQQHHH", b"KVJ\1", number, 1, 0, number, 0, 1, 1, 3)
    body = head + b"ts" + b"%03d" % number
    return body + struct.pack("<I", crc32c(body))


def _write_records(folder: Path, changes: list[_Change]) -> None:
    """Write records, and the number of their transaction, with right checksums."""
    rows = [change for change in changes if change.kind == _RECORD and change.at]
    if not rows:
        return
    with lmdb.open(str(folder), max_dbs=len(TABLES), map_size=1 << 26) as env:
        tables = {name: env.open_db(name.encode()) for name in TABLES}
        with env.begin(write=True) as txn:
            number = b"%d" % txn.id()
            for row in (*rows, _Change(_RECORD, 0, b"transaction", number)):
                assert isinstance(row.at, bytes)
                table = TABLES[row.where]
                txn.put(row.at, records.seal(table, row.at, row.value), db=tables[table])


def start(folder: Path) -> bool:
    """Begin as a master does, up to its ports; return whether the state was accepted."""
    try:
        state = LmdbState(folder)
    except KvstoreError as error:
        assert str(error)
        return False
    try:
        config = MasterConfig(port=0, grpc_port=0, http_port=0)
        # What these make is not called before the ports are open.
        unused: Any = None
        core_of: Any = _native.MasterCore
        server = MasterServer(config, core_of, unused, Reloads(), BackgroundTasks(), unused)
        core = server._create_core(state)
        try:
            Registry(settings_of(config), core, state).tick()
        finally:
            core.stop()
    except KvstoreError as error:
        assert str(error)
        return False
    finally:
        state.close()
    return True


def master_state(raw: bytes) -> None:
    """The folder of a master's state: it starts, or says what is damaged."""
    changes = list(_changes(raw))
    with tempfile.TemporaryDirectory(prefix="kvstore-fuzz-") as name:
        folder = Path(name)
        base = _master_state()
        (folder / DATA_FILE).write_bytes(base[DATA_FILE])
        _write_records(folder, changes)
        whole = (folder / DATA_FILE).read_bytes()
        (folder / DATA_FILE).write_bytes(_patched(whole, changes, _PAGE))
        beside = _patched(base[cluster_file.NAME], changes, _BESIDE)
        (folder / cluster_file.NAME).write_bytes(beside)
        started = start(folder)
        assert started or changes
        if started:
            assert start(folder), "what was accepted once is accepted again"


@functools.cache
def _catalog() -> bytes:
    with tempfile.TemporaryDirectory(prefix="kvstore-fuzz-") as name:
        catalog = NvmeCatalog(Path(name))
        for seq in range(1, 40):
            catalog.save(seq, bytes([seq]) * seq * 150)
        catalog.drop(3)
        catalog.close()
        return (Path(name) / DATA_FILE).read_bytes()


def nvme_catalog(raw: bytes) -> None:
    """The catalog of an NVMe tier: it opens, if need be as an empty one, and works."""
    with tempfile.TemporaryDirectory(prefix="kvstore-fuzz-") as name:
        folder = Path(name)
        (folder / DATA_FILE).write_bytes(_patched(_catalog(), list(_changes(raw)), _PAGE))
        try:
            catalog = NvmeCatalog(folder)
        except VersionMismatchError as error:
            assert str(folder) in str(error)
            return
        try:
            for seq in catalog.list():
                if seq:
                    catalog.load(seq)
            catalog.save(100, b"new" * 1000)
            catalog.drop(5)
            assert catalog.load(100) == b"new" * 1000
        except IoError as error:
            assert str(folder) in str(error)
        finally:
            catalog.close()
