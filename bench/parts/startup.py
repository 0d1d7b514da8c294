"""Compares puts right after a node's start, into memory not used before, with later ones."""

from __future__ import annotations

from contextlib import ExitStack

from bench.contenders import StoreContender, kvstore
from bench.parts import Run
from bench.processes import WorkerProcess
from bench.quiet import wait_quiet
from bench.report import Section
from bench.sample import Sample, rate_ratio
from bench.shapes import MIB, Shape

_SET_BYTES = 128 * MIB
_SHAPE = Shape.of(MIB, 16, _SET_BYTES)
_PUTS = 4  # the last one is warm: its blocks were written, and mapped by this client, before


def measure(run: Run) -> None:
    first, warm = [], []
    for number in range(run.plan.rounds):
        run.plan.progress(f"startup: round {number + 1} of {run.plan.rounds}")
        wait_quiet(run.plan.quiet_limit_s)
        samples = _fresh_cluster(run, number)
        first.append(samples[0])
        warm.append(samples[-1])
    ratio = rate_ratio(first, warm)
    run.results.sections.append(
        Section(
            "put_from right after start",
            ["size x batch", "first put of warm"],
            [[str(_SHAPE), str(ratio)]],
            [
                "A new cluster each round; the client's own memory was touched before, and the "
                f"first {_SET_BYTES // MIB} MiB are put as soon as it is connected."
            ],
            {"first": first, "warm": warm},
        )
    )


def _fresh_cluster(run: Run, number: int) -> list[Sample]:
    with ExitStack() as stack:
        # The worker's memory takes longer to touch than the node to start: it comes first.
        earlier = kvstore.Cluster(stack, run.folder, 64 * MIB)
        worker: WorkerProcess = earlier.worker("startup-client", _SET_BYTES)
        client = StoreContender("startup", "", worker)
        worker.ask("warm_up", size=_SHAPE.size, count=_SHAPE.count)
        cluster = kvstore.Cluster(stack, run.folder, 8 * _SET_BYTES)
        worker.ask("reconnect", driver="kvstore", options={"address": cluster.address})
        samples = []
        for turn in range(_PUTS):
            sample = client.measure("put_from", _SHAPE, number * _PUTS + turn)
            assert sample is not None
            samples.append(sample)
        return samples
