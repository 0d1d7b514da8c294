"""Background tasks of the servers: the end of one is said, and shown by /readyz."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kvstore.tasks import BackgroundTasks


async def fails() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("no")


async def ends() -> None:
    await asyncio.sleep(0)


async def goes_on() -> None:
    await asyncio.Event().wait()


def test_a_task_that_fails_makes_the_server_unready(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        tasks = BackgroundTasks()
        ready = tasks.readiness(lambda: (True, {"state": "alive"}))
        running = [
            tasks.start("ends", ends()),
            tasks.start("goes on", goes_on()),
            tasks.start("fails", fails()),
        ]
        assert ready() == (True, {"state": "alive"})
        await running[0]
        await running[2]
        running[1].cancel()
        await asyncio.gather(running[1], return_exceptions=True)
        failed = {"fails": "RuntimeError: no"}
        assert ready() == (False, {"state": "alive", "ended_tasks": failed})

    with caplog.at_level(logging.ERROR, "kvstore"):
        asyncio.run(main())
    (record,) = caplog.records
    assert record.getMessage() == "task_ended" and record.exc_info is not None
