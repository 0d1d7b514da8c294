"""The parts of a run, each of which can be asked for alone; `PARTS` of `bench.suite` names them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bench.report import Results
from bench.rounds import Plan


@dataclass(frozen=True)
class Options:
    """What the command line asked for, beside how much of it."""

    parts: Collection[str]
    sizes: list[int] | None
    seed: int
    trace: Path | None
    trace_requests: int
    directory_objects: list[int]


@dataclass(frozen=True)
class Run:
    """What every part is handed: what to do, where to put files, where to write results."""

    options: Options
    plan: Plan
    folder: Path
    results: Results

    def wants(self, part: str) -> bool:
        return part in self.options.parts
