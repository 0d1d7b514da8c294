"""Rounds: in each one every contender runs every operation once, in rotated order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bench.contenders import Contender
from bench.quiet import Watch, wait_quiet
from bench.sample import Sample
from bench.shapes import Shape

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    quiet_limit_s: float
    working_set: int
    progress: Callable[[str], None]


@dataclass
class Table:
    """The samples of one shape: one per round, for each contender and operation."""

    shape: Shape
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    foreign_cpu: list[float] = field(default_factory=list)

    def add(self, contender: str, operation: str, sample: Sample) -> None:
        self.samples.setdefault(contender, {}).setdefault(operation, []).append(sample)

    def get(self, contender: str, operation: str) -> list[Sample] | None:
        return self.samples.get(contender, {}).get(operation)


def run_shape(
    contenders: Sequence[Contender],
    shape: Shape,
    plan: Plan,
    between: Callable[[int], None] = lambda number: None,
) -> Table:
    """Measure one shape; `between` is called after each round.

    An uncounted round comes first: each client touches its mappings, opens
    its connections and starts its threads, and the limits' processes do the same.
    """
    table = Table(shape)
    for contender in contenders:
        contender.prepare(shape)
    for number in range(plan.rounds + 1):
        plan.progress(f"{shape}: round {number} of {plan.rounds}")
        wait_quiet(plan.quiet_limit_s)
        watch = Watch()
        for contender in rotated(contenders, number):
            for operation in contender.operations(shape):
                sample = contender.measure(operation, shape, number)
                if sample is not None and number > 0:
                    table.add(contender.name, operation, sample)
        if number > 0:
            table.foreign_cpu.append(round(watch.foreign(), 3))
        between(number)
    for contender in contenders:
        contender.finish(shape)
    return table


def rotated(turns: Sequence[T], number: int) -> list[T]:
    """The order of round `number`: each round another one begins."""
    first = number % len(turns)
    return [*turns[first:], *turns[:first]]
