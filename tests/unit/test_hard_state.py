"""What survives the master: durable at return, one owner at a time, readable by the next life."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from kvstore.errors import IoError, UnavailableError, VersionMismatchError
from kvstore.master.hard_state import HardState, NodeRecord


def record(node_id: str = "a") -> NodeRecord:
    return NodeRecord(
        node_id=node_id,
        node_epoch=3,
        incarnation=2**64 - 1,
        draining=True,
        left=False,
        last_seen_unix_ms=1_700_000_000_000,
    )


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_identity_stays_and_the_epoch_grows(tmp_path: Path) -> None:
    lives = []
    for _ in range(3):
        state = HardState(tmp_path / "data")
        lives.append((state.epoch, state.cluster_id, state.hash_secret))
        state.close()
    assert [epoch for epoch, _, _ in lives] == [1, 2, 3]
    assert len({(cluster, secret) for _, cluster, secret in lives}) == 1
    assert len(lives[0][1]) == 32 and len(lives[0][2]) == 16


def test_every_table_survives_kill_9(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from kvstore.master.hard_state import HardState
from tests.unit.test_hard_state import record
state = HardState(Path(sys.argv[1]))
state.put_node(record("a")); state.put_node(record("b")); state.delete_node("b")
state.append_ops([(n, b"op%d" % n) for n in range(1, 300)])
state.trim(297, 42, [("t", "", 2), ("t", "ns", 0), ("ü", "x", 1)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert python(code, str(tmp_path)).returncode == -9
    state = HardState(tmp_path)
    assert state.nodes() == [record("a")]
    assert state.ops() == [b"op298", b"op299"]
    assert state.trimmed() == (297, 42)
    assert sorted(state.namespaces()) == [("t", "", 2), ("ü", "x", 1)]
    state.close()


def test_ops_keep_their_order_and_may_be_written_again(tmp_path: Path) -> None:
    state = HardState(tmp_path)
    state.append_ops([(2**40, b"late"), (255, b"early"), (256, b"middle")])
    state.append_ops([(256, b"middle")])
    assert state.ops() == [b"early", b"middle", b"late"]
    state.trim(255, 1, [])
    assert state.ops() == [b"middle", b"late"]
    state.trim(2**41, 2, [])
    assert state.ops() == []
    state.close()


def test_the_map_grows(tmp_path: Path) -> None:
    state = HardState(tmp_path)
    for batch in range(3):
        state.append_ops([(batch * 1000 + n, bytes(50_000)) for n in range(1000)])
    assert len(state.ops()) == 3000
    state.close()


def test_exactly_one_master_owns_a_directory(tmp_path: Path) -> None:
    state = HardState(tmp_path)
    code = """
import sys
from pathlib import Path
from kvstore.master.hard_state import HardState
HardState(Path(sys.argv[1]))
"""
    second = python(code, str(tmp_path))
    assert second.returncode == 1 and "another master is active (process" in second.stderr
    state.close()
    assert python(code, str(tmp_path)).returncode == 0


def test_the_lock_file_is_never_deleted(tmp_path: Path) -> None:
    HardState(tmp_path).close()
    inode = (tmp_path / "lock").stat().st_ino
    state = HardState(tmp_path)
    assert (tmp_path / "lock").stat().st_ino == inode
    state.close()
    assert (tmp_path / "lock").exists()


def test_nobody_else_may_read_the_secret(tmp_path: Path) -> None:
    HardState(tmp_path / "data").close()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert all(f.stat().st_mode & 0o077 == 0 for f in (tmp_path / "data").iterdir())


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    HardState(tmp_path).close()
    with lmdb.open(str(tmp_path), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"2", db=env.open_db(b"meta", txn))
    with pytest.raises(VersionMismatchError, match="format 2"):
        HardState(tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=4) as env, env.begin() as txn:
        assert txn.get(b"epoch", db=env.open_db(b"meta", txn)) == b"1"


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IoError, match="data directory"):
        HardState(tmp_path / "file")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "data.mdb").write_bytes(b"not lmdb" * 1000)
    with pytest.raises(IoError, match="torn"):
        HardState(tmp_path / "torn")
    with pytest.raises(IoError, match="torn"):  # the lock was given back
        HardState(tmp_path / "torn")


def test_the_holder_may_be_asked_again_after_a_failure(tmp_path: Path) -> None:
    first = HardState(tmp_path)
    first.close()
    with pytest.raises(UnavailableError):
        code = "import sys; from pathlib import Path; from kvstore.master.hard_state import _lock\n"
        code += "import time; _lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            HardState(tmp_path)
    HardState(tmp_path).close()
