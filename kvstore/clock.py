"""The only module of the control plane that reads time; all others are given a number."""

from __future__ import annotations

import time


def monotonic_ms() -> int:
    """Milliseconds of a clock that never steps and counts suspension (CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def unix_ms() -> int:
    """Milliseconds since 1970, for records that outlive a boot and for output."""
    return time.time_ns() // 1_000_000


def monotonic_ns() -> int:
    """Nanoseconds of the finest steady clock, for measuring durations."""
    return time.perf_counter_ns()


def pause_s(seconds: float) -> None:
    """Sleep before the next poll of a condition that has a deadline of its own."""
    time.sleep(seconds)


def boot_and_monotonic_s() -> tuple[float, float]:
    """Seconds of CLOCK_BOOTTIME and of CLOCK_MONOTONIC, which does not count suspension."""
    monotonic = time.clock_gettime(time.CLOCK_MONOTONIC)  # first: it must not be the later one
    return time.clock_gettime(time.CLOCK_BOOTTIME), monotonic
