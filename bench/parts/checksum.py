"""Measures the cost of the checksum: the same copies and streams with and without it."""

from __future__ import annotations

from contextlib import ExitStack

from bench.contenders import limits
from bench.parts import Run
from bench.quiet import wait_quiet
from bench.report import Section
from bench.rounds import rotated
from bench.sample import Sample, Spread, best, rate_ratio
from bench.shapes import KIB, matrix

_LEAST_BYTES = 64 * KIB
# What is compared: the operation with the checksum, and the ways to do it without.
_PAIRS = {
    "copy out of shared memory": ("copy get sum", ("copy get plain", "copy get nt")),
    "copy into shared memory": ("copy put sum", ("copy put plain", "copy put nt")),
    "receive by TCP": ("tcp get_sum", ("tcp get",)),
    "send by TCP, summed at both ends": ("tcp put_sum", ("tcp put",)),
}


def measure(run: Run) -> None:
    rows, series = [], {}
    with ExitStack() as stack:
        contender = limits.start(stack, run.folder, run.plan.working_set)
        for shape in matrix(run.plan.working_set, run.options.sizes):
            if shape.size < _LEAST_BYTES or shape.batch == 1:
                continue
            have = set(contender.operations(shape)) | set(limits.SUMS)
            names = [name for pair in _PAIRS.values() for name in (pair[0], *pair[1])]
            names = [name for name in names if name in have]
            found: dict[str, list[Sample]] = {name: [] for name in names}
            for number in range(run.plan.rounds):
                run.plan.progress(f"checksum, {shape}: round {number + 1} of {run.plan.rounds}")
                wait_quiet(run.plan.quiet_limit_s)
                for name in rotated(names, number):
                    sample = contender.measure(name, shape, number)
                    assert sample is not None
                    found[name].append(sample)
            for title, (summed, plain) in _PAIRS.items():
                without = best(*(found[name] for name in plain if name in found))
                rows.append(
                    [
                        title,
                        str(shape),
                        str(Spread.of([sample.gbps for sample in found[summed]])),
                        str(Spread.of([sample.gbps for sample in without])),
                        str(rate_ratio(found[summed], without)),
                    ]
                )
            series.update({f"{shape} {name}": samples for name, samples in found.items()})
    columns = ["what", "size x batch", "GB/s with", "GB/s without", "with / without"]
    note = "The store has no switch for it: its own code runs here beside the same without."
    run.results.sections.append(Section("The checksum", columns, rows, [note], series))
