"""Blocking calls for coroutines, on a fixed number of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")


class BusyError(Exception):
    """No thread was free in time; the call was not made."""


class CallPool:
    """Threads that make blocking calls; each is started when it is first needed."""

    def __init__(self, threads: int, name: str) -> None:
        """Plan a pool of at most `threads` threads, which `name` tells apart in a debugger."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(
        self,
        call: Callable[[], R],
        *,
        lends_memory: bool = False,
        patience_s: float | None = None,
    ) -> R:
        """Make a call and await its result.

        When this is cancelled, a call that has not begun is dropped. One that has begun goes on
        with its arguments kept alive, and its result is dropped; with `lends_memory` the
        cancellation waits for its end, because until then the call reads or writes memory that the
        caller would believe to have back.

        Args:
            call: what to run.
            lends_memory: whether its arguments lend it the caller's memory.
            patience_s: how long it may wait for a free thread; None for ever.

        Returns:
            What the call returns.

        Raises:
            BusyError: No thread was free within `patience_s`.
            Exception: What the call raises.
        """
        future = self._executor.submit(call)
        over = asyncio.wrap_future(future)
        try:
            # wait() leaves the call alone when it is cancelled itself.
            await asyncio.wait([over], timeout=patience_s)
            if future.cancel():
                raise BusyError
            await asyncio.wait([over])
        except asyncio.CancelledError:
            if not future.cancel() and lends_memory:
                await _until_over(over)
            _ignore_outcome(over)
            raise
        return over.result()

    def end(self) -> None:
        """End the threads after the calls that are queued, and wait until they have ended."""
        self._executor.shutdown()

    def end_soon(self) -> None:
        """End the threads after the calls that are queued, without waiting."""
        self._executor.shutdown(wait=False)


async def run_alone(call: Callable[[], R], name: str) -> R:
    """Make one call on a thread that ends with it; as `CallPool.run`."""
    pool = CallPool(1, name)
    try:
        return await pool.run(call)
    finally:
        pool.end_soon()


async def _until_over(future: asyncio.Future[R]) -> None:
    """Wait for a future through any number of further cancellations."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue


def _ignore_outcome(future: asyncio.Future[R]) -> None:
    """Let an error that nobody asks for any more be no log line either."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
