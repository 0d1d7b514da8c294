"""The main job on real input: `kvstore replay` against a cluster, mapped and by TCP."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from bench.contenders import kvstore
from bench.parts import Run
from bench.processes import BenchError
from bench.quiet import wait_quiet
from bench.report import Section
from bench.rounds import rotated
from bench.sample import Spread

_BLOCK_BYTES = 16 << 10
_CAPACITY_BLOCKS = 20_000
_MAX_ROUNDS = 3
_TIMEOUT_S = 900


def _replay(run: Run, transport: str) -> dict[str, Any]:
    with ExitStack() as stack:
        # The allocator's partly filled chunks come on top of the blocks themselves.
        size = (_CAPACITY_BLOCKS * _BLOCK_BYTES * 65 // 64 >> 21 << 21) + (4 << 20)
        cluster = kvstore.Cluster(stack, run.folder, size)
        command = [sys.executable, "-m", "kvstore.cli.operator", "replay", "--json"]
        command += ["--master", cluster.address, "--transport", transport]
        command += ["--block-bytes", str(_BLOCK_BYTES), "--seed", str(run.options.seed)]
        command += ["--limit", str(run.options.trace_requests)]
        if run.options.trace:
            command += ["--trace", str(run.options.trace)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode != 0:
            raise BenchError(f"kvstore replay ended with {done.returncode}: {done.stderr[-1000:]}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def measure(run: Run) -> None:
    found: dict[str, list[dict[str, Any]]] = {"auto": [], "tcp": []}
    for number in range(min(run.plan.rounds, _MAX_ROUNDS)):
        for transport in rotated(list(found), number):
            run.plan.progress(f"replay over {transport}: round {number + 1}")
            wait_quiet(run.plan.quiet_limit_s)
            found[transport].append(_replay(run, transport))
    source = (
        f"The first {run.options.trace_requests} requests of {run.options.trace.name}."
        if run.options.trace
        else "No trace was found: the generated multi-turn workload of `kvstore replay`."
    )
    fields = ["hit_rate", "wrong_bytes", "get_gbps", "put_gbps"]
    fields += [f"{call}_{part}_us" for call in ("lookup", "get", "put") for part in ("p50", "p99")]
    rows = [
        [{"auto": "same host", "tcp": "forced TCP"}[transport]]
        + [str(Spread.of([report[name] for report in reports])) for name in fields]
        for transport, reports in found.items()
    ]
    note = f"{_CAPACITY_BLOCKS} blocks of {_BLOCK_BYTES} bytes; each byte that was read is checked."
    columns = ["path", *(name.replace("_", " ") for name in fields)]
    section = Section("Trace replay", columns, rows, [source, note], found)
    run.results.sections.append(section)
