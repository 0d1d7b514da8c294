"""What survives the master: durable at return, one owner at a time, readable by the next life."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import msgspec
import pytest

from kvstore.errors import (
    ChecksumMismatchError,
    InvalidArgumentError,
    IoError,
    NoSpaceError,
    UnavailableError,
    VersionMismatchError,
)
from kvstore.master import state_export
from kvstore.master.lmdb_state import LmdbState
from kvstore.master.records import NodeRecord
from kvstore.master.state_audit import Found
from tests.support.mounts import fill as fill_disk
from tests.support.mounts import small_tmpfs


def record(node_id: str = "a") -> NodeRecord:
    return NodeRecord(
        node_id=node_id,
        node_epoch=3,
        incarnation=2**64 - 1,
        draining=True,
        left=False,
        last_seen_unix_ms=1_700_000_000_000,
    )


def operation(number: int, size: int = 62) -> bytes:
    """What the state takes for a record of the native log; only that looks further."""
    return b"KVJ\1" + number.to_bytes(8, "little") + b"x" * (size - 12)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_identity_stays_and_the_epoch_grows(tmp_path: Path) -> None:
    lives = []
    for _ in range(3):
        state = LmdbState(tmp_path / "data")
        lives.append((state.epoch, state.cluster_id, state.hash_secret))
        state.close()
    assert [epoch for epoch, _, _ in lives] == [1, 2, 3]
    assert len({(cluster, secret) for _, cluster, secret in lives}) == 1
    assert len(lives[0][1]) == 32 and len(lives[0][2]) == 16


def test_every_table_survives_kill_9(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from kvstore.master.lmdb_state import LmdbState
from tests.unit.test_lmdb_state import operation, record
state = LmdbState(Path(sys.argv[1]))
state.put_nodes([record("a"), record("b")]); state.delete_node("b")
state.append_ops([(n, operation(n)) for n in range(1, 300)])
state.trim(297, 42, [("t", "", 2), ("t", "ns", 0), ("ü", "x", 1)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert python(code, str(tmp_path)).returncode == -9
    state = LmdbState(tmp_path)
    assert state.nodes() == [record("a")]
    assert state.ops() == [operation(298), operation(299)]
    assert state.trimmed() == (297, 42)
    assert sorted(state.namespaces()) == [("t", "", 2), ("ü", "x", 1)]
    state.close()


def test_ops_keep_their_order_and_may_be_written_again(tmp_path: Path) -> None:
    state = LmdbState(tmp_path)
    state.append_ops([(2**40, b"late"), (255, b"early"), (256, b"middle")])
    state.append_ops([(256, b"middle")])
    assert state.ops() == [b"early", b"middle", b"late"]
    state.trim(255, 1, [])
    assert state.ops() == [b"middle", b"late"]
    state.trim(2**41, 2, [])
    assert state.ops() == []
    state.close()


def test_the_map_grows(tmp_path: Path) -> None:
    state = LmdbState(tmp_path)
    for batch in range(3):
        state.append_ops([(batch * 1000 + n, bytes(50_000)) for n in range(1000)])
    assert len(state.ops()) == 3000
    state.close()


def test_exactly_one_master_owns_a_directory(tmp_path: Path) -> None:
    state = LmdbState(tmp_path)
    code = """
import sys
from pathlib import Path
from kvstore.master.lmdb_state import LmdbState
LmdbState(Path(sys.argv[1]))
"""
    second = python(code, str(tmp_path))
    assert second.returncode == 1 and "another master is active (process" in second.stderr
    state.close()
    assert python(code, str(tmp_path)).returncode == 0


def test_the_lock_file_is_never_deleted(tmp_path: Path) -> None:
    LmdbState(tmp_path).close()
    inode = (tmp_path / "lock").stat().st_ino
    state = LmdbState(tmp_path)
    assert (tmp_path / "lock").stat().st_ino == inode
    state.close()
    assert (tmp_path / "lock").exists()


def test_nobody_else_may_read_the_secret(tmp_path: Path) -> None:
    LmdbState(tmp_path / "data").close()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert all(f.stat().st_mode & 0o077 == 0 for f in (tmp_path / "data").iterdir())


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    LmdbState(tmp_path).close()
    with lmdb.open(str(tmp_path), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"3", db=env.open_db(b"meta", txn))
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(VersionMismatchError, match="format 3"):
        LmdbState(tmp_path)
    with pytest.raises(VersionMismatchError, match="format 3"):
        LmdbState(tmp_path, new_cluster=True)
    assert (tmp_path / "data.mdb").read_bytes() == before


def write_format_1(folder: Path) -> None:
    """What a master of kvstore 0.1 leaves."""
    tables: dict[str, dict[bytes, bytes]] = {
        "meta": {
            b"format": b"1",
            b"epoch": b"7",
            b"cluster_id": b"ab" * 16,
            b"hash_secret": bytes(range(16)),
            b"trimmed_seq": b"3",
            b"version_floor": b"42",
        },
        "nodes": {b"a": msgspec.json.encode(record("a"))},
        "namespaces": {b"t\0ns": b"2"},
        "ops": {n.to_bytes(8, "big"): operation(n) for n in (4, 5)},
    }
    with lmdb.open(str(folder), max_dbs=4) as env:
        for table, rows in tables.items():
            with env.begin(write=True, db=env.open_db(table.encode())) as txn:
                for key, value in rows.items():
                    txn.put(key, value)


def test_format_1_is_upgraded_in_place(tmp_path: Path) -> None:
    write_format_1(tmp_path)
    assert state_export.check(tmp_path).format == 1
    for epoch in (8, 9):
        state = LmdbState(tmp_path)
        assert (state.epoch, state.cluster_id, state.settled) == (epoch, "ab" * 16, True)
        assert state.hash_secret == bytes(range(16))
        assert state.nodes() == [record("a")]
        assert state.namespaces() == [("t", "ns", 2)]
        assert [op[4] for op in state.ops()] == [4, 5]
        assert state.trimmed() == (3, 42)
        state.close()
    assert state_export.check(tmp_path).format == 2


def test_a_record_of_format_1_that_cannot_be_is_named(tmp_path: Path) -> None:
    write_format_1(tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"{", db=env.open_db(b"nodes", txn))
    with pytest.raises(ChecksumMismatchError, match="table nodes, record 'a'"):
        LmdbState(tmp_path)


def fill(folder: Path) -> str:
    """A state with something in every table; its cluster."""
    state = LmdbState(folder)
    state.put_nodes([record("a")])
    state.append_ops([(n, operation(n)) for n in range(1, 200)])
    state.trim(100, 42, [("t", "ns", 2)])
    state.settle()
    state.close()
    return state.cluster_id


def test_flipped_bits_change_nothing_or_are_refused(tmp_path: Path) -> None:
    """In records and in the structure around them."""
    fill(tmp_path)
    whole = state_export.check(tmp_path, keep=True)
    path = tmp_path / "data.mdb"
    raw = path.read_bytes()
    refused: dict[int, bool] = {}
    values = [value for rows in whole.rows.values() for value in rows.values() if len(value) > 3]
    for value in values[:40]:
        live = False  # a copy of an older transaction is nobody's
        for match in re.finditer(re.escape(value), raw):
            live |= is_refused(path, raw, match.start() + len(value) // 2, whole)
        assert live
    for page in range(0, len(raw), 4096):
        for at in (0, 10, 12, 16, 40, 90):
            refused[page + at] = is_refused(path, raw, page + at, whole)
    assert sum(refused.values()) > 20


def is_refused(path: Path, raw: bytes, at: int, whole: Found) -> bool:
    """Whether the file is refused with a bit flipped; if not, it must read as before."""
    flipped = bytearray(raw)
    flipped[at] ^= 4
    path.write_bytes(flipped)
    try:
        found = state_export.check(path.parent, keep=True)
    except (ChecksumMismatchError, VersionMismatchError):
        return True
    assert found == whole
    return False


def test_the_table_and_key_of_a_damaged_record_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "data.mdb"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"node_epoch":3', b'"node_epoch":2'))
    with pytest.raises(ChecksumMismatchError, match="table nodes, record 'a': wrong checksum"):
        LmdbState(tmp_path)
    path.write_bytes(raw.replace((150).to_bytes(8, "little") + b"x", bytes(9)))
    with pytest.raises(ChecksumMismatchError, match="table ops, record 150"):
        LmdbState(tmp_path)


@pytest.mark.parametrize("damage", ["emptied", "deleted"])
def test_a_lost_state_is_not_taken_for_a_new_cluster(tmp_path: Path, damage: str) -> None:
    cluster = fill(tmp_path)
    if damage == "emptied":
        os.truncate(tmp_path / "data.mdb", 0)
    else:
        (tmp_path / "data.mdb").unlink()
    for _ in range(2):
        with pytest.raises(ChecksumMismatchError, match=f"that of cluster {cluster}.*missing or e"):
            LmdbState(tmp_path)
    state = LmdbState(tmp_path, new_cluster=True)
    assert state.cluster_id != cluster and state.settled
    state.close()
    with pytest.raises(InvalidArgumentError, match="without --new-cluster"):
        LmdbState(tmp_path, new_cluster=True)
    LmdbState(tmp_path).close()


def test_a_damaged_state_is_kept_renamed_by_a_new_cluster(tmp_path: Path) -> None:
    fill(tmp_path)
    os.truncate(tmp_path / "data.mdb", 20_000)
    with pytest.raises(ChecksumMismatchError, match="cut short"):
        LmdbState(tmp_path)
    LmdbState(tmp_path, new_cluster=True).close()
    assert (tmp_path / "data.mdb.1").stat().st_size == 20_000
    assert (tmp_path / "cluster.1").exists()


def test_a_state_of_another_cluster_is_refused(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "a"), fill(tmp_path / "b")
    shutil.copy(tmp_path / "b/data.mdb", tmp_path / "a/data.mdb")
    with pytest.raises(ChecksumMismatchError, match=f"{first}, but its state.*{second}"):
        LmdbState(tmp_path / "a")


def test_an_older_state_goes_on_above_the_last_epoch(tmp_path: Path) -> None:
    fill(tmp_path)
    older = (tmp_path / "data.mdb").read_bytes()
    for _ in range(3):
        LmdbState(tmp_path).close()
    (tmp_path / "data.mdb").write_bytes(older)
    state = LmdbState(tmp_path)
    assert state.epoch == 5
    state.close()


@pytest.mark.parametrize("damage", ["deleted", "emptied", "flipped", "fifo", "link"])
def test_the_clusters_file_is_written_again(tmp_path: Path, damage: str) -> None:
    fill(tmp_path)
    path = tmp_path / "cluster"
    text = path.read_text()
    path.unlink()
    if damage == "fifo":
        os.mkfifo(path)
    elif damage == "link":
        path.symlink_to("/dev/zero")
    elif damage != "deleted":
        path.write_text("" if damage == "emptied" else text.replace('"epoch": 1', '"epoch": 3'))
    LmdbState(tmp_path).close()
    assert path.read_text() == text.replace(text[-12:], path.read_text()[-12:]).replace(
        '"epoch": 1', '"epoch": 2'
    )


def test_reserved_pages_hold_operations_that_a_full_disk_has_no_room_for(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", "2m") as disk:
        state = LmdbState(disk / "data")
        state.reserve()
        fill_disk(disk)
        room, number = state.room_bytes(), 0
        assert 100_000 < room < 400_000
        while room >= 10_000:
            rows = [(number + n, operation(number + n, 200)) for n in range(room // 2000)]
            state.append_ops(rows)
            number += len(rows)
            room = state.room_bytes()
        assert number * 220 > 100_000
        with pytest.raises(NoSpaceError, match="No space left"):
            for batch in range(1000):
                state.append_ops([(number + batch, operation(number + batch, 3000))])
        state.close()
        (disk / "other").unlink()
        state = LmdbState(disk / "data")
        assert len(state.ops()) >= number
        state.close()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IoError, match="data directory"):
        LmdbState(tmp_path / "file")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "data.mdb").write_bytes(b"not lmdb" * 1000)
    for _ in range(2):  # the lock is given back
        with pytest.raises(ChecksumMismatchError, match="torn"):
            LmdbState(tmp_path / "torn")


def test_the_holder_may_be_asked_again_after_a_failure(tmp_path: Path) -> None:
    first = LmdbState(tmp_path)
    first.close()
    with pytest.raises(UnavailableError):
        code = "import sys; from pathlib import Path; from kvstore.master.lmdb_state import _lock\n"
        code += "import time; _lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            LmdbState(tmp_path)
    LmdbState(tmp_path).close()
