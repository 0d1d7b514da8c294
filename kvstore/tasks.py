"""Background tasks of a server process: one that ends with an error makes /readyz fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from kvstore.logging import EventLogger

_log = EventLogger("process")

T = TypeVar("T")

Readiness = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether the process is ready, and a JSON object with the details."""


def called_back() -> tuple[asyncio.Future[T], Callable[[T], None]]:
    """Return a future of the running loop, and what gives it its result, from any thread.

    A result for which nobody waits any more is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T) -> None:
        if not future.done():
            future.set_result(value)

    def done(value: T) -> None:
        loop.call_soon_threadsafe(settle, value)

    return future, done


class BackgroundTasks:
    """Tasks that nobody awaits. Without this, the error of one would be lost with it."""

    def __init__(self) -> None:
        """Start with none."""
        self._running: set[asyncio.Task[None]] = set()  # the loop itself would let go of them
        self.failures: dict[str, str] = {}
        """Errors of tasks that have ended, by the name of the task."""

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task in the running loop.

        Args:
            name: for the log and /readyz.
            work: returns when it is done; may run until it is cancelled.

        Returns:
            The task, to be cancelled by the caller.
        """
        task = asyncio.create_task(self._run(name, work), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    @contextmanager
    def running(self, name: str, work: Coroutine[Any, Any, None]) -> Iterator[None]:
        """Run a task, as with `start`, until the block is left."""
        task = self.start(name, work)
        try:
            yield
        finally:
            task.cancel()

    async def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.failures[name] = f"{type(error).__name__}: {error}"
            _log.exception("task_ended", task=name)

    def readiness(self, ready: Readiness) -> Readiness:
        """Make /readyz fail, and name the tasks, once one has ended with an error."""

        def with_tasks() -> tuple[bool, Mapping[str, Any]]:
            is_ready, details = ready()
            if not self.failures:
                return is_ready, details
            return False, {**details, "ended_tasks": dict(self.failures)}

        return with_tasks
