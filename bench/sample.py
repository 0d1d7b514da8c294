"""Times of one round of one contender, and how the rounds of two compare."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def percentile(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


@dataclass(frozen=True)
class Sample:
    """One round: `calls` calls, each timed alone."""

    calls: int
    bytes: int
    keys: int
    total_ns: int
    p50_ns: float
    p99_ns: float
    foreign_cpu: float = 0.0

    @staticmethod
    def of(answer: dict[str, Any], keys: int, foreign_cpu: float = 0.0) -> Sample:
        """Read what a worker answered, for a round over `keys` keys."""
        return Sample(
            calls=answer["calls"],
            bytes=answer["bytes"],
            keys=keys,
            total_ns=answer["total_ns"],
            p50_ns=answer["p50_ns"],
            p99_ns=answer["p99_ns"],
            foreign_cpu=foreign_cpu,
        )

    @property
    def gbps(self) -> float:
        return self.bytes / self.total_ns

    @property
    def keys_per_s(self) -> float:
        return self.keys / self.total_ns * 1e9


def summarize(times_ns: Sequence[int]) -> dict[str, float]:
    """Calls, their sum, median and 99th percentile, as every measuring process answers them."""
    ordered = sorted(times_ns)
    return {
        "calls": len(ordered),
        "total_ns": sum(ordered),
        "p50_ns": statistics.median(ordered),
        "p99_ns": percentile(ordered, 0.99),
    }


def three_digits(value: float) -> str:
    """Format with three digits, and without an exponent where the value is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over the rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return (
            f"{three_digits(self.median)} ({three_digits(self.low)} to {three_digits(self.high)})"
        )


def rate_ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Spread:
    """How many times their rate ours is, round by round: both ran in the same round."""
    pairs = zip(ours, theirs, strict=True)
    return Spread.of([(a.keys / a.total_ns) / (b.keys / b.total_ns) for a, b in pairs])


def time_ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Spread:
    """How many of their median call times one of ours takes, round by round."""
    return Spread.of([a.p50_ns / b.p50_ns for a, b in zip(ours, theirs, strict=True)])


def best(*contenders: Sequence[Sample]) -> list[Sample]:
    """In each round the fastest of several ways to do the same."""
    return [
        min(samples, key=lambda s: s.total_ns / s.keys) for samples in zip(*contenders, strict=True)
    ]
