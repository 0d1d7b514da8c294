"""What polling before sleeping gains: a client on one processor, its servers on another."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.contenders import kvstore, limits
from bench.parts import Run
from bench.parts.latency import time_calls
from bench.quiet import wait_quiet
from bench.report import Section
from bench.rounds import rotated
from bench.sample import Sample, Spread, time_ratio

POLLS_US = (0, 20, 200)
_SIZE = 4 << 10
_CALLS = 1024
_PING_BYTES = 100
_OPERATIONS = {"put": "put 4 KiB, same host", "absent": "exists of an absent key, same host"}


class _Pinned:
    """A client on one processor, its master and node on another, all with one `poll_us`."""

    def __init__(
        self, stack: ExitStack, folder: Path, poll_us: int, client: int, servers: int
    ) -> None:
        folder.mkdir()
        cluster = kvstore.Cluster(stack, folder, 256 << 20, poll_us)
        self._client = cluster.worker(f"polling-{poll_us}", _SIZE * _CALLS * 4)
        self._servers = cluster.pids
        _pin(self._client.pid, client)
        for pid in self._servers:
            _pin(pid, servers)
        self.slept: dict[str, list[tuple[float, float]]] = {name: [] for name in _OPERATIONS}
        """Of the client and of the others, times a call, in each turn of an operation."""

    def turn(self, operation: str) -> Sample:
        before = self._switches()
        sample = time_calls(self._client, f"polling/{operation}", operation)
        client, servers = (
            (after - before) / _CALLS
            for after, before in zip(self._switches(), before, strict=True)
        )
        self.slept[operation].append((client, servers))
        return sample

    def _switches(self) -> tuple[int, int]:
        return _sleeps(self._client.pid), sum(map(_sleeps, self._servers))


def measure(run: Run) -> None:
    processors = sorted(os.sched_getaffinity(0))
    client, servers = processors[0], processors[-1]
    samples: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        machine = limits.start(stack, run.folder, run.plan.working_set)
        _pin(machine.pid, client)
        for child in _children(machine.pid):
            _pin(child, servers)
        clusters = {
            poll_us: _Pinned(stack, run.folder / f"poll-{poll_us}", poll_us, client, servers)
            for poll_us in POLLS_US
        }
        turns: dict[str, Callable[[], Sample]] = {
            "sleeps": partial(machine.round_trip, "tcp", _PING_BYTES, _CALLS),
            "spins": partial(machine.round_trip, "spin", _PING_BYTES, _CALLS),
        }
        for poll_us, cluster in clusters.items():
            for operation in _OPERATIONS:
                turns[f"{operation} {poll_us}"] = partial(cluster.turn, operation)
        for number in range(run.plan.rounds):
            run.plan.progress(f"polling: round {number + 1} of {run.plan.rounds}")
            wait_quiet(run.plan.quiet_limit_s)
            for name in rotated(list(turns), number):
                samples.setdefault(name, []).append(turns[name]())
    run.results.sections.append(_section(samples, clusters))


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in _threads(pid)
        for child in (thread / "children").read_text().split()
    ]


def _pin(pid: int, processor: int) -> None:
    for thread in _threads(pid):
        os.sched_setaffinity(int(thread.name), {processor})


def _sleeps(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    return sum(
        int(line.split()[1])
        for thread in _threads(pid)
        for line in (thread / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def _section(samples: dict[str, list[Sample]], clusters: dict[int, _Pinned]) -> Section:
    def row(name: str, title: str, slept: Sequence[tuple[float, float]] = ()) -> list[str]:
        p50 = Spread.of([sample.p50_ns / 1000 for sample in samples[name]])
        ratios = [str(time_ratio(samples[name], samples[base])) for base in ("sleeps", "spins")]
        sides = [str(Spread.of(side)) for side in zip(*slept, strict=True)] or ["", ""]
        return [title, str(p50), *ratios, *sides]

    rows = [
        row("sleeps", "raw TCP round trip of 100 bytes, both ends sleep"),
        row("spins", "the same, both ends poll"),
    ]
    for operation, title in _OPERATIONS.items():
        for poll_us, cluster in clusters.items():
            name = f"{operation} {poll_us}"
            rows.append(row(name, f"{title}, poll_us {poll_us}", cluster.slept[operation]))
    return Section(
        "Polling before sleeping",
        [
            "call",
            "p50 us",
            "in raw round trips",
            "in polled ones",
            "sleeps of the client a call",
            "of master and node",
        ],
        rows,
        ["The client has one processor to itself; master and node share another."],
        samples,
    )
