"""The whole run: starts the contenders that were asked for, measures, and ends all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.contenders import Contender, StoreContender, kvstore, limits
from bench.contenders.peers import Peers
from bench.report import Results
from bench.rounds import Plan, run_shape
from bench.selfcheck import check_detection
from bench.shapes import matrix

PARTS = ("shm", "tcp", "embedded", "peers")


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    parts: Collection[str]
    sizes: list[int] | None
    seed: int


class Suite:
    """One run in progress."""

    def __init__(self, options: Options, plan: Plan, stack: ExitStack) -> None:
        self._options = options
        self._plan = plan
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvbench-")))
        settings: dict[str, Any] = {
            "rounds": plan.rounds,
            "working_set_bytes": plan.working_set,
            "seed": options.seed,
        }
        self.results = Results(machine.describe(), settings)

    def _wants(self, part: str) -> bool:
        return part in self._options.parts

    def run(self) -> Results:
        if any(map(self._wants, ("shm", "tcp", "embedded", "peers"))):
            self._matrix()
        return self.results

    def _matrix(self) -> None:
        """Every shape, with every contender taking turns."""
        with ExitStack() as stack:
            working_set = self._plan.working_set
            contenders: list[Contender] = [limits.start(stack, self._folder, working_set)]
            ours: list[StoreContender] = []
            if self._wants("shm") or self._wants("tcp"):
                size = kvstore.segment_bytes(working_set, clients=2)
                cluster = kvstore.Cluster(stack, self._folder, size)
                for part, transport in (("shm", "auto"), ("tcp", "tcp")):
                    if self._wants(part):
                        ours.append(cluster.contender(f"kvstore-{part}", working_set, transport))
            contenders += ours
            if self._wants("embedded"):
                contenders.append(kvstore.embedded(stack, self._folder, working_set))
            if self._wants("peers"):
                peers = Peers(stack, self._folder, working_set)
                contenders += peers.start()
                self.results.versions |= peers.versions
                self.results.notes += peers.notes
            self.results.contenders |= {one.name: one.about for one in contenders}
            shapes = matrix(working_set, self._options.sizes)
            middle = self._plan.rounds // 2

            def flip(number: int) -> None:
                if number == middle and ours:
                    workers = [one.worker for one in ours]
                    check_detection(workers, cluster.segment_files(), f"flip/{len(tables)}")

            tables = self.results.tables
            for shape in shapes:
                tables.append(run_shape(contenders, shape, self._plan, flip))
            if ours:
                self.results.notes.append(
                    "A byte flipped in the segment file in the middle of the rounds was a miss for "
                    f"each of {', '.join(one.name for one in ours)}, {len(shapes)} times."
                )


def run(options: Options, plan: Plan) -> Results:
    """Run everything that was asked for; every process and file of it is gone afterwards."""
    with ExitStack() as stack:
        return Suite(options, plan, stack).run()
