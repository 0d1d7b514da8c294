"""Places for watches, and how those that wait are woken."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack

import pytest

from kvstore.errors import OverloadedError
from kvstore.limits import MAX_WATCHERS
from kvstore.master.watches import Watches
from kvstore.security import ANYBODY, Principal, Role, Secret
from tests.support.fake_core import FakeCore


def principal(name: str) -> Principal:
    return Principal(name, Role.CLIENT, ("default",), Secret("s"))


def test_one_principal_leaves_places_to_others() -> None:
    watches = Watches(FakeCore(), lambda: 2 / MAX_WATCHERS)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(watches.opened(principal("loud")))
        with pytest.raises(
            OverloadedError, match="loud has 2 watchers, as many as principal_share"
        ):
            held.enter_context(watches.opened(principal("loud")))
        held.enter_context(watches.opened(principal("quiet")))
        with pytest.raises(OverloadedError, match="limit of 256"):
            for _ in range(MAX_WATCHERS):
                held.enter_context(watches.opened(ANYBODY))
    with watches.opened(principal("loud")):
        pass  # all places are free again
    watches.close()


class Blocking(FakeCore):
    """Waits until the test says that there is an event."""

    def __init__(self) -> None:
        super().__init__()
        self.cursors: list[int] = []
        self.asked = threading.Semaphore(0)
        self.event = threading.Semaphore(0)

    def wait_events(self, cursor: int, timeout_ms: int) -> bool:
        self.cursors.append(cursor)
        self.asked.release()
        return self.event.acquire(timeout=10)


def test_all_wait_together_and_nobody_for_what_others_have_seen() -> None:
    core = Blocking()
    watches = Watches(core, lambda: 1.0)

    async def main() -> None:
        first = asyncio.create_task(watches.changed(5))
        assert await asyncio.to_thread(core.asked.acquire, timeout=10)
        await asyncio.wait_for(watches.changed(4), 10)  # an event came between the two
        second = asyncio.create_task(watches.changed(5))
        third = asyncio.create_task(watches.changed(6))
        third.cancel()
        await asyncio.sleep(0)
        assert not first.done() and not second.done()
        core.event.release()
        await asyncio.wait_for(asyncio.gather(first, second), 10)
        assert core.cursors == [5]

    asyncio.run(main())
    watches.close()


def test_nobody_asks_a_core_that_stops() -> None:
    core = Blocking()
    watches = Watches(core, lambda: 1.0)
    watches.close()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(watches.changed(0), 0.01)

    asyncio.run(main())
    assert core.cursors == []
