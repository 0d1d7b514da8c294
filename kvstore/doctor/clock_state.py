"""The kernel's clocks: whether the wall clock is synchronized, and what the others say."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from kvstore import clock
from kvstore.topology import sysfs

_STA_UNSYNC = 0x0040  # linux/timex.h
_TIMEX_BYTES = 512  # struct timex has 208; the kernel never writes more
_ERROR_AT, _STATUS_AT = 24, 40  # offsets of maxerror and status, 64-bit


@dataclass(frozen=True)
class ClockState:
    """What the clocks say."""

    synchronized: bool | None
    """None: the kernel does not tell."""
    most_error_ms: float
    """The kernel's estimate of the wall clock's largest error."""
    boottime_s: float
    monotonic_s: float
    uptime_s: float | None
    """Of procfs, which counts suspension as CLOCK_BOOTTIME does."""


def read_clock(proc: Path) -> ClockState:
    """Ask the kernel."""
    synchronized, error_ms = _adjtimex()
    uptime = re.match(r"[0-9]+\.[0-9]+", sysfs.text(proc / "uptime"))
    boottime, monotonic = clock.boot_and_monotonic_s()
    return ClockState(
        synchronized, error_ms, boottime, monotonic, float(uptime[0]) if uptime else None
    )


def _adjtimex() -> tuple[bool | None, float]:
    """Read the state of the kernel's clock discipline, without changing it."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: read only
    try:
        result = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):
        return None, 0.0
    if result < 0:
        return None, 0.0
    most_error_us = int.from_bytes(buffer.raw[_ERROR_AT : _ERROR_AT + 8], "little")
    status = int.from_bytes(buffer.raw[_STATUS_AT : _STATUS_AT + 4], "little")
    return not status & _STA_UNSYNC, most_error_us / 1000
