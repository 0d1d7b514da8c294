"""Guard: nothing escapes, the breaker opens and closes, the bypass measures again."""

from __future__ import annotations

import logging

import pytest

from kvstore.integrations import guard as guard_module
from kvstore.integrations.guard import FAILURES_TO_OPEN, Guard


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10**12]
    monkeypatch.setattr(guard_module, "monotonic_ns", lambda: now[0])
    return now


def raises() -> int:
    raise OSError("gone")


def test_an_exception_is_a_miss_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard("an engine")
    with caplog.at_level(logging.WARNING):
        assert [guard.call("get", raises, -1) for _ in range(2)] == [-1, -1]
    assert [record.message for record in caplog.records] == ["an engine: get failed: gone"]
    assert guard.stats()["get_failures"] == 2


def test_the_breaker_opens_and_one_call_tries_for_all(clock: list[int]) -> None:
    guard = Guard("an engine", retry_s=5)
    for _ in range(FAILURES_TO_OPEN):
        guard.call("get", raises, None)
    assert guard.stats()["breaker_open"] == 1
    assert guard.skips()
    calls: list[int] = []

    def works() -> int:
        calls.append(1)
        return 7

    assert guard.call("get", works, 0) == 0
    assert not calls
    clock[0] += 5_000_000_000
    assert not guard.skips()  # the next call tries
    assert guard.call("get", raises, 0) == 0  # still unreachable: everyone waits again
    assert guard.call("get", works, 0) == 0
    clock[0] += 5_000_000_000
    assert guard.call("get", works, 0) == 7
    assert guard.call("get", works, 0) == 7
    assert guard.stats()["breaker_open"] == 0


def test_an_answer_that_says_away_counts_and_is_returned() -> None:
    guard = Guard("an engine")
    for _ in range(FAILURES_TO_OPEN):
        assert guard.call("get", lambda: -4, 0, is_failure=lambda code: code == -4) == -4
    assert guard.stats() == {
        "get_failures": FAILURES_TO_OPEN,
        "breaker_open": 1,
        "fetched_tokens_per_s": 0.0,
    }


def test_slow_fetches_are_bypassed_and_measured_again(clock: list[int]) -> None:
    guard = Guard("an engine", prefill_tokens_per_s=1000, retry_s=5)
    assert guard.worth_fetching()
    guard.fetched(tokens=100, seconds=1.0)  # 100 tokens a second
    assert guard.worth_fetching()  # the first measures again at once
    assert not guard.worth_fetching()
    clock[0] += 5_000_000_000
    assert guard.worth_fetching()
    for _ in range(30):
        guard.fetched(tokens=10_000, seconds=0.1)
    assert guard.worth_fetching()
    assert guard.stats()["bypassed"] == 1


def test_without_a_stated_rate_nothing_is_bypassed() -> None:
    guard = Guard("an engine")
    guard.fetched(tokens=1, seconds=100.0)
    assert guard.worth_fetching()
