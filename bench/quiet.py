"""Waits for a quiet machine, and reports how much of it others used during a round."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

_WINDOW_S = 0.2
_BUSY = 0.05  # of all processors
_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def _all_ticks() -> int:
    """Ticks that all processors were busy with, whoever asked for them."""
    fields = _PROC.joinpath("stat").read_text().split("\n", 1)[0].split()[1:]
    values = [int(value) for value in fields]
    idle, iowait = values[3], values[4]
    return sum(values[:8]) - idle - iowait


def _own_ticks() -> int:
    """Ticks of this process and of everything below it, children that have ended included."""
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = entry.joinpath("stat").read_text()
        except OSError:
            continue  # it has just ended
        fields = stat.rsplit(")", 1)[1].split()
        pid = int(entry.name)
        parents[pid] = int(fields[1])
        ticks[pid] = sum(int(value) for value in fields[11:15])
    total = 0
    for pid in parents:
        above: int | None = pid
        while above and above != os.getpid():
            above = parents.get(above)
        if above:
            total += ticks[pid]
    return total


@dataclass
class Watch:
    """Measures, from its creation on, the share of the machine that others use."""

    _began: float = field(default_factory=time.monotonic)
    _all: int = field(default_factory=_all_ticks)
    _own: int = field(default_factory=_own_ticks)

    def foreign(self) -> float:
        elapsed = (time.monotonic() - self._began) * _TICKS * (os.cpu_count() or 1)
        foreign = (_all_ticks() - self._all) - (_own_ticks() - self._own)
        return max(0.0, min(1.0, foreign / elapsed)) if elapsed > 0 else 0.0


def wait_quiet(limit_s: float) -> float:
    """Wait, up to the limit, until others use less than a twentieth of the machine.

    Returns:
        Their share in the last window.
    """
    deadline = time.monotonic() + limit_s
    while True:
        watch = Watch()
        time.sleep(_WINDOW_S)
        share = watch.foreign()
        if share < _BUSY or time.monotonic() > deadline:
            return share
