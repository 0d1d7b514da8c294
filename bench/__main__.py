"""`python -m bench`: measure, and write table, plots and JSON."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from bench import machine, plots, report
from bench.comparisons import rows_of
from bench.parts import Options
from bench.processes import ROOT, BenchError
from bench.rounds import Plan
from bench.suite import PARTS, run
from kvstore.sizes import parse_size

_OBJECTS = "1000000,10000000"
# The public Mooncake trace, where a checkout has it beside it.
_TRACE = ROOT.parent / "shared" / "data" / "conversation_trace.jsonl"


@click.command(epilog="Example: python -m bench --only shm,tcp --rounds 5 --size 1mb")
@click.option("--only", default="", help=f"Parts, of: {', '.join(PARTS)}. Default: all.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--size", "sizes", multiple=True, help="Measure only this size of the matrix; repeatable."
)
@click.option("--working-set", help="Default: four times the last-level cache.")
@click.option("--quiet-limit", default=3.0, show_default=True, help="Seconds to wait for quiet.")
@click.option(
    "--quick", is_flag=True, help="3 rounds, two sizes, no waiting: do not quote its results."
)
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--trace", type=click.Path(path_type=Path, exists=True), help="Trace file for the replay."
)
@click.option(
    "--trace-requests", default=2000, show_default=True, help="Replay only the first N requests."
)
@click.option(
    "--directory-objects",
    default=_OBJECTS,
    show_default=True,
    help="Sizes of the directory: N[,N...].",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the results."
)
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of the table.")
def main(
    only: str,
    rounds: int,
    sizes: tuple[str, ...],
    working_set: str | None,
    quiet_limit: float,
    quick: bool,
    seed: int,
    trace: Path | None,
    trace_requests: int,
    directory_objects: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure kvstore beside this machine's limits and beside its peers, in turns."""
    # Ended from outside it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parts = tuple(only.split(",")) if only else PARTS
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}; of {', '.join(PARTS)}")
    if quick:
        rounds, quiet_limit, sizes = min(rounds, 3), 0.0, sizes or ("4kb", "1mb")
        directory_objects, trace_requests = _OBJECTS.split(",")[0], min(trace_requests, 500)
    options = Options(
        parts=parts,
        sizes=[parse_size(size) for size in sizes] or None,
        seed=seed,
        trace=trace or (_TRACE if _TRACE.exists() else None),
        trace_requests=trace_requests,
        directory_objects=[int(objects) for objects in directory_objects.split(",")],
    )
    console = Console(stderr=True)
    with console.status("starting") as status:
        plan = Plan(
            rounds=rounds,
            quiet_limit_s=quiet_limit,
            working_set=parse_size(working_set) if working_set else machine.working_set_bytes(),
            progress=status.update if console.is_terminal else console.print,
        )
        try:
            results = run(options, plan)
        except BenchError as error:
            console.print(f"bench: {error}", markup=False)
            sys.exit(1)
    date = results.machine["date"][:10]
    folder = out or ROOT / "bench" / "results" / f"{date}-{machine.short_name()}"
    report.write(results, folder)
    if not plots.draw(rows_of(results.tables), folder):
        console.print("no plots: there are no ratios, or matplotlib is not installed")
    print(json.dumps(results.to_json()) if as_json else report.markdown(results))
    console.print(f"written to {folder}")


if __name__ == "__main__":
    main()
