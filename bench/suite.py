"""Runs the parts that were asked for, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import machine
from bench.parts import (
    Options,
    Run,
    checksum,
    clients,
    congestion,
    directory,
    latency,
    matrix,
    pages,
    polling,
    replay,
    startup,
    tls,
)
from bench.processes import WORKER_SEED
from bench.report import Results
from bench.rounds import Plan

# The matrix has several parts, since who takes part in its rounds is chosen.
MEASURES: dict[str, Callable[[Run], None]] = {
    "congestion": congestion.measure,
    "checksum": checksum.measure,
    "latency": latency.measure,
    "polling": polling.measure,
    "tls": tls.measure,
    "clients": clients.measure,
    "pages": pages.measure,
    "startup": startup.measure,
    "replay": replay.measure,
    "directory": directory.measure,
}
PARTS = (*matrix.PARTS, *MEASURES)


def run(options: Options, plan: Plan) -> Results:
    """Run what was asked for; leaves no process and no file behind."""
    settings = {
        "parts": " ".join(options.parts),
        "rounds": plan.rounds,
        "working_set_bytes": plan.working_set,
        "seeds": {"replay": options.seed, "workers": WORKER_SEED},
    }
    results = Results(machine.describe(), settings)
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder:
        this = Run(options, plan, Path(folder), results)
        if any(map(this.wants, matrix.PARTS)):
            matrix.measure(this)
        for name, measure in MEASURES.items():
            if this.wants(name):
                measure(this)
    return results
