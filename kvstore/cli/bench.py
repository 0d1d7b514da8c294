"""`kvstore bench`: a short benchmark of a live cluster, from the host where it runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any, Literal

import click

import kvstore
from kvstore.cli.output import print_json, print_table, reports_errors
from kvstore.cli.target import json_option, target, target_options
from kvstore.clock import monotonic_ns
from kvstore.errors import KvstoreError, Status
from kvstore.replay.runner import percentile_us
from kvstore.sizes import format_size, parse_size


def _timed(rounds: int, call: Callable[[], None]) -> list[int]:
    samples = []
    for _ in range(rounds):
        start = monotonic_ns()
        call()
        samples.append(monotonic_ns() - start)
    return samples


def _measure(store: kvstore.Store, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time put, get_into and exists of `batch` objects of `size` bytes; remove them afterwards."""
    run = secrets.token_hex(4)
    keys = [[f"bench/{run}/{r}/{i}" for i in range(batch)] for r in range(rounds)]
    data = [os.urandom(size) for _ in range(batch)]
    out = [memoryview(bytearray(size)) for _ in range(batch)]
    todo = iter(keys)

    def put() -> None:
        for status in store.batch_put(next(todo), data):
            if status is not Status.Ok:
                raise KvstoreError(f"put answered {status.name}; is the cluster large enough?")

    def get() -> None:
        if store.batch_get_into(keys[-1], out) != [size] * batch or out[-1] != data[-1]:
            raise KvstoreError("a get did not return what was put")

    def exists() -> None:
        store.batch_exists(keys[-1])

    row: dict[str, Any] = {"size": size, "batch": batch}
    try:
        for name, call in (("put", put), ("get", get), ("exists", exists)):
            samples = _timed(rounds, call)
            row[f"{name}_p50_us"] = round(percentile_us(samples, 0.5), 1)
            row[f"{name}_p99_us"] = round(percentile_us(samples, 0.99), 1)
            if name != "exists":
                row[f"{name}_gbps"] = round(size * batch / (percentile_us(samples, 0.5) * 1000), 3)
    finally:
        store.remove_prefix(f"bench/{run}/")
    return row


@click.command(epilog="Example: kvstore bench --size 64kb --size 1mb --batch 32")
@click.option("--size", "sizes", multiple=True, default=("4kb", "64kb", "1mb"), show_default=True)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1, 4096))
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--transport",
    type=click.Choice(["auto", "tcp", "ucx"]),
    default="auto",
    help="tcp: never map memory; ucx: RDMA before everything else.",
)
@json_option
@target_options
@reports_errors
def bench(
    sizes: tuple[str, ...],
    batch: int,
    rounds: int,
    transport: Literal["auto", "tcp", "ucx"],
    as_json: bool,
    **options: Any,
) -> None:
    """Time put, get and exists on a live cluster; medians over the rounds, bytes checked."""
    try:
        sizes_bytes = [parse_size(size) for size in sizes]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from None
    with target(options).connect(transport) as store:
        rows = [_measure(store, size, batch, rounds) for size in sizes_bytes]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["size", "batch", "put GB/s", "put p50 us", "get GB/s", "get p50 us", "exists p50 us"],
        [
            [
                format_size(row["size"]),
                row["batch"],
                row["put_gbps"],
                row["put_p50_us"],
                row["get_gbps"],
                row["get_p50_us"],
                row["exists_p50_us"],
            ]
            for row in rows
        ],
    )
