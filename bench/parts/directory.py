"""Metadata alone: the master's directory in native code, and lookups through a socket."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from typing import Any

from bench.contenders import StoreContender, kvstore
from bench.parts import Run
from bench.processes import ROOT, BenchError
from bench.quiet import wait_quiet
from bench.report import Section
from bench.rounds import rotated
from bench.sample import Sample, Spread
from bench.shapes import Shape

PROGRAM = ROOT / "build" / "native" / "directory_bench"
_MANY = 5_000_000  # from here on a run takes long: one round only
_TIMEOUT_S = 600
_BATCHES = (128, 1024)
_OBJECTS = 32768
_SIZE = 1024


def _native(objects: int) -> dict[str, Any]:
    if not PROGRAM.exists():
        raise BenchError("directory_bench is not built; run it with: make bench")
    done = subprocess.run(
        [PROGRAM, str(objects)], capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode != 0:
        raise BenchError(f"directory_bench ended with {done.returncode}: {done.stderr[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _native_row(objects: int, found: list[dict[str, Any]]) -> list[str]:
    def spread(values: list[float], unit: float = 1.0) -> str:
        return str(Spread.of([value / unit for value in values]))

    return [
        f"{objects:,}",
        spread([one["present"]["lookups_per_s"] for one in found], 1e6),
        spread([one["absent"]["lookups_per_s"] for one in found], 1e6),
        spread([one["announces_per_s"] for one in found], 1e6),
        spread([one["rejoin_announces_per_s"] for one in found], 1e6),
        spread([one["bytes_an_object_beside_the_key"] for one in found]),
        spread([one["during_rejoin"]["p99_ns"] / one["idle"]["p99_ns"] for one in found]),
    ]


def measure(run: Run) -> None:
    rows, raw = [], []
    for objects in run.options.directory_objects:
        found = []
        for number in range(1 if objects >= _MANY else run.plan.rounds):
            run.plan.progress(f"directory of {objects:,} objects: round {number + 1}")
            wait_quiet(run.plan.quiet_limit_s)
            found.append(_native(objects))
        rows.append(_native_row(objects, found))
        raw += found
    columns = ["objects", "M lookups/s present", "absent", "M announcements/s", "in a rejoin"]
    columns += ["bytes an object beside its key", "lookup p99, rejoin / idle"]
    notes = ["One thread, its processor time; random keys of 32 bytes, batches of 128."]
    notes.append("Rejoin: another thread announces 1 M objects again, from begin to end.")
    section = Section("The directory, native", columns, rows, notes, raw)
    run.results.sections.append(section)
    _through_socket(run)


def _through_socket(run: Run) -> None:
    """exists of a client that maps nothing: each batch is one lookup at the master."""
    found: dict[tuple[int, str], list[Sample]] = {}
    shapes = [Shape(_SIZE, batch, _OBJECTS, _OBJECTS // batch) for batch in _BATCHES]
    with ExitStack() as stack:
        cluster = kvstore.Cluster(stack, run.folder, 256 << 20)
        worker = cluster.worker("lookup-client", _OBJECTS * _SIZE, "tcp")
        client = StoreContender("lookup", "", worker)
        for shape in shapes:
            client.prepare(shape)
        for number in range(run.plan.rounds):
            run.plan.progress(f"lookups through a socket: round {number + 1}")
            wait_quiet(run.plan.quiet_limit_s)
            for shape in rotated(shapes, number):
                for asks in ("exists", "absent"):
                    sample = client.measure(asks, shape, number)
                    assert sample is not None
                    found.setdefault((shape.batch, asks), []).append(sample)
    rows = [
        [
            {"exists": "present elsewhere", "absent": "absent"}[asks],
            str(batch),
            str(Spread.of([one.keys_per_s / 1e6 for one in samples])),
            str(Spread.of([one.p50_ns / 1000 for one in samples])),
            str(Spread.of([one.p99_ns / 1000 for one in samples])),
        ]
        for (batch, asks), samples in found.items()
    ]
    columns = ["batch_exists", "batch", "M keys/s", "p50 us a call", "p99 us a call"]
    raw = [{"batch": b, "asks": asks, "samples": s} for (b, asks), s in found.items()]
    note = "From Python, one client process, over TCP to the master."
    run.results.sections.append(Section("Lookups through a socket", columns, rows, [note], raw))
