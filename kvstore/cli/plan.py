"""`kvstore plan`: the hit rate with more memory or NVMe, from the live workload or a trace."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kvstore.cli.output import (
    Exit,
    fail,
    format_duration,
    is_terminal,
    print_fields,
    print_json,
    print_table,
    reports_errors,
    warn,
)
from kvstore.cli.target import Target, json_option, target, target_options
from kvstore.errors import InvalidArgumentError
from kvstore.planning.curve import Curve
from kvstore.replay.trace import Request, read_trace
from kvstore.sizes import format_size, parse_size

_FACTORS = (0.5, 2, 4, 8)
_NVME_FILL = 0.9  # of nvme_size, with objects
_OF_NVME = (
    "NVMe also has some of what memory has, and drops what is oldest: hit rates with it are "
    "optimistic (by 0.02 on the conversation trace)"
)


@dataclass(frozen=True)
class Observed:
    """A curve, and where it comes from."""

    curve: Curve
    memory_bytes: int
    """Of the cluster today; 0 for a trace."""
    nvme_bytes: int
    facts: dict[str, Any]


def _live(where: Target) -> Observed:
    """Ask the master."""
    from kvstore._proto import master_pb2
    from kvstore.cli.control import control

    with control(where) as (master, call):
        reply = master.Reuse(master_pb2.ReuseRequest(), **call)
    if len(reply.upto_bytes) != len(reply.uses):
        raise InvalidArgumentError("the master's answer has bounds without uses")
    curve = Curve(
        buckets=list(zip(reply.upto_bytes, reply.uses, strict=True)),
        cold=reply.cold_uses,
        hits=reply.hits,
        puts=reply.puts,
        lost=reply.lost_hits,
        keys=reply.sampled_keys,
    )
    facts = {
        "observed_ms": reply.observed_ms,
        "sampled_keys": reply.sampled_keys,
        "sampled_uses": reply.sampled_uses,
        "master_memory_bytes": reply.memory_bytes,
        "master_busy_us": reply.busy_us,
    }
    return Observed(curve, reply.dram_capacity_bytes, reply.nvme_capacity_bytes, facts)


def trace_curve(requests: Sequence[Request], block_bytes: int) -> Curve:
    """Return the curve of a trace, whose blocks are used tail first, as a store does.

    Args:
        requests: of the trace.
        block_bytes: of one block.
    """
    from kvstore import _native

    curve = _native.ReuseCurve()
    level = 0
    for request in requests:
        hashes = [
            hashlib.blake2b(b"%d" % block, digest_size=8).digest()
            for block in reversed(request.hash_ids)
        ]
        size = struct.pack("<Q", block_bytes << 1)
        records = b"".join(one + size for one in hashes)
        level = curve.note(level=level, records=records, puts=len(hashes))
    found = curve.summary()
    return Curve(
        buckets=found["buckets"],
        cold=found["cold"],
        hits=found["hits"],
        puts=found["puts"],
        lost=found["lost"],
        keys=found["keys"],
    )


def _sizes(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> list[int]:
    try:
        sizes = [parse_size(int(value) if value.isdigit() else value) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if any(not 0 < size < 1 << 60 for size in sizes):
        raise click.BadParameter("must be above 0 and below 2^60 bytes")
    return sizes


def _steps(
    observed: Observed, memory: Sequence[int], nvme: Sequence[int]
) -> list[tuple[str, int, int]]:
    """Return what to estimate: in words, and the bytes of memory and of NVMe."""
    today, disk = observed.memory_bytes, observed.nvme_bytes
    steps = [(f"memory {format_size(size)}", size, disk) for size in memory]
    if not memory and today:
        steps = [
            (f"{factor:g}x memory ({format_size(int(today * factor))})", int(today * factor), disk)
            for factor in _FACTORS
        ]
    steps += [(f"NVMe {format_size(size)}", today, size) for size in nvme]
    if not steps:
        raise InvalidArgumentError("a trace knows no cluster: give --memory SIZE")
    return steps


def _document(observed: Observed, steps: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
    curve = observed.curve
    today = _reachable(observed.memory_bytes, observed.nvme_bytes)
    rows = []
    for what, memory, nvme in steps:
        size = _reachable(memory, nvme)
        rate = curve.hit_rate(size, today) if today else curve.estimate(size)
        rows.append(
            {
                "what": what,
                "memory_bytes": memory,
                "nvme_bytes": nvme,
                "hit_rate": round(rate, 4),
                "estimate": round(curve.estimate(size), 4),
            }
        )
    doubts = curve.doubts(today, [_reachable(memory, nvme) for _, memory, nvme in steps])
    if any(nvme != observed.nvme_bytes for _, _, nvme in steps):
        doubts.append(_OF_NVME)
    document: dict[str, Any] = {
        "memory_bytes": observed.memory_bytes,
        "nvme_bytes": observed.nvme_bytes,
        "uses": round(curve.uses),
        "hit_rate": round(curve.measured, 4) if today else None,
        "estimate": round(curve.estimate(today), 4) if today else None,
        "error": round(curve.error, 4),
        **observed.facts,
        "plans": rows,
        "doubts": doubts,
    }
    return document


def _reachable(memory_bytes: int, nvme_bytes: int) -> int:
    """Return the bytes of objects that both tiers hold together."""
    return memory_bytes + int(nvme_bytes * _NVME_FILL)


def _print(document: dict[str, Any]) -> None:
    now = document["hit_rate"]
    if now is not None:
        print_fields(
            {
                "today": f"{format_size(document['memory_bytes'])} of memory"
                + (
                    f" and {format_size(document['nvme_bytes'])} of NVMe"
                    if document["nvme_bytes"]
                    else ""
                ),
                "hit rate": f"{now:.2f} of {document['uses']:,} uses",
                "observed": format_duration(document["observed_ms"]),
            }
        )
        click.echo()
        for row in document["plans"]:
            click.echo(f"with {row['what']}: hit rate {now:.2f} -> {row['hit_rate']:.2f}")
    else:
        print_table(
            ["with", "hit rate"], [[row["what"], row["hit_rate"]] for row in document["plans"]]
        )
    click.echo(f"\nWithin about {document['error']:.3f}, as far as sampling goes.")
    for doubt in document["doubts"]:
        warn(doubt)


@click.command(epilog="Example: kvstore plan --nvme 200gb --nvme 800gb")
@click.option(
    "--memory",
    multiple=True,
    callback=_sizes,
    metavar="SIZE",
    help="Memory of all nodes together; repeatable.  [default: half to eight times today's]",
)
@click.option(
    "--nvme",
    multiple=True,
    callback=_sizes,
    metavar="SIZE",
    help="NVMe of all nodes together, beside today's memory; repeatable.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Plan for a trace (as of `kvstore replay`) instead of the live workload.",
)
@click.option(
    "--block-bytes",
    default="1mb",
    callback=lambda context, option, value: _sizes(context, option, (value,))[0],
    show_default=True,
    metavar="SIZE",
    help="Bytes of a block of the trace.",
)
@json_option
@target_options
@reports_errors
def plan(
    memory: list[int],
    nvme: list[int],
    trace: Path | None,
    block_bytes: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate the hit rate with more memory, less memory or NVMe.

    A use is a read that found its object, or a put, for which nothing was found to read: the hit
    rate is the share of reads. The master follows the uses of a sample of all keys; those of six
    hours ago count half. NVMe counts with 90 % of its size, as if it evicted what was used least
    recently.
    """
    where = target(options)
    if trace is None:
        observed = _live(where)
    else:
        requests = read_trace(trace)
        if is_terminal(of="stderr"):
            click.echo(f"{len(requests):,} requests", err=True)
        observed = Observed(trace_curve(requests, block_bytes), 0, 0, {})
    document = _document(observed, _steps(observed, memory, nvme))
    if as_json:
        print_json(document)
        return
    if not observed.curve.uses:
        fail(document["doubts"][0], Exit.MISS)
    _print(document)
