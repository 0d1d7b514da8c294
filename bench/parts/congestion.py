"""One raw TCP stream under each congestion control that this machine offers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench.contenders import limits
from bench.parts import Run
from bench.quiet import wait_quiet
from bench.report import Section
from bench.rounds import rotated
from bench.sample import Sample, Spread, rate_ratio
from bench.shapes import MIB, Shape

_AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def measure(run: Run) -> None:
    names = ["-", *_AVAILABLE.read_text().split()]
    shape = Shape.of(MIB, 64, run.plan.working_set)
    found: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        contenders = {
            name: limits.start(stack, run.folder, run.plan.working_set, f"limits-{name}", name)
            for name in names
        }
        for number in range(run.plan.rounds):
            run.plan.progress(f"congestion control: round {number + 1} of {run.plan.rounds}")
            wait_quiet(run.plan.quiet_limit_s)
            for name in rotated(names, number):
                sample = contenders[name].measure("tcp stream", shape, number)
                assert sample is not None
                found.setdefault(name, []).append(sample)
    default = contenders["-"].congestion
    rows = [
        [
            f"{default}, the default" if name == "-" else name,
            str(Spread.of([sample.gbps for sample in samples])),
            str(rate_ratio(samples, found["-"])),
        ]
        for name, samples in found.items()
    ]
    columns = ["congestion control", "GB/s", "of the default's"]
    note = f"{shape}; every contender of this run uses the default."
    run.results.sections.append(Section("One raw TCP stream", columns, rows, [note], found))
