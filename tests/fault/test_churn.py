"""Readers of mapped memory whose blocks are evicted and written anew while they copy."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

import kvstore
from tests.fault import report
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(3600)]

_SIZE = 2 << 20
_SEGMENT = 6 * _SIZE
"""So few objects that each of them is evicted within milliseconds."""
_SECONDS_A_CYCLE = 4.0


def _bytes(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (_SIZE // 32)


def test_readers_meet_eviction(cluster: Cluster, cycles: int) -> None:
    cluster.start_node("a", segment_size=_SEGMENT, log_level="debug")
    writer = cluster.connect()
    newest = [0]
    stop = threading.Event()
    hits: list[str] = []
    wrong: list[str] = []

    def write() -> None:
        while not stop.is_set():
            number = newest[0] + 1
            writer.put(f"{number}", _bytes(number))
            newest[0] = number

    def read(store: kvstore.Store) -> None:
        buffer = bytearray(_SIZE)
        while not stop.is_set():
            for back in range(6):
                number = newest[0] - back
                if number > 0 and store.get_into(f"{number}", buffer) is not None:
                    hits.append(f"{number}")
                    if buffer != _bytes(number):
                        wrong.append(f"other bytes under {number}")

    readers = [threading.Thread(target=read, args=(cluster.connect(),)) for _ in range(2)]
    threads = [threading.Thread(target=write), *readers]
    for thread in threads:
        thread.start()
    time.sleep(_SECONDS_A_CYCLE * min(cycles, 10))
    stop.set()
    for thread in threads:
        thread.join()
    assert hits
    report.add("readers whose blocks are evicted (objects put)", newest[0], wrong, [])
