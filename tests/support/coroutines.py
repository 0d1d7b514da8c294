"""Waiting inside coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


async def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Let the loop run until the condition holds; fail with `what` at the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition():
        assert loop.time() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)


def threads_named(prefix: str = "kvstore") -> list[str]:
    """Return the names of the living threads that start like this."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]
