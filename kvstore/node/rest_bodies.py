"""The bodies of REST requests and answers that are in memory: together they have a limit.

What counts is what has arrived, not what a request announces: a stalled upload keeps others from
little. Each body also has a time, which grows with its size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from kvstore.errors import DeadlineExceededError, InvalidArgumentError, Status, error_for
from kvstore.logging import EventLogger

_log = EventLogger("http")
_FIRST_S = 30.0
_BYTES_PER_S = 1 << 20
_STEP_BYTES = 256 << 10


T = TypeVar("T")


class Room:
    """What one body takes of the limit."""

    def __init__(self, bodies: Bodies) -> None:
        """Take nothing yet."""
        self._bodies = bodies
        self.taken = 0

    def grow(self, size: int) -> None:
        """Take more.

        Raises:
            OverloadedError: Other bodies leave no room. One alone is always admitted.
        """
        bodies = self._bodies
        others = bodies.used - self.taken
        if others and bodies.used + size > bodies.most:
            self.give_back()  # at once, so that it is not the reason to refuse others, too
            raise error_for(
                Status.Overloaded,
                f"the bodies of other requests leave no room for this one ({bodies.most} bytes "
                "in all, rest_max_body): try again",
            )
        self.taken += size
        bodies.used += size

    def give_back(self) -> None:
        """Take nothing any more."""
        self._bodies.used -= self.taken
        self.taken = 0


class Bodies:
    """The limit. Used from the event loop only."""

    def __init__(self, most: int) -> None:
        """Start without any.

        Args:
            most: bytes of all bodies together, and of one that is received.
        """
        self.most = most
        self.used = 0

    @contextmanager
    def room(self, size: int = 0) -> Iterator[Room]:
        """Take some of the limit for the time of the block.

        Raises:
            OverloadedError: As Room.grow.
        """
        room = Room(self)
        try:
            room.grow(size)
            yield room
        finally:
            room.give_back()

    async def receive(self, request: web.Request, room: Room) -> bytearray:
        """Read the body of a request.

        Raises:
            TooLargeError: It has more bytes than one may have.
            OverloadedError: As Room.grow.
            DeadlineExceededError: It came too slowly.
            InvalidArgumentError: It ended early, or is not what its header says.
        """
        announced = request.content_length or 0
        if announced > self.most:
            raise _too_large(self.most)
        with self.room(announced):  # refused at once, rather than when it has arrived
            pass
        try:
            return await _within(self._receive(request, room), announced)
        except (ConnectionError, HttpProcessingError, ClientPayloadError) as error:
            raise InvalidArgumentError(f"the body cannot be read: {error}") from error

    async def _receive(self, request: web.Request, room: Room) -> bytearray:
        body = bytearray()
        async for chunk in request.content.iter_any():
            if len(body) + len(chunk) > self.most:
                raise _too_large(self.most)
            room.grow(len(chunk))
            body += chunk
        return body


async def send(request: web.Request, data: bytes) -> web.StreamResponse:
    """Send a body. Who takes it too slowly is disconnected."""
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    response.content_length = len(data)

    async def write() -> None:
        await response.prepare(request)
        for at in range(0, len(data), _STEP_BYTES):
            await response.write(memoryview(data)[at : at + _STEP_BYTES])
        await response.write_eof()

    try:
        await _within(write(), len(data))
    except (ConnectionError, DeadlineExceededError) as error:
        _log.debug("answer_not_taken", peer=request.remote or "", error=error)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _within(work: Coroutine[Any, Any, T], size: int) -> T:
    """Await the transfer of a body for as long as it may take."""
    time_s = _FIRST_S + size / _BYTES_PER_S
    try:
        return await asyncio.wait_for(work, time_s)
    except asyncio.TimeoutError:
        what = f"the body took longer than {time_s:.0f} s"
        raise error_for(Status.DeadlineExceeded, what) from None


def _too_large(most: int) -> Exception:
    return error_for(Status.TooLarge, f"a body has at most {most} bytes (rest_max_body)")
