"""One small object at a time, in units of a raw round trip: mapped, by TCP, and by TCP cold."""

from __future__ import annotations

from contextlib import ExitStack

from bench.contenders import kvstore, limits
from bench.parts import Run
from bench.processes import WorkerProcess
from bench.quiet import wait_quiet
from bench.report import Section
from bench.rounds import rotated
from bench.sample import Sample, Spread, time_ratio

_SIZE = 4 << 10
_CALLS = 1024
_PING_BYTES = 100
_ROWS = {
    "tcp": "raw TCP round trip of 100 bytes",
    "unix": "raw Unix-socket round trip of 100 bytes",
    "shm": "get_into 4 KiB, same host",
    "cold": "get_into 4 KiB, forced TCP, first read of a key by this client",
    "known": "get_into 4 KiB, forced TCP, read before by this client",
    "exists": "exists, forced TCP (one lookup at the master)",
    "absent": "exists of an absent key, same host",
    "put": "put 4 KiB, same host",
    "put_tcp": "put 4 KiB, forced TCP",
}


def time_calls(worker: WorkerProcess, prefix: str, operation: str = "get") -> Sample:
    """Time calls for one object each, of the keys under `prefix`."""
    worker.ask(
        "arm",
        operation=operation,
        prefix=prefix,
        size=_SIZE,
        count=_CALLS,
        batch=1,
        calls=_CALLS,
        start=0,
        shift=_CALLS // 2,
    )
    return Sample.of(worker.ask("fire"), _CALLS)


def measure(run: Run) -> None:
    samples: dict[str, list[Sample]] = {name: [] for name in _ROWS}
    with ExitStack() as stack:
        machine = limits.start(stack, run.folder, run.plan.working_set)
        cluster = kvstore.Cluster(stack, run.folder, 256 << 20)
        mapped = cluster.worker("latency-shm", _SIZE * _CALLS * 4)
        remote = cluster.worker("latency-tcp", _SIZE * _CALLS * 4, "tcp")
        for number in range(run.plan.rounds):
            run.plan.progress(f"latency: round {number + 1} of {run.plan.rounds}")
            prefix = f"latency/{number}"
            mapped.ask("base", prefix=prefix, size=_SIZE, count=_CALLS, batch=128)
            remote.ask("adopt", prefix=prefix, size=_SIZE, count=_CALLS)
            wait_quiet(run.plan.quiet_limit_s)
            turns = {
                "tcp": lambda: machine.round_trip("tcp", _PING_BYTES, _CALLS),
                "unix": lambda: machine.round_trip("unix", _PING_BYTES, _CALLS),
                "shm": lambda: time_calls(mapped, prefix),  # noqa: B023 called in this iteration
                "remote": lambda: time_calls(remote, prefix),  # noqa: B023
                "exists": lambda: time_calls(remote, prefix, "exists"),  # noqa: B023
                "absent": lambda: time_calls(mapped, f"{prefix}/none", "absent"),  # noqa: B023
                "put": lambda: time_calls(mapped, f"{prefix}/new", "put"),  # noqa: B023
                "put_tcp": lambda: time_calls(remote, f"{prefix}/new-tcp", "put"),  # noqa: B023
            }
            for name in rotated(list(turns), number):
                if name == "remote":  # its second read is what the first one made of it
                    samples["cold"].append(turns[name]())
                    samples["known"].append(turns[name]())
                else:
                    samples[name].append(turns[name]())
            mapped.ask("drop", prefix=prefix, count=_CALLS)
    run.results.sections.append(_section(samples, machine.congestion))


def _section(samples: dict[str, list[Sample]], congestion: str) -> Section:
    rows = []
    for name, title in _ROWS.items():
        p50 = Spread.of([sample.p50_ns / 1000 for sample in samples[name]])
        p99 = Spread.of([sample.p99_ns / 1000 for sample in samples[name]])
        ratio = time_ratio(samples[name], samples["tcp"])
        rows.append([title, str(p50), str(p99), str(ratio)])
    return Section(
        "Latency of one small call",
        ["call", "p50 us", "p99 us", "p50 in raw TCP round trips"],
        rows,
        [f"TCP uses {congestion}; every process blocks, none spins."],
        samples,
    )
