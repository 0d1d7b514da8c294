"""One, two and four client processes at a time on one node: together, and how evenly."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.contenders import StoreContender, kvstore
from bench.parts import Run
from bench.quiet import wait_quiet
from bench.report import Section
from bench.rounds import rotated
from bench.sample import Spread
from bench.shapes import KIB, MIB, Shape

_COUNTS = (1, 2, 4)
_SIZES = ((64 * KIB, 128), (MIB, 64))
_OPERATIONS = ("get", "put_from")


def _together(clients: Sequence[StoreContender], answers: Sequence[Any]) -> dict[str, float]:
    rates = [one["bytes"] / (one["ended_ns"] - one["began_ns"]) for one in answers]
    elapsed = max(a["ended_ns"] for a in answers) - min(a["began_ns"] for a in answers)
    total = sum(answer["bytes"] for answer in answers) / elapsed
    return {"clients": len(clients), "gbps": total, "evenness": min(rates) / max(rates)}


def _round(
    clients: Sequence[StoreContender], operation: str, shape: Shape, number: int
) -> dict[str, float]:
    for client in clients:
        client.arm(operation, shape, number)
    for client in clients:
        client.worker.order("fire")
    return _together(clients, [client.worker.answer() for client in clients])


def measure(run: Run) -> None:
    rows, raw = [], []
    working_set = run.plan.working_set
    with ExitStack() as stack:
        size = kvstore.segment_bytes(working_set, clients=max(_COUNTS))
        cluster = kvstore.Cluster(stack, run.folder, size)
        clients = [cluster.contender(f"client-{i}", working_set) for i in range(max(_COUNTS))]
        for shape in (Shape.of(*given, working_set) for given in _SIZES):
            for client in clients:
                client.prepare(shape)
            for operation in _OPERATIONS:
                found: dict[int, list[dict[str, float]]] = {count: [] for count in _COUNTS}
                _round(clients, operation, shape, run.plan.rounds * len(_COUNTS))  # not counted
                for number in range(run.plan.rounds):
                    run.plan.progress(f"clients, {operation} {shape}: round {number + 1}")
                    wait_quiet(run.plan.quiet_limit_s)
                    for turn, count in enumerate(rotated(_COUNTS, number)):
                        unique = number * len(_COUNTS) + turn
                        found[count].append(_round(clients[:count], operation, shape, unique))
                rows += _rows(operation, shape, found)
                raw.append({"operation": operation, "shape": str(shape), "rounds": found})
            for client in clients:
                client.finish(shape)
    run.results.sections.append(
        Section(
            "Several client processes, same host",
            ["call", "size x batch", "clients", "GB/s", "of one client's", "slowest / fastest"],
            rows,
            ["Each client has objects, buffers and keys of its own; all are released together."],
            raw,
        )
    )


def _rows(
    operation: str, shape: Shape, found: dict[int, list[dict[str, float]]]
) -> list[list[str]]:
    rows = []
    alone = [one["gbps"] for one in found[1]]
    for count, rounds in found.items():
        total = [one["gbps"] for one in rounds]
        relative = Spread.of([a / b for a, b in zip(total, alone, strict=True)])
        even = Spread.of([one["evenness"] for one in rounds])
        cells = [f"{Spread.of(total).median:.3g}", str(relative), str(even)]
        rows.append([operation, str(shape), str(count), *cells])
    return rows
