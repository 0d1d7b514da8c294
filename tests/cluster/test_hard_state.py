"""What every hard state keeps, in LMDB and in a real etcd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import lmdb
import pytest

from kvstore.errors import ChecksumMismatchError, InvalidArgumentError, VersionMismatchError
from kvstore.master.hard_state import HardState
from kvstore.master.lmdb_state import LmdbState
from kvstore.master.records import TABLES
from tests.support.etcd import NEEDS_ETCD, Etcd
from tests.unit.test_lmdb_state import operation, record

pytestmark = pytest.mark.cluster


class Place(Protocol):
    """Where a state lies."""

    def open(self, *, new_cluster: bool = False) -> HardState: ...

    def write(self, table: str, key: bytes, stored: bytes) -> None:
        """Write a row behind the state's back."""


class InLmdb:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, *, new_cluster: bool = False) -> HardState:
        return LmdbState(self._folder, new_cluster=new_cluster)

    def write(self, table: str, key: bytes, stored: bytes) -> None:
        with lmdb.open(str(self._folder), max_dbs=len(TABLES)) as env:
            tables = env.open_db(table.encode())
            with env.begin(write=True, db=tables) as txn:
                txn.put(key, stored)


class InEtcd:
    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd

    def open(self, *, new_cluster: bool = False) -> HardState:
        from kvstore.master.etcd_state import EtcdState
        from kvstore.master.leadership import campaign

        client = self._etcd.client()
        # A minute, so that nothing that a test does makes the lease's timer end it.
        held = campaign(client, {}, 60, lambda why: None)
        assert held is not None
        try:
            return EtcdState(client, held, new_cluster=new_cluster)
        except BaseException:
            held.resign()
            client.close()
            raise

    def write(self, table: str, key: bytes, stored: bytes) -> None:
        from kvstore.master.etcd_client import put

        client = self._etcd.client()
        name = client.prefix + table.encode() + b"/" + key
        found = client.get(name)
        assert client.write(name, found.revision if found else 0, [put(name, stored)])
        client.close()


@pytest.fixture(params=["lmdb", pytest.param("etcd", marks=NEEDS_ETCD)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "lmdb":
        yield InLmdb(tmp_path)
        return
    etcd = Etcd(tmp_path)
    try:
        yield InEtcd(etcd)
    finally:
        etcd.stop()


@pytest.fixture
def reopened(place: Place) -> Iterator[Callable[[], HardState]]:
    """Opens the state again and again; each time the one before is closed."""
    opened: list[HardState] = []

    def again() -> HardState:
        if opened:
            opened.pop().close()
        opened.append(place.open())
        return opened[-1]

    yield again
    for state in opened:
        state.close()


def test_identity_stays_and_the_epoch_grows(reopened: Callable[[], HardState]) -> None:
    lives = []
    for _ in range(3):
        state = reopened()
        lives.append((state.epoch, state.cluster_id, state.hash_secret))
        assert not state.settled
    assert [epoch for epoch, _, _ in lives] == [1, 2, 3]
    assert len({(cluster, secret) for _, cluster, secret in lives}) == 1
    assert len(lives[0][1]) == 32 and len(lives[0][2]) == 16


def test_every_table_is_there_again(reopened: Callable[[], HardState]) -> None:
    state = reopened()
    state.put_nodes([record("a"), record("b"), record("ü/\xff x"), record("a")])
    state.delete_node("b")
    state.delete_node("never there")
    state.append_ops([(n, operation(n)) for n in range(1, 300)])
    state.trim(297, 42, [("t", "", 2), ("t", "ns", 0), ("ü", "x/y", 1)])
    state.settle()
    state = reopened()
    assert state.nodes() == [record("a"), record("ü/\xff x")]
    assert state.ops() == [operation(298), operation(299)]
    assert state.trimmed() == (297, 42)
    assert sorted(state.namespaces()) == [("t", "", 2), ("ü", "x/y", 1)]
    assert state.settled


def test_operations_keep_their_order_and_may_be_written_again(
    reopened: Callable[[], HardState],
) -> None:
    state = reopened()
    numbers = [2**40, 255, 256]
    state.append_ops([(n, operation(n)) for n in numbers])
    state.append_ops([(256, operation(256))])
    assert state.ops() == [operation(n) for n in sorted(numbers)]
    state.trim(255, 1, [])
    assert state.ops() == [operation(256), operation(2**40)]
    state.trim(2**64 - 1, 2, [])
    assert state.ops() == [] and state.trimmed() == (2**64 - 1, 2)


def test_more_than_a_transaction_holds(reopened: Callable[[], HardState]) -> None:
    """etcd takes 128 writes and 1.5 MiB at once."""
    state = reopened()
    state.append_ops([(n, operation(n, 6000)) for n in range(1, 1001)])
    many = [("t", f"n{n}", n) for n in range(1, 500)]
    state.trim(10, 3, many)
    changed = [("t", f"n{n}", n + (n == 7)) for n in range(1, 500)]
    state.trim(20, 4, changed)
    state = reopened()
    assert state.ops() == [operation(n, 6000) for n in range(21, 1001)]
    assert sorted(state.namespaces()) == sorted(changed)
    assert state.trimmed() == (20, 4)


def test_there_is_room_for_operations(reopened: Callable[[], HardState]) -> None:
    state = reopened()
    state.reserve()
    assert state.room_bytes() > 1 << 20


def test_a_new_cluster_does_not_replace_one_in_use(place: Place) -> None:
    state = place.open(new_cluster=True)
    assert state.settled
    state.close()
    with pytest.raises(InvalidArgumentError, match=f"{state.cluster_id}.*without --new-cluster"):
        place.open(new_cluster=True)


@pytest.mark.parametrize(
    ("table", "key", "stored", "words"),
    [
        ("nodes", b"a", b"{}", "table nodes, record 'a': wrong checksum"),
        ("ops", (7).to_bytes(8, "big"), b"", "table ops, record 7: wrong checksum"),
        ("meta", b"epoch", b"5abcd", "table meta, record 'epoch': wrong checksum"),
        ("meta", b"format", b"x", "record 'format': no number"),
    ],
)
def test_a_damaged_record_is_named(
    place: Place, table: str, key: bytes, stored: bytes, words: str
) -> None:
    state = place.open()
    state.put_nodes([record("a")])
    state.append_ops([(7, operation(7))])
    state.close()
    place.write(table, key, stored)
    for _ in range(2):  # nothing was overwritten
        with pytest.raises(ChecksumMismatchError, match=words):
            place.open()


def test_a_newer_format_is_refused(place: Place) -> None:
    place.open().close()
    place.write("meta", b"format", b"3")
    for new_cluster in (False, True):
        with pytest.raises(VersionMismatchError, match="format 3"):
            place.open(new_cluster=new_cluster)
