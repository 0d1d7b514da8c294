"""The NVMe tier's checkpoint: durable at return, bounded, and never more than a cache."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from kvstore.errors import IoError, VersionMismatchError
from kvstore.node.nvme_catalog import NvmeCatalog


def test_rows_are_saved_replaced_loaded_listed_and_dropped(tmp_path: Path) -> None:
    catalog = NvmeCatalog(tmp_path / "catalog")
    assert catalog.list() == []
    assert catalog.load(1) is None
    for seq in (300, 2, 2**64 - 1):
        catalog.save(seq, b"row %d" % seq)
    catalog.save(2, b"replaced")
    assert catalog.list() == [2, 300, 2**64 - 1]
    assert catalog.load(2) == b"replaced"
    catalog.drop(300)
    catalog.drop(300)
    assert catalog.list() == [2, 2**64 - 1]
    catalog.close()
    again = NvmeCatalog(tmp_path / "catalog")
    assert again.load(2**64 - 1) == b"row %d" % (2**64 - 1)
    again.close()


def test_rows_survive_kill_9(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from kvstore.node.nvme_catalog import NvmeCatalog
catalog = NvmeCatalog(Path(sys.argv[1]))
catalog.read()
catalog.save(7, bytes(100_000))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    catalog = NvmeCatalog(tmp_path)
    assert catalog.load(7) == bytes(100_000)
    catalog.close()


def test_the_map_grows_up_to_its_bound_and_goes_on_after_it(tmp_path: Path) -> None:
    catalog = NvmeCatalog(tmp_path, max_bytes=48 << 20)
    saved = 0
    with pytest.raises(IoError, match="full"):
        for seq in range(1, 100):
            catalog.save(seq, bytes([seq]) * (1 << 20))
            saved = seq
    assert saved > 16, "it has to grow beyond its first size"
    assert catalog.list() == list(range(1, saved + 1))
    assert catalog.load(saved) == bytes([saved]) * (1 << 20)
    for seq in range(1, 4):
        catalog.drop(seq)
    catalog.save(500, bytes(1 << 20))
    assert catalog.load(500) == bytes(1 << 20)
    catalog.close()


def test_threads_share_it(tmp_path: Path) -> None:
    catalog = NvmeCatalog(tmp_path)

    def work(first: int) -> None:
        for seq in range(first, first + 20):
            catalog.save(seq, bytes([first % 256]) * 200_000)
            assert catalog.load(seq) == bytes([first % 256]) * 200_000
            if seq % 2:
                catalog.drop(seq)

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(work, first) for first in (100, 200, 300, 400)]:
            one.result()
    assert len(catalog.list()) == 40
    catalog.close()


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IoError, match="NVMe catalog"):
        NvmeCatalog(tmp_path / "file" / "below")
    (tmp_path / "folder" / "data.mdb").mkdir(parents=True)
    with pytest.raises(IoError, match="NVMe catalog"):
        NvmeCatalog(tmp_path / "folder")


def noise(file: Path) -> None:
    file.write_bytes(b"no database" * 1000)


def cut(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [noise, cut, empty])
def test_a_file_that_is_no_database_any_more_is_begun_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    catalog = NvmeCatalog(tmp_path)
    catalog.save(1, bytes(100_000))
    catalog.close()
    damage(tmp_path / "data.mdb")
    again = NvmeCatalog(tmp_path)
    assert again.list() == []
    again.save(2, b"row")
    again.close()
    third = NvmeCatalog(tmp_path)
    assert third.list() == [2]
    third.close()


DIES = """
import os, signal, sys
from pathlib import Path
from kvstore.node.nvme_catalog import NvmeCatalog
catalog = NvmeCatalog(Path(sys.argv[1]))
if sys.argv[2] == "later":
    catalog.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_ended_a_process_that_read_it_is_not_read_again(tmp_path: Path) -> None:
    catalog = NvmeCatalog(tmp_path)
    catalog.save(1, b"row")
    catalog.close()
    for when, found in (("later", [1]), ("reading", [])):
        done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path), when], check=False)
        assert done.returncode == -9
        again = NvmeCatalog(tmp_path)
        assert again.list() == found
        again.close()


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    NvmeCatalog(tmp_path).close()
    with lmdb.open(str(tmp_path), max_dbs=2) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            txn.put(b"format", b"2", db=meta)
    with pytest.raises(VersionMismatchError, match="format 2"):
        NvmeCatalog(tmp_path)


def test_a_format_that_is_no_number_is_damage(tmp_path: Path) -> None:
    for damaged in (b"", b"-1", b"1 ", b"9" * 5000):  # the last is more than int() takes
        NvmeCatalog(tmp_path).close()
        with lmdb.open(str(tmp_path), max_dbs=2) as env, env.begin(write=True) as txn:
            txn.put(bytes(7) + b"\1", b"row", db=env.open_db(b"manifests", txn))
            txn.put(b"format", damaged, db=env.open_db(b"meta", txn))
        catalog = NvmeCatalog(tmp_path)
        assert catalog.list() == []
        catalog.close()


def test_no_segment_has_such_a_number(tmp_path: Path) -> None:
    catalog = NvmeCatalog(tmp_path)
    for seq in (0, -1, 2**64):
        with pytest.raises(IoError):
            catalog.save(seq, b"")
    catalog.close()
    with pytest.raises(IoError):
        catalog.load(1)
