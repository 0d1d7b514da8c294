"""The walk through an LMDB file: what LMDB wrote is whole, changes of its structure are found."""

from __future__ import annotations

import os
import random
from pathlib import Path

import lmdb
import pytest

from kvstore import lmdb_file
from kvstore.errors import ChecksumMismatchError, IoError

Rows = dict[tuple[str, bytes], bytes]
_PAGE = 4096


def rows_of(path: Path) -> tuple[int, Rows]:
    found: Rows = {}

    def row(table: str, key: bytes, value: bytes) -> None:
        found[table, key] = value

    return lmdb_file.check(path, row), found


def written(folder: Path, rounds: int, seed: int) -> tuple[int, Rows]:
    """Write, delete and overwrite at random; what must be there afterwards."""
    choose = random.Random(seed)
    expected: Rows = {}
    env = lmdb.open(str(folder), map_size=64 << 20, max_dbs=3)
    tables = {name: env.open_db(name.encode()) for name in ("a", "b", "c")}
    last = 0
    for _ in range(rounds):
        with env.begin(write=True) as txn:
            last = txn.id()
            for _ in range(choose.randrange(1, 120)):
                name = choose.choice("ab")
                key = choose.randbytes(choose.randrange(1, 30))
                value = choose.randbytes(choose.choice([0, 10, 300, 3000, 20_000]))
                txn.put(key, value, db=tables[name])
                expected[name, key] = value
            for name, key in choose.sample(sorted(expected), len(expected) // 4):
                txn.delete(key, db=tables[name])
                del expected[name, key]
    env.close()
    return last, expected


@pytest.mark.parametrize("seed", range(4))
def test_what_lmdb_wrote_is_read_back(tmp_path: Path, seed: int) -> None:
    expected = written(tmp_path, 1 + 9 * seed, seed)
    assert rows_of(tmp_path / "data.mdb") == expected
    assert lmdb_file.check(tmp_path / "data.mdb") == expected[0]


def test_a_new_database_is_whole_and_an_empty_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    assert lmdb_file.is_empty(path)
    path.touch()
    assert lmdb_file.is_empty(path)
    lmdb.open(str(tmp_path)).close()
    assert not lmdb_file.is_empty(path)
    assert rows_of(path) == (0, {})


def test_flipped_bits_are_found_or_leave_every_key_in_its_place(tmp_path: Path) -> None:
    _, expected = written(tmp_path, 30, 1)
    raw = (tmp_path / "data.mdb").read_bytes()
    path = tmp_path / "flipped"
    choose = random.Random(2)
    found = 0
    for _ in range(400):
        page = choose.choice([0, 1, choose.randrange(len(raw) // _PAGE)])
        at = page * _PAGE + choose.randrange(choose.choice([160, _PAGE]))
        flipped = bytearray(raw)
        flipped[at] ^= 1 << choose.randrange(8)
        path.write_bytes(flipped)
        try:
            _, rows = rows_of(path)
        except ChecksumMismatchError as error:
            assert "damaged" in str(error)
            found += 1
        else:
            assert len(rows) == len(expected)  # bytes of a key or value, or nothing that counts
    assert found > 40


def test_a_file_that_was_cut_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    written(tmp_path, 20, 3)
    raw = (tmp_path / "data.mdb").read_bytes()
    path = tmp_path / "cut"
    for size in (1, 100, _PAGE, _PAGE + 1, 2 * _PAGE, len(raw) // 2, len(raw) - _PAGE):
        path.write_bytes(raw[:size])
        with pytest.raises(ChecksumMismatchError, match="cut short"):
            lmdb_file.check(path)


def test_an_exchanged_or_older_root_is_found(tmp_path: Path) -> None:
    """The meta page of the transaction before, made to look like the newest one."""
    written(tmp_path, 6, 4)
    raw = bytearray((tmp_path / "data.mdb").read_bytes())
    at = {page: page * _PAGE + 16 + 24 + 96 + 8 for page in (0, 1)}
    numbers = {page: int.from_bytes(raw[at[page] : at[page] + 8], "little") for page in at}
    older = min(numbers, key=lambda page: numbers[page])
    raw[at[older] : at[older] + 8] = (numbers[older] + 4).to_bytes(8, "little")
    (tmp_path / "turned").write_bytes(raw)
    with pytest.raises(ChecksumMismatchError, match="do not belong together"):
        lmdb_file.check(tmp_path / "turned")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "link", "folder"):
        with pytest.raises((ChecksumMismatchError, IoError)):
            lmdb_file.check(tmp_path / name)
        with pytest.raises(ChecksumMismatchError, match="not a regular file"):
            lmdb_file.is_empty(tmp_path / name)
