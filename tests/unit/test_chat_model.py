"""The benchmark's model: what follows from the workload alone comes out of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.chat_model import Engine, Level, Page, Workload, bisect, run

WORK = Workload(clients=20, rounds=5, turn_tokens=256, page_tokens=64)
TOKENS = 20 * 256 * (1 + 2 + 3 + 4 + 5)
REPEATED = 20 * 256 * (0 + 1 + 2 + 3 + 4)
ALL_PAGES = 20 * 5 * 4


class Everything:
    """A shared level that has what was written, in no time or in a given one."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.pages: set[Page] = set()
        self.seconds = seconds

    def fetch(self, pages: Sequence[Page]) -> tuple[int, float]:
        assert self.pages.issuperset(pages)  # never asked for what was not written before
        return len(pages), self.seconds

    def store(self, pages: Sequence[Page]) -> float:
        self.pages.update(pages)
        return self.seconds


def test_without_a_cache_everything_is_computed() -> None:
    out = run(WORK, Engine(1e6, device_pages=0))
    assert (out.prompt_tokens, out.hit_rate) == (TOKENS, 0)
    assert len(out.ttft_s) == 100


@pytest.mark.parametrize("host", [0, ALL_PAGES])
def test_a_cache_for_all_has_every_repeated_token(host: int) -> None:
    out = run(WORK, Engine(1e6, device_pages=0 if host else ALL_PAGES, host_pages=host))
    assert out.device_tokens + out.host_tokens == REPEATED
    assert out.hit_rate == REPEATED / TOKENS


def test_a_shared_store_has_it_too_and_its_time_counts() -> None:
    quick = run(WORK, Engine(1e6, device_pages=0, host_pages=64), Everything())
    alone = run(WORK, Engine(1e6, device_pages=0, host_pages=64))
    assert quick.fetched_tokens > 0 and alone.hit_rate < quick.hit_rate
    assert quick.hit_rate == pytest.approx(REPEATED / TOKENS, rel=0.02)
    slow = run(WORK, Engine(1e6, device_pages=0, host_pages=64), Everything(seconds=1.0))
    assert slow.fetch_s > 0 and slow.mean_ttft_s > 10 * quick.mean_ttft_s


def test_a_slower_engine_takes_longer() -> None:
    fast, slow = (run(WORK, Engine(rate, device_pages=100)) for rate in (1e6, 1e4))
    assert slow.mean_ttft_s > fast.mean_ttft_s
    assert slow.input_tokens_per_s < fast.input_tokens_per_s


def test_a_level_loses_the_tail_first() -> None:
    level = Level(3)
    chain = [(0, i) for i in range(4)]
    level.touch(chain)
    assert level.prefix(chain) == 3
    level.touch([(1, 0)])
    assert level.prefix(chain) == 2


def test_bisect_finds_the_turn() -> None:
    assert bisect(1, 1000, lambda x: x < 42, steps=40) == pytest.approx(42)
