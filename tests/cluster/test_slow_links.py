"""Replicas behind slow links: one whose bytes keep coming is waited for, one that stops is not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster

SIZE = 3 << 20
CHUNK = 16 << 10


class Link:
    """Between a node and everybody else: what the node sends passes at a rate, once it is set."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.bytes_per_s = 0.0  # 0: as fast as it comes
        self.stops_after: int | None = None  # bytes of this process's life
        self._passed = 0
        self._turn = threading.Lock()
        self._server = socket.create_server(("127.0.0.2", self.port))
        self._sockets = [self._server]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                outside, _ = self._server.accept()
                inside = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                return
            self._sockets += [outside, inside]
            for pair in ((outside, inside, False), (inside, outside, True)):
                thread = threading.Thread(target=self._pass, args=pair)
                self._threads.append(thread)
                thread.start()

    def _pass(self, source: socket.socket, target: socket.socket, is_slow: bool) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if is_slow:
                    self._take_time(len(data))
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _take_time(self, size: int) -> None:
        with self._turn:
            self._passed += size
            if self.stops_after is not None and self._passed > self.stops_after:
                time.sleep(2)
            if self.bytes_per_s:
                time.sleep(size / self.bytes_per_s)


@pytest.fixture
def links(cluster: Cluster) -> Iterator[dict[str, Link]]:
    """Two nodes, each behind a link, and an object on both."""
    links = {node: Link() for node in "ab"}
    for node, link in links.items():
        cluster.start_node(
            node,
            host="127.0.0.1",
            advertise_host="127.0.0.2",
            port=link.port,
            transports=["tcp"],
            segment_size="32mb",
        )
    yield links
    cluster.close()  # or the nodes would wait for what the links keep
    for link in links.values():
        link.close()


def put_on_both(cluster: Cluster) -> kvstore.Store:
    store = cluster.connect(transport="tcp", timeout_ms=20_000)
    assert store.put("k", proof("k", SIZE), replicas=2) is Status.Ok

    def replicas() -> int:
        found = store.inspect("k")
        return len(found["replicas"]) if found else 0

    wait_for(lambda: replicas() == 2, "the second replica")
    return store


def test_a_replica_whose_bytes_keep_coming_is_waited_for(
    cluster: Cluster, links: dict[str, Link]
) -> None:
    """Either link needs two seconds; a replica gets eight tenths of one without a sign of life."""
    store = put_on_both(cluster)
    for link in links.values():
        link.bytes_per_s = SIZE / 2
    assert store.get("k") == proof("k", SIZE)
    assert store.stats()["retries"] == 0


def test_a_replica_that_stops_is_given_up(cluster: Cluster, links: dict[str, Link]) -> None:
    store = put_on_both(cluster)
    slow = links["a"]
    slow.bytes_per_s = SIZE
    slow.stops_after = slow._passed + SIZE // 4
    for _ in range(8):  # which replica is read first is drawn
        began = time.monotonic()
        assert store.get("k") == proof("k", SIZE)
        assert time.monotonic() - began < 10
        if store.stats()["retries"]:
            return
    raise AssertionError("the stopped replica was never read")
