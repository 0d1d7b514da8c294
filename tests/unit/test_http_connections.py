"""Which connections an HTTP server keeps: on transports that exist in memory only."""

from __future__ import annotations

import asyncio

import pytest

from kvstore import clock
from kvstore.http_connections import Connections


class Handler(asyncio.Protocol):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.made = self.lost = 0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost += 1

    def data_received(self, data: bytes) -> None:
        self.data += data


class Peer(asyncio.Transport):
    """A connection's other end."""

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self.handler = Handler()
        self.written = b""
        self.open = True
        self.protocol = connections.watch(lambda: self.handler)()
        self.protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        if self.open:
            self.open = False
            self.protocol.connection_lost(None)

    abort = close


@pytest.fixture
def now_ms(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [1000]
    monkeypatch.setattr(clock, "monotonic_ms", lambda: now[0])
    return now


def test_the_longest_silent_one_makes_room(now_ms: list[int]) -> None:
    async def check() -> None:
        connections = Connections(3, 60)
        first, second, third = (Peer(connections) for _ in range(3))
        first.protocol.data_received(b"GET")
        fourth = Peer(connections)
        assert [peer.open for peer in (first, second, third, fourth)] == [True, False, True, True]
        assert (second.handler.made, second.handler.lost) == (1, 1)
        assert len(connections) == 3 and first.handler.data == b"GET"
        first.close()
        assert len(connections) == 2

    asyncio.run(check())


def test_requests_in_progress_are_never_cut(now_ms: list[int]) -> None:
    async def check() -> None:
        connections = Connections(2, 60)
        one, two = Peer(connections), Peer(connections)
        with connections.request(one.handler):
            with connections.request(two.handler), connections.request(two.handler):
                late = Peer(connections)
                assert one.open and two.open and not late.open
                assert late.written.startswith(b"HTTP/1.1 503") and late.handler.made == 0
                late.protocol.data_received(b"GET")
                assert late.handler.data == b"" and len(connections) == 2
            later = Peer(connections)  # the second is idle again
            assert one.open and not two.open and later.open
        with connections.request(two.handler):  # it has closed
            assert len(connections) == 2

    asyncio.run(check())


def test_a_connection_that_closes_in_its_request_is_forgotten(now_ms: list[int]) -> None:
    async def check() -> None:
        connections = Connections(2, 60)
        peer = Peer(connections)
        with connections.request(peer.handler):
            peer.close()
            assert len(connections) == 0
        assert len(connections) == 0

    asyncio.run(check())


def test_silence_has_an_end(now_ms: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.http_connections._LOOK_S", 0.0)

    async def check() -> None:
        connections = Connections(5, 60)
        silent, talking, working = (Peer(connections) for _ in range(3))
        with connections.request(working.handler):
            now_ms[0] += 59_000
            talking.protocol.data_received(b"G")
            now_ms[0] += 2_000
            while silent.open:
                await asyncio.sleep(0)
            assert talking.open and working.open
        now_ms[0] += 61_000
        while len(connections):
            await asyncio.sleep(0)
        assert not talking.open and not working.open

    asyncio.run(check())
