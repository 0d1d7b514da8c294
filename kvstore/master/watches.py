"""Streams of events: how many each principal may have, and what wakes them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from kvstore import clock
from kvstore.errors import Status, error_for
from kvstore.limits import MAX_WATCHERS
from kvstore.master.core_api import MasterCoreApi
from kvstore.security import ANYBODY, Principal

_WAIT_MS = 10_000
# Between two wakes, so that a stream of events comes in batches.
_PAUSE_MS = 5
# To all streams together: above it, batches are larger. With 2,000 on two processors, calls beside
# 65 streams took six times as long (99th percentile), with 500 as long as without.
_REPLIES_PER_S = 500


class Watches:
    """The open streams. Those that have seen every event wait together, on one thread."""

    def __init__(self, core: MasterCoreApi, share: Callable[[], float]) -> None:
        """Start without any.

        Args:
            core: whose events they are.
            share: of the streams, that one principal may have.
        """
        self._core = core
        self._share = share
        self._open: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(1, "watch")
        self._look: asyncio.Task[bool] | None = None
        self._cursor = 0
        """What the present look takes for known."""
        self._woken_ms = 0
        self._closed = asyncio.Event()
        """Never set: who waits for it waits until it is cancelled."""
        self._ends = False

    @contextmanager
    def opened(self, principal: Principal) -> Iterator[None]:
        """Count a stream while it is open.

        Raises:
            OverloadedError: There are too many, or too many of this principal.
        """
        total = self._open.total()
        if total >= MAX_WATCHERS:
            raise error_for(Status.Overloaded, f"the limit of {MAX_WATCHERS} watchers is reached")
        held, name = self._open[principal.name], principal.name
        if principal is not ANYBODY and held >= max(1, int(MAX_WATCHERS * self._share())):
            raise error_for(
                Status.Overloaded,
                f"principal {name} has {held} watchers, as many as principal_share allows",
            )
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

    async def changed(self, cursor: int) -> None:
        """Return once there may be events that are not known at this cursor."""
        if self._ends:
            await self._closed.wait()
        if self._look is not None and not self._look.done():
            if self._cursor > cursor:
                return  # somebody has seen more
        else:
            self._cursor = cursor
            self._look = asyncio.create_task(self._wait(cursor))
        await asyncio.shield(self._look)

    async def _wait(self, cursor: int) -> bool:
        pause_ms = max(_PAUSE_MS, self._open.total() * 1000 / _REPLIES_PER_S)
        left_ms = self._woken_ms + pause_ms - clock.monotonic_ms()
        if left_ms > 0:
            await asyncio.sleep(left_ms / 1000)
        if self._ends:
            return False
        loop = asyncio.get_running_loop()
        there_are = await loop.run_in_executor(self._pool, self._core.wait_events, cursor, _WAIT_MS)
        self._woken_ms = clock.monotonic_ms()
        return there_are

    def close(self) -> None:
        """Let nobody wait on the core any more; call before it stops."""
        self._ends = True
        self._pool.shutdown(wait=False)
