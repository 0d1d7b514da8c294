"""The gRPC calls in progress: who made them, and their end from outside (a revoked token)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvstore import clock
from kvstore.errors import KvstoreError, UnauthenticatedError, UnavailableError
from kvstore.security import ANYBODY, Principal
from kvstore.sessions import Session

_PATIENCE_S = 0.5

T = TypeVar("T")


@dataclass(eq=False)
class OpenCall:
    """One call, from its admission to its end."""

    number: int
    principal: Principal
    method: str
    peer: str
    tenant: str
    began_ms: int
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    _error: KvstoreError | None = None
    _give_up: asyncio.TimerHandle | None = None
    _expiry: asyncio.TimerHandle | None = None

    def end(self, error: KvstoreError) -> None:
        """Make the call fail with this error, at the next of its checks or at once if it waits.

        A stream whose caller reads nothing comes to no check: it is cancelled after a moment.
        """
        if self._error is None and self._task is not None:
            self._error = error
            self._ended.set()
            loop = asyncio.get_running_loop()
            self._give_up = loop.call_later(_PATIENCE_S, self._task.cancel)

    def end_at(self, unix_ms: int | None, error: KvstoreError) -> None:
        """Make the call fail at this time."""
        if unix_ms is not None:
            left_s = max(0, unix_ms - clock.unix_ms()) / 1000
            self._expiry = asyncio.get_running_loop().call_later(left_s, self.end, error)

    def close(self) -> None:
        """Note that the call is over."""
        for timer in (self._give_up, self._expiry):
            if timer is not None:
                timer.cancel()

    def check(self) -> None:
        """Raise the error with which the call was ended, if it was."""
        if self._error is not None:
            raise self._error

    async def unless_ended(self, work: Awaitable[T]) -> T:
        """Await `work`, or cancel it and raise once the call is ended."""
        task = asyncio.ensure_future(work)
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.check()
            return await task
        finally:
            task.cancel()
            ended.cancel()


class OpenCalls:
    """All of a server. Used from its event loop only."""

    def __init__(self) -> None:
        """Start without any."""
        self._open: dict[int, OpenCall] = {}
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[OpenCall]:
        """Return the calls in the order of their beginning."""
        return iter(tuple(self._open.values()))

    @contextmanager
    def open(
        self, principal: Principal, method: str, peer: str, tenant: str | None
    ) -> Iterator[OpenCall]:
        """Note a call as long as the block runs."""
        call = OpenCall(
            next(self._numbers), principal, method, peer, tenant or "", clock.monotonic_ms()
        )
        self._open[call.number] = call
        call.end_at(principal.expires_ms(), UnauthenticatedError("this token has expired"))
        try:
            yield call
        finally:
            call.close()
            del self._open[call.number]

    def sessions(self) -> list[Session]:
        """Describe all of them, for kvstore.sessions."""
        now_ms = clock.monotonic_ms()
        return [
            Session(
                id=_id(call),
                kind="grpc",
                principal="" if call.principal is ANYBODY else call.principal.name,
                role=call.principal.role.name.lower(),
                tenant=call.tenant,
                namespace="",
                client=call.method,
                peer=call.peer,
                age_ms=now_ms - call.began_ms,
                in_progress=1,
            )
            for call in self
        ]

    def end(self, ids: Sequence[str], reason: str) -> int:
        """End some of them; return how many there were."""
        return self.end_where(lambda call: _id(call) in ids, UnavailableError(reason))

    def end_where(self, chosen: Callable[[OpenCall], bool], error: KvstoreError) -> int:
        """End calls; return how many.

        Args:
            chosen: says which.
            error: that their callers get.
        """
        found = [call for call in self if chosen(call)]
        for call in found:
            call.end(error)
        return len(found)


def _id(call: OpenCall) -> str:
    return f"g{call.number}"
