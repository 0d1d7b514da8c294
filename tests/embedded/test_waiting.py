"""lookup(wait_ms=…) on an embedded store: woken by the last put, or over with its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import kvstore
from kvstore import Status, Store
from tests.support.processes import wait_for

KEYS = [f"page/{i}" for i in range(6)]


def waiting(store: Store) -> int:
    count: int = store.stats()["master"]["lookups_waiting_now"]
    return count


class Running(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(30)
        assert not self.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._result


@pytest.mark.parametrize("lease_ms", [None, 60_000])
def test_the_last_put_ends_the_wait(store: Store, lease_ms: int | None) -> None:
    call = Running(lambda: store.lookup(KEYS, stride=2, lease_ms=lease_ms, wait_ms=60_000))
    for key in reversed(KEYS):
        wait_for(lambda: waiting(store) == 1, "the lookup to wait")
        assert store.put(key, b"page") is Status.Ok
    with call.result() as lookup:
        assert lookup.length == len(KEYS)
        assert lookup.alive is (lease_ms is not None)
    assert waiting(store) == 0


@pytest.mark.parametrize("lease_ms", [None, 60_000])
def test_time_ends_the_wait_with_whole_pages_of_what_is_there(
    store: Store, lease_ms: int | None
) -> None:
    store.batch_put(KEYS[:5], [b"page"] * 5)
    start = time.monotonic()
    with store.lookup(KEYS, stride=2, lease_ms=lease_ms, wait_ms=200) as lookup:
        assert lookup.length == 4
    assert time.monotonic() - start > 0.19  # deadlines are whole milliseconds of another clock
    assert waiting(store) == 0


def test_the_stores_time_out_does_not_cut_the_wait_short() -> None:
    with kvstore.open("32mb", timeout_ms=100) as store:
        start = time.monotonic()
        assert store.lookup(["absent"], wait_ms=1000).length == 0
        assert time.monotonic() - start > 0.8


def test_what_is_present_is_not_waited_for(store: Store) -> None:
    store.batch_put(KEYS, [b"page"] * len(KEYS))
    asked = store.stats()["lookups"]
    assert store.lookup(KEYS, wait_ms=60_000).length == len(KEYS)
    assert store.lookup([], wait_ms=60_000).length == 0
    assert store.stats()["lookups"] == asked, "this host's index knows"
    assert store.lookup(["absent"], wait_ms=0).length == 0


def test_close_ends_a_wait(store: Store) -> None:
    call = Running(lambda: store.lookup(["absent"], wait_ms=60_000))
    wait_for(lambda: waiting(store) == 1, "the lookup to wait")
    store.close()
    with pytest.raises(kvstore.ClosedError):
        call.result()


@pytest.mark.parametrize("bad", [-1, 600_001, 1.5, "5"])
def test_a_bad_wait_is_named(store: Store, bad: Any) -> None:
    for lease_ms in (None, 1000):
        with pytest.raises(kvstore.InvalidArgumentError, match="wait_ms"):
            store.lookup(["k"], lease_ms=lease_ms, wait_ms=bad)
