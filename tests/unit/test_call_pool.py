"""CallPool: threads, cancellation and patience, with calls that a test holds up."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from kvstore.client.call_pool import BusyError, CallPool, run_alone
from tests.support.coroutines import threads_named, until


class HeldCall:
    """A call that begins, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.over = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(30)
        self.over.set()
        return "done"


@pytest.fixture
def pool() -> Iterator[CallPool]:
    made = CallPool(2, "test-pool")
    yield made
    made.end()
    assert not threads_named("test-pool")


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; whatever the loop would log fails it."""
    logged: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        await test
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(watched())
    assert not logged


def test_results_and_errors_come_back(pool: CallPool) -> None:
    async def test() -> None:
        assert not threads_named("test-pool"), "started before there is anything to do"
        assert await pool.run(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)

    run(test())


def test_threads_are_as_many_as_there_are_calls_but_no_more(pool: CallPool) -> None:
    async def test() -> None:
        calls = [HeldCall() for _ in range(10)]
        tasks = [asyncio.ensure_future(pool.run(call)) for call in calls]
        await until(lambda: calls[0].begun.is_set() and calls[1].begun.is_set(), "two to begin")
        assert len(threads_named("test-pool")) == 2
        assert not any(call.begun.is_set() for call in calls[2:])
        for call in calls:
            call.go_on.set()
        assert await asyncio.gather(*tasks) == ["done"] * 10

    run(test())


def test_a_cancelled_call_that_has_not_begun_is_never_made(pool: CallPool) -> None:
    async def test() -> None:
        busy = [HeldCall(), HeldCall()]
        tasks = [asyncio.ensure_future(pool.run(call)) for call in busy]
        await until(lambda: all(call.begun.is_set() for call in busy), "both to begin")
        queued = HeldCall()
        task = asyncio.ensure_future(pool.run(queued, lends_memory=True))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for call in (*busy, queued):
            call.go_on.set()
        await asyncio.gather(*tasks)
        assert await pool.run(lambda: 1) == 1
        assert not queued.begun.is_set()

    run(test())


def test_a_cancelled_call_goes_on_unseen_with_its_arguments_alive(pool: CallPool) -> None:
    async def test() -> None:
        call = HeldCall()
        alive = weakref.ref(call)
        begun, go_on, over = call.begun, call.go_on, call.over
        task = asyncio.ensure_future(pool.run(call))
        del call
        await until(begun.is_set, "it to begin")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not over.is_set(), "nobody waits for it"
        del task
        gc.collect()
        assert alive() is not None
        go_on.set()
        await until(lambda: alive() is None, "the call to be over and forgotten")
        assert over.is_set()

    run(test())


def test_a_cancelled_call_with_lent_memory_is_waited_for(pool: CallPool) -> None:
    async def test() -> None:
        call = HeldCall()
        task = asyncio.ensure_future(pool.run(call, lends_memory=True))
        await until(call.begun.is_set, "it to begin")
        for _ in range(3):  # an impatient caller does not get it earlier
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()
        call.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.over.is_set()

    run(test())


@pytest.mark.parametrize("lends_memory", [False, True])
def test_the_error_of_a_cancelled_call_is_no_log_line(pool: CallPool, lends_memory: bool) -> None:
    async def test() -> None:
        held = HeldCall()

        def fail() -> None:
            held()
            raise ValueError

        task = asyncio.ensure_future(pool.run(fail, lends_memory=lends_memory))
        await until(held.begun.is_set, "it to begin")
        task.cancel()
        await asyncio.sleep(0)
        held.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await pool.run(lambda: 1) == 1

    run(test())


def test_patience_ends_a_wait_for_a_thread_but_never_a_call(pool: CallPool) -> None:
    async def test() -> None:
        busy = [HeldCall(), HeldCall()]
        tasks = [asyncio.ensure_future(pool.run(call, patience_s=0.02)) for call in busy]
        await until(lambda: all(call.begun.is_set() for call in busy), "both to begin")
        queued = HeldCall()
        with pytest.raises(BusyError):
            await pool.run(queued, patience_s=0.05)
        for call in (*busy, queued):
            call.go_on.set()
        assert await asyncio.gather(*tasks) == ["done", "done"]
        assert not queued.begun.is_set()

    run(test())


def test_a_lonely_thread_ends_with_its_call() -> None:
    async def test() -> None:
        names = await run_alone(lambda: threads_named("alone"), "alone")
        assert len(names) == 1
        await until(lambda: not threads_named("alone"), "the thread to end")

    run(test())
