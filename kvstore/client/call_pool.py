"""Blocking calls for coroutines, on a fixed number of threads."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")


class BusyError(Exception):
    """No thread was free in time; the call was not made."""


class CallPool:
    """Threads that make blocking calls; each is started when it is first needed."""

    def __init__(self, threads: int, name: str) -> None:
        """Create a pool of at most `threads` threads; `name` identifies them in a debugger."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(
        self,
        call: Callable[[], R],
        *,
        lends_memory: bool = False,
        patience_s: float | None = None,
    ) -> R:
        """Make a call and await its result.

        On cancellation, a call that has not started is dropped. One that has started continues
        with its arguments kept alive, and its result is dropped. With `lends_memory` the
        cancellation waits until the call has finished, because until then it reads or writes
        memory that the caller would otherwise reuse.

        Args:
            call: what to run.
            lends_memory: whether the call uses the caller's memory.
            patience_s: how long it may wait for a free thread; None: without limit.

        Returns:
            The call's result.

        Raises:
            BusyError: No thread was free within `patience_s`.
            Exception: What the call raises.
        """
        # With the caller's context, so that a traced call stays below the caller's span.
        future = self._executor.submit(contextvars.copy_context().run, call)
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
        """Stop the threads after all queued calls, and wait for their exit."""
        self._executor.shutdown()

    def end_soon(self) -> None:
        """Stop the threads after all queued calls, without waiting."""
        self._executor.shutdown(wait=False)


async def run_alone(call: Callable[[], R], name: str) -> R:
    """Make one call on a thread of its own; as `CallPool.run`."""
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
    """Keep asyncio from logging an error that is no longer awaited."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
