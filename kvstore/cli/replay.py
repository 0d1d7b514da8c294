"""`kvstore replay`: replays a request trace and checks every byte."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

import kvstore
from kvstore.cli.output import Exit, fail, print_fields, print_json, reports_errors, warn
from kvstore.cli.target import json_option, target, target_options
from kvstore.errors import InvalidArgumentError, Status
from kvstore.replay.runner import Replay, Tally, percentile_us
from kvstore.replay.trace import Request, generate, read_trace
from kvstore.sizes import format_size, parse_size

# The embedded store gets this much in addition to the blocks, so that a partly filled chunk and the
# batch being written do not count against the requested capacity.
_OVERHEAD_FRACTION = 64
_OVERHEAD_BYTES = 128 << 10
_LEAST_BYTES = 1 << 20  # of a segment
_REMOVE_KEYS = 1000  # at a time
_GONE = (Status.Ok, Status.NotFound)


def _size(_context: click.Context, _option: click.Parameter, value: str) -> int:
    try:
        return parse_size(int(value) if value.isdigit() else value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _capacity_bytes(blocks: int, block_bytes: int) -> tuple[int, int]:
    """Return segment bytes, and their overhead, for an embedded store that holds `blocks`."""
    exact = blocks * block_bytes
    size = max(exact + exact // _OVERHEAD_FRACTION + _OVERHEAD_BYTES, _LEAST_BYTES)
    return size, size - exact


def _report(tally: Tally, block_bytes: int, stats: Mapping[str, Any]) -> dict[str, Any]:
    def gbps(blocks: int, times_ns: list[int]) -> float:
        return round(blocks * block_bytes / sum(times_ns), 3) if times_ns else 0.0

    report: dict[str, Any] = {
        "requests": tally.requests,
        "blocks": tally.blocks,
        "block_bytes": block_bytes,
        "hit_rate": round(tally.hit_rate, 4),
        "wrong_bytes": tally.wrong_bytes,
        "get_gbps": gbps(tally.hit_blocks, tally.get_ns),
        "put_gbps": gbps(tally.put_blocks, tally.put_ns),
    }
    for name, samples in (
        ("lookup", tally.lookup_ns),
        ("get", tally.get_ns),
        ("put", tally.put_ns),
    ):
        report[f"{name}_p50_us"] = round(percentile_us(samples, 0.5), 1)
        report[f"{name}_p99_us"] = round(percentile_us(samples, 0.99), 1)
    report["puts"] = tally.put_statuses
    report["evicted_before_get"] = tally.failed_gets
    report["evictions"] = stats["evictions"]
    report["misses"] = stats["misses"]
    return report


def _print_report(report: Mapping[str, Any]) -> None:
    fields = dict(report)
    fields["hit rate"] = f"{fields.pop('hit_rate'):.4f}"
    fields["wrong bytes"] = fields.pop("wrong_bytes")
    for name in ("get", "put"):
        fields[f"{name} GB/s"] = fields.pop(f"{name}_gbps")
    for name in ("lookup", "get", "put"):
        p50, p99 = fields.pop(f"{name}_p50_us"), fields.pop(f"{name}_p99_us")
        fields[f"{name} p50/p99"] = f"{p50} / {p99} us a request"
    for name in ("puts", "misses"):
        counts = ", ".join(f"{k} {v}" for k, v in fields.pop(name).items() if v)
        fields[name] = counts or "none"
    print_fields({f"{name.replace('_', ' ')}:": value for name, value in fields.items()})


def _run_on_cluster(
    store: kvstore.Store, requests: list[Request], block_bytes: int, quiet: bool, keep: bool
) -> dict[str, Any]:
    """Replay, and remove what the replay has put, also when it is interrupted."""
    replay = _replay_of(store, requests, block_bytes)
    try:
        return _run(store, replay, requests, quiet)
    finally:
        if not keep:
            _remove(store, sorted(replay.put_keys))


def _replay_of(store: kvstore.Store, requests: list[Request], block_bytes: int) -> Replay:
    return Replay(store, block_bytes, max(len(request.hash_ids) for request in requests))


def _remove(store: kvstore.Store, keys: list[str]) -> None:
    left = 0
    for first in range(0, len(keys), _REMOVE_KEYS):
        statuses = store.batch_remove(keys[first : first + _REMOVE_KEYS])
        left += sum(status not in _GONE for status in statuses)
    if left:
        warn(f"{left:,} of the replay's objects could not be removed: kvstore rm --prefix replay/")


def _run(
    store: kvstore.Store, replay: Replay, requests: list[Request], quiet: bool
) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    # A cluster's nodes count evictions since their own start.
    evictions_before = store.stats()["evictions"]
    columns = (
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("hit rate {task.fields[hit_rate]:.3f}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("replay", total=len(requests), hit_rate=0.0)
        replay.run(requests, lambda: bar.update(task, advance=1, hit_rate=replay.tally.hit_rate))
    stats = store.stats()
    stats["evictions"] -= evictions_before
    return _report(replay.tally, replay.block_bytes, stats)


@click.command(
    epilog="Example: kvstore replay --trace conversation_trace.jsonl --block-bytes 4kb "
    "--capacity-blocks 20000"
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="JSON lines in the Mooncake format; without it a multi-turn workload is generated.",
)
@click.option(
    "--block-bytes", default="64kb", show_default=True, callback=_size, help="Bytes of one block."
)
@click.option("--capacity-blocks", type=click.IntRange(1), help="Size of the embedded store.")
@click.option("--seed", default=1, show_default=True, help="Seed of the generated workload.")
@click.option("--limit", type=click.IntRange(1), help="Replay only the first N requests.")
@click.option(
    "--segment-dir",
    type=click.Path(file_okay=False),
    help="Folder for the embedded store's memory (default: anonymous memory).",
)
@click.option("--keep", is_flag=True, help="Leave the replay's objects in the cluster.")
@click.option(
    "--transport",
    type=click.Choice(["auto", "tcp", "ucx"]),
    default="auto",
    help="tcp: never map memory; ucx: RDMA before everything else.",
)
@json_option
@target_options
@click.pass_context
@reports_errors
def replay(
    context: click.Context,
    /,
    trace: Path | None,
    block_bytes: int,
    capacity_blocks: int | None,
    seed: int,
    limit: int | None,
    segment_dir: str | None,
    keep: bool,
    transport: Literal["auto", "tcp", "ucx"],
    as_json: bool,
    **options: Any,
) -> None:
    """Replay a request trace: look up, get and verify, put missing blocks.

    Runs on a store embedded in this process, or on a cluster with --master (KVSTORE_MASTER alone
    is not enough), from which it removes its objects at the end. Exits with 5 if any byte was
    wrong.
    """
    source = context.get_parameter_source("master")
    embedded = source is not click.core.ParameterSource.COMMANDLINE
    if source is click.core.ParameterSource.ENVIRONMENT:
        warn("KVSTORE_MASTER is not used: a replay writes into a cluster only with --master")
    requests = read_trace(trace) if trace else generate(seed)
    requests = requests[:limit]
    if not any(request.hash_ids for request in requests):
        raise InvalidArgumentError("the trace has no blocks: nothing to replay")
    if embedded:
        blocks = capacity_blocks or len({b for r in requests for b in r.hash_ids})
        size, overhead = _capacity_bytes(blocks, block_bytes)
        with kvstore.open(segment_size=size, segment_dir=segment_dir) as store:
            report = _run(store, _replay_of(store, requests, block_bytes), requests, as_json)
        report |= {"capacity_blocks": blocks, "segment_bytes": size, "overhead_bytes": overhead}
        where = f"embedded store of {format_size(size)} ({blocks} blocks + {overhead} bytes)"
    else:
        if capacity_blocks is not None or segment_dir is not None:
            fail(
                "--capacity-blocks and --segment-dir apply to the embedded store only; with "
                "--master the nodes' segment_size applies",
                Exit.USAGE,
            )
        where = f"cluster at {options['master']}"
        with target(options).connect(transport) as store:
            report = _run_on_cluster(store, requests, block_bytes, as_json, keep)
    if as_json:
        print_json(report)
    else:
        what = str(trace) if trace else f"a generated multi-turn workload (seed {seed})"
        click.echo(f"replayed {what} on the {where}")
        _print_report(report)
    if report["wrong_bytes"]:
        sys.exit(Exit.FAILED)
