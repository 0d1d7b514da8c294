"""Readers that ask for much and take nothing: the node sheds them instead of filling up."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for
from tests.support.wire import GET, Connection, column, frame, keys_field

pytestmark = pytest.mark.cluster

MIB = 1 << 20
OBJECTS = 60  # all that the segment takes
NEW = 16  # a quarter of it
SIZE = MIB
READERS = 16
PER_READER = 16  # two of these fill the bound: half of the segment
SEGMENT = 64 * MIB


def _key(number: int) -> str:
    return f"flood/{number % OBJECTS}"


def _never_read(connection: Connection, first: int) -> None:
    """Ask for objects from `first` on, and leave the reply where it is."""
    keys = [_key(first + i).encode() for i in range(PER_READER)]
    body = keys_field(1, keys) + column(2, "Q", [0] * len(keys))
    connection.send(frame(GET, body + column(3, "Q", [SIZE] * len(keys))))


def _private_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def _refused(cluster: Cluster) -> float:
    return metric(cluster.nodes["a"], "kvstore_misses_total", reason="unavailable")


def test_readers_that_never_read_leave_room_for_the_others(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size=str(SEGMENT))
    store = cluster.connect(transport="tcp", timeout_ms=3000)
    keys = [_key(i) for i in range(OBJECTS)]
    assert store.batch_put(keys, [proof(key, SIZE) for key in keys]) == [Status.Ok] * OBJECTS
    endpoint = f"127.0.0.1:{cluster.nodes['a'].ports['port']}"
    before_kib = _private_kib(cluster.nodes["a"].pid)
    with ExitStack() as stack:
        readers = []
        for _ in range(READERS):
            reader = stack.enter_context(Connection(endpoint))
            reader.handshake()
            readers.append(reader)
        for number, reader in enumerate(readers):
            # Together four times the segment, each object wanted by several.
            _never_read(reader, number * PER_READER)
        wait_for(lambda: _refused(cluster) > 0, "reads to be refused", 10)
        # All of the segment is wanted by somebody, but half of it can be evicted.
        new = [f"new/{i}" for i in range(NEW)]
        for key in new:
            assert store.put(key, proof(key, SIZE)) is Status.Ok, key
        # Who takes nothing loses its connection, and then reads are served again.
        wait_for(lambda: store.get(new[-1]) == proof(new[-1], SIZE), "reads to work again", 10)
        for key in new:
            assert store.get(key) == proof(key, SIZE), key
        # The replies are not copied: they lie in the segment until they are sent.
        assert _private_kib(cluster.nodes["a"].pid) < before_kib + 16 * 1024
    assert cluster.cli("nodes")[0]["state"] == "alive"
