"""Commands on objects: put, get, exists, rm, ls, inspect, explain."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import click

from kvstore.cli.output import (
    Exit,
    fail,
    format_time,
    print_fields,
    print_json,
    print_table,
    reports_errors,
)
from kvstore.cli.target import json_option, target, target_options
from kvstore.errors import Status


@click.command(epilog="Example: kvstore put greeting hello.bin --replicas 2")
@click.argument("key")
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--replicas", default=1, show_default=True, help="Number of nodes that hold the object."
)
@click.option(
    "--pin", type=click.Choice(["soft", "hard"]), help="soft: evict last; hard: never evict."
)
@click.option("--ttl-ms", type=int, help="Expire after this time.")
@json_option
@target_options
@reports_errors
def put(
    key: str,
    file: Any,
    replicas: int,
    pin: Literal["soft", "hard"] | None,
    ttl_ms: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Store the bytes of FILE (default: standard input) under KEY."""
    data = file.read()
    with target(options).connect() as store:
        status = store.put(key, data, replicas=replicas, pin=pin, ttl_ms=ttl_ms)
    if as_json:
        print_json({"key": key, "status": status.name, "size": len(data)})
    else:
        click.echo(f"{status.name}: {key} ({len(data)} bytes)")
    if not status.ok:
        sys.exit(Exit.UNAVAILABLE if status is Status.Unavailable else Exit.FAILED)


@click.command(epilog="Example: kvstore get greeting -o hello.bin")
@click.argument("key")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file."
)
@target_options
@reports_errors
def get(key: str, output: Path | None, **options: Any) -> None:
    """Print the bytes stored under KEY."""
    with target(options).connect() as store:
        data = store.get(key)
    if data is None:
        fail(f"no object under {key!r}", Exit.MISS)
    if output is None:
        sys.stdout.buffer.write(data)
    else:
        output.write_bytes(data)


@click.command(epilog="Example: kvstore exists greeting && echo cached")
@click.argument("keys", nargs=-1, required=True)
@json_option
@target_options
@reports_errors
def exists(keys: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Show for each KEY whether it is present; exit code 1 when one is absent."""
    with target(options).connect() as store:
        found = store.batch_exists(list(keys))
    if as_json:
        print_json(dict(zip(keys, found, strict=True)))
    else:
        for key, present in zip(keys, found, strict=True):
            click.echo(f"{'present' if present else 'absent':<8} {key}")
    if not all(found):
        sys.exit(Exit.MISS)


@click.command(epilog="Example: kvstore rm --prefix model-a/")
@click.argument("keys", nargs=-1)
@click.option("--prefix", help="Remove every key that starts with this.")
@json_option
@target_options
@reports_errors
def rm(keys: tuple[str, ...], prefix: str | None, as_json: bool, **options: Any) -> None:
    """Remove objects, by KEY or by prefix; they never come back."""
    if not keys and prefix is None:
        fail("give at least one KEY, or --prefix", Exit.USAGE)
    with target(options).connect() as store:
        statuses = {key: store.remove(key) for key in keys}
        removed = store.remove_prefix(prefix) if prefix is not None else 0
    removed += sum(status is Status.Ok for status in statuses.values())
    if as_json:
        print_json({"removed": removed, "statuses": {k: s.name for k, s in statuses.items()}})
    else:
        for key, status in statuses.items():
            if status is not Status.Ok:
                click.echo(f"{status.name}: {key}")
        click.echo(f"removed {removed}")
    if any(status not in (Status.Ok, Status.NotFound) for status in statuses.values()):
        sys.exit(Exit.FAILED)
    if Status.NotFound in statuses.values():
        sys.exit(Exit.MISS)


@click.command(epilog="Example: kvstore ls model-a/ --limit 20")
@click.argument("prefix", default="")
@click.option(
    "--limit", type=int, default=1000, show_default=True, help="Stop after this many keys."
)
@json_option
@target_options
@reports_errors
def ls(prefix: str, limit: int, as_json: bool, **options: Any) -> None:
    """List keys that start with PREFIX, in no particular order."""
    with target(options).connect() as store:
        keys = list(islice(store.keys(prefix), limit))
    if as_json:
        print_json(keys)
    else:
        for key in keys:
            click.echo(key)


@click.command(epilog="Example: kvstore explain greeting --json")
@click.argument("key")
@json_option
@target_options
@reports_errors
def explain(key: str, as_json: bool, **options: Any) -> None:
    """Show where KEY is or was: per node, when it was put, read and lost, and why."""
    with target(options).connect() as store:
        known = store.explain(key)
    if as_json:
        print_json([{**one, "reason": one["reason"].value} for one in known])
    else:
        print_table(
            ["node", "tiers", "size", "put", "last used", "gone", "reason"],
            [
                [
                    one["node_id"],
                    " ".join(one["tiers"]) or "-",
                    one["size"] if one["tiers"] else "-",
                    format_time(one["put_ms"]),
                    format_time(one["used_ms"]),
                    format_time(one["gone_ms"]),
                    one["reason"].value if not one["tiers"] else "-",
                ]
                for one in known
            ],
        )
    if not any(one["tiers"] for one in known):
        sys.exit(Exit.MISS)


@click.command(epilog="Example: kvstore inspect greeting --json")
@click.argument("key")
@json_option
@target_options
@reports_errors
def inspect(key: str, as_json: bool, **options: Any) -> None:
    """Show the master's record of KEY: size, version, replicas, pin, times."""
    with target(options).connect() as store:
        found = store.inspect(key)
    if found is None:
        fail(f"no object under {key!r}", Exit.MISS)
    if as_json:
        print_json(found)
    else:
        print_fields(found)
