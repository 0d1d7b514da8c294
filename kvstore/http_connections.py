"""The connections an HTTP server keeps: a thousand silent ones shut nobody out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from kvstore import clock
from kvstore.logging import EventLogger, Recurring

_log = EventLogger("http")
_LOOK_S = 1.0
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connections:
    """The open connections of a server, those without a request by the time of their last bytes.

    When there are as many as may be, a new one takes the place of the one that has been silent for
    longest. It is refused only when every connection has a request in progress.
    """

    def __init__(self, most: int, idle_s: float) -> None:
        """Start without any.

        Args:
            most: that are open at once.
            idle_s: after which one without a request is closed.
        """
        self._most = most
        self._idle_ms = int(idle_s * 1000)
        self._idle: OrderedDict[_Watched, int] = OrderedDict()
        """When each was heard last, the longest silence first."""
        self._busy: dict[_Watched, int] = {}
        """Requests in progress."""
        self._by_handler: dict[asyncio.BaseProtocol, _Watched] = {}
        self._look: asyncio.TimerHandle | None = None
        self._ends = False
        self._full = Recurring(_log, "http_connections_full")

    def __len__(self) -> int:
        """Count the open connections."""
        return len(self._idle) + len(self._busy)

    def watch(self, factory: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Wrap a protocol factory: what it makes is counted here."""
        return lambda: _Watched(factory(), self)

    @contextmanager
    def request(self, handler: asyncio.BaseProtocol) -> Iterator[None]:
        """Note a request in progress on a connection, by the protocol that handles it."""
        connection = self._by_handler.get(handler)
        if connection is None:  # it has closed meanwhile
            yield
            return
        self._idle.pop(connection, None)
        self._busy[connection] = self._busy.get(connection, 0) + 1
        try:
            yield
        finally:
            left = self._busy.get(connection, 0) - 1
            if left > 0:
                self._busy[connection] = left
            elif self._busy.pop(connection, None) is not None:
                self.heard(connection)

    def opened(self, connection: _Watched) -> bool:
        """Take a connection in; return whether there was room."""
        if self._ends:
            return False
        if len(self) >= self._most:
            self._full.warn(most=self._most, idle=len(self._idle))
            if not self._idle:
                return False
            oldest, _ = self._idle.popitem(last=False)
            oldest.abort()
        self._by_handler[connection.handler] = connection
        self.heard(connection)
        return True

    def heard(self, connection: _Watched) -> None:
        """Note that bytes have come, or that a request has ended."""
        if connection in self._busy:
            return
        self._idle[connection] = clock.monotonic_ms()
        self._idle.move_to_end(connection)
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._close_idle)

    def closed(self, connection: _Watched) -> None:
        """Forget a connection."""
        self._idle.pop(connection, None)
        self._busy.pop(connection, None)
        self._by_handler.pop(connection.handler, None)

    def end(self) -> None:
        """Close every connection without a request, and those that still come.

        aiohttp's own end waits a minute for a connection that was made just before it, and whose
        request it then does not read any more.
        """
        self._ends = True
        for connection in list(self._idle):
            connection.abort()

    def _close_idle(self) -> None:
        self._look = None
        oldest_ms = clock.monotonic_ms() - self._idle_ms
        while self._idle and next(iter(self._idle.values())) < oldest_ms:
            connection, _ = self._idle.popitem(last=False)
            connection.abort()
        if self._idle:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._close_idle)


class _Watched(asyncio.Protocol):
    """A connection: passes everything to its handler, and tells the server's connections."""

    def __init__(self, handler: asyncio.Protocol, connections: Connections) -> None:
        self.handler = handler
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._taken = False

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._taken = self._connections.opened(self)
        if self._taken:
            self.handler.connection_made(transport)
        else:
            self._transport.write(_FULL)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._taken:
            self._connections.closed(self)
            self.handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._taken:
            self._connections.heard(self)
            self.handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self.handler.eof_received() if self._taken else None

    def pause_writing(self) -> None:
        if self._taken:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        if self._taken:
            self.handler.resume_writing()
