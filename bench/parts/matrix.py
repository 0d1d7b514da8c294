"""Every size and batch, with the limits, our paths and the peers taking turns."""

from __future__ import annotations

from contextlib import ExitStack

from bench.contenders import Contender, StoreContender, kvstore, limits
from bench.contenders.peers import Peers
from bench.parts import Run
from bench.rounds import run_shape
from bench.selfcheck import check_detection
from bench.shapes import matrix

PARTS = ("shm", "tcp", "embedded", "peers")


def measure(run: Run) -> None:
    with ExitStack() as stack:
        working_set = run.plan.working_set
        machine = limits.start(stack, run.folder, working_set)
        ours: list[StoreContender] = []
        if run.wants("shm") or run.wants("tcp"):
            size = kvstore.segment_bytes(working_set, clients=2)
            cluster = kvstore.Cluster(stack, run.folder, size)
            for part, transport in (("shm", "auto"), ("tcp", "tcp")):
                if run.wants(part):
                    ours.append(cluster.contender(f"kvstore-{part}", working_set, transport))
        contenders: list[Contender] = [machine, *ours]
        if run.wants("embedded"):
            contenders.append(kvstore.embedded(stack, run.folder, working_set))
        peers = Peers(stack, run.folder, working_set)
        if run.wants("peers"):
            contenders += peers.start()
            run.results.versions |= peers.versions
            run.results.notes += peers.notes
        run.results.contenders |= {one.name: one.about for one in contenders}
        run.results.notes.append(f"Everybody's TCP sockets use {machine.congestion}.")
        middle = run.plan.rounds // 2
        tables = run.results.tables

        def flip(number: int) -> None:
            if number == middle and ours:
                workers = [one.worker for one in ours]
                check_detection(workers, cluster.segment_files(), f"flip/{len(tables)}")

        shapes = matrix(working_set, run.options.sizes)
        for shape in shapes:
            tables.append(run_shape(contenders, shape, run.plan, flip))
        run.results.notes += peers.failures()
        if ours:
            run.results.notes.append(
                "A byte flipped in the segment's file in the middle of the rounds was a miss for "
                f"each of {', '.join(one.name for one in ours)}, {len(shapes)} times."
            )
