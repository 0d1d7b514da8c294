"""KV pages of named models as objects: put and get of their real sizes."""

from __future__ import annotations

from contextlib import ExitStack

from bench.comparisons import GET_LIMIT, PUT_LIMIT, SHM, STREAM, TCP, Comparison, compare
from bench.contenders import Contender, kvstore, limits
from bench.parts import Run
from bench.report import Section
from bench.rounds import run_shape
from bench.shapes import MIB, MODELS, Shape

_CALL_BYTES = 32 * MIB
_COMPARED = (
    Comparison("", "get_into", (SHM, "get"), GET_LIMIT),
    Comparison("", "put_from", (SHM, "put_from"), PUT_LIMIT),
    Comparison("", "tcp get_into", (TCP, "get"), STREAM),
    Comparison("", "tcp put_from", (TCP, "put_from"), STREAM),
)


def measure(run: Run) -> None:
    rows, raw = [], []
    with ExitStack() as stack:
        working_set = run.plan.working_set
        size = kvstore.segment_bytes(working_set, clients=2)
        cluster = kvstore.Cluster(stack, run.folder, size)
        contenders: list[Contender] = [
            limits.start(stack, run.folder, working_set),
            cluster.contender(SHM, working_set),
            cluster.contender(TCP, working_set, "tcp"),
        ]
        for model in MODELS:
            batch = max(1, min(128, _CALL_BYTES // model.page_bytes))
            shape = Shape.of(model.page_bytes, batch, working_set)
            table = run_shape(contenders, shape, run.plan)
            found = [compare(comparison, table) for comparison in _COMPARED]
            cells = [f"{row.ours.median:.3g}, {row.ratio}" for row in found if row is not None]
            rows.append(
                [model.name, model.formula, f"{model.page_bytes:,}", str(shape.batch), *cells]
            )
            raw.append({"model": model, "table": table})
    columns = ["page", "formula", "bytes", "batch"]
    columns += ["get GB/s, of memcpy", "put_from GB/s, of memcpy"]
    columns += ["tcp get GB/s, of raw stream", "tcp put_from GB/s, of raw stream"]
    run.results.sections.append(Section("KV pages of named models", columns, rows, [], raw))
