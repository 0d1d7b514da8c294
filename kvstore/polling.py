"""How long a process asks for its next message before it sleeps."""

from __future__ import annotations

import os

AUTO = -1
MAX_US = 1000
_ENOUGH_CPUS = 8
_AUTO_US = 20
"""About what it takes to sleep and be woken."""


def poll_us(setting: int) -> int:
    """Return microseconds for a setting: itself, or for `AUTO` what suits this machine.

    Whoever polls keeps a processor from others, so where there are fewer than eight nobody does.
    """
    if setting != AUTO:
        return setting
    return _AUTO_US if len(os.sched_getaffinity(0)) >= _ENOUGH_CPUS else 0
