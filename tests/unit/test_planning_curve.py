"""From reuse distances to hit rates, and what is said about their quality."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvstore.cli.plan import trace_curve
from kvstore.planning.curve import Curve
from kvstore.replay.trace import Request, generate, read_trace

TRACE = Path(__file__).resolve().parents[3] / "shared/data/conversation_trace.jsonl"
BLOCK = 4096


def curve(**changes: object) -> Curve:
    values: dict[str, object] = {
        "buckets": [(1023, 30.0), (2047, 20.0)],
        "cold": 50.0,
        "hits": 30.0,
        "puts": 70.0,
        "lost": 0.0,
        "keys": 5000,
    }
    return Curve(**{**values, **changes})  # type: ignore[arg-type]


def test_a_size_finds_the_distances_up_to_it() -> None:
    found = curve()
    assert found.measured == 0.3
    assert found.estimate(0) == 0.0
    assert found.estimate(1023) == pytest.approx(0.3)
    assert found.estimate(2047 - 32) == pytest.approx(0.4)  # half of the second bucket
    assert found.estimate(1 << 40) == pytest.approx(0.5)


def test_uses_that_the_sample_lacks_are_of_hot_keys() -> None:
    assert curve(puts=170.0).estimate(1023) == pytest.approx((30 + 100) / 200)
    assert curve(puts=20.0).estimate(1 << 40) == 0.0  # never below zero


def test_a_change_is_added_to_what_was_measured() -> None:
    found = curve(hits=40.0, puts=60.0)  # the curve says 0.3 at today's size
    assert found.hit_rate(2047, today_bytes=1023) == pytest.approx(0.6)
    assert found.hit_rate(1023, today_bytes=1023) == pytest.approx(0.4)
    assert curve(hits=90.0, puts=10.0).hit_rate(2047, today_bytes=1023) == 1.0


def test_nothing_observed_is_no_hit_rate() -> None:
    nothing = Curve(buckets=[], cold=0, hits=0, puts=0, lost=0, keys=0)
    assert nothing.hit_rate(1 << 30, 1 << 29) == 0.0
    assert nothing.error == 1.0
    assert nothing.doubts(1 << 29, [1 << 30]) == ["no use was reported yet: run a workload first"]


@pytest.mark.parametrize(
    ("changes", "sizes", "said"),
    [
        ({"keys": 999}, [], "only 999 keys"),
        ({}, [4096], "beyond the longest distance"),
        ({"lost": 10.0}, [], "too fast to be seen"),
        ({"hits": 60.0, "puts": 40.0}, [], "measured was"),
    ],
)
def test_doubts(changes: dict[str, object], sizes: list[int], said: str) -> None:
    assert said in "\n".join(curve(**changes).doubts(1023, sizes))
    assert curve().doubts(1023, [2047]) == []


def exact(requests: Sequence[Request], capacity: int) -> float:
    """Replay a trace on an exact LRU cache: leading blocks that are there are read."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = blocks = 0
    for request in requests:
        ids = request.hash_ids
        blocks += len(ids)
        hits += next((i for i, block in enumerate(ids) if block not in cache), len(ids))
        for block in reversed(ids):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits / blocks


def check(requests: Sequence[Request]) -> None:
    unique = len({block for request in requests for block in request.hash_ids})
    found = trace_curve(requests, BLOCK)
    for share in (0.05, 0.1, 0.2, 0.4, 0.8):
        capacity = int(unique * share)
        truth = exact(requests, capacity)
        assert found.estimate(capacity * BLOCK) == pytest.approx(truth, abs=0.02), capacity


def test_the_conversation_trace_beside_an_exact_cache() -> None:
    if not TRACE.exists():
        pytest.skip(f"needs the public conversation trace at {TRACE}")
    check(read_trace(TRACE))


@pytest.mark.parametrize("seed", [1, 2])
def test_generated_chats_beside_an_exact_cache(seed: int) -> None:
    check(generate(seed, conversations=1500, turns=10))  # 47,000 blocks: twice the sample
