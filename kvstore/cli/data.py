"""Commands on objects: put, get, exists, rm, unpin, ls."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any, Literal

import click

import kvstore
from kvstore.cli.output import (
    Exit,
    exit_of,
    fail,
    is_terminal,
    print_json,
    reports_errors,
    warn,
)
from kvstore.cli.target import json_option, target, target_options
from kvstore.errors import MissReason, Status
from kvstore.text import printable

_ALIVE = 1  # NodeState of native types.h
_LIST_LIMIT = 1000

MISSES = {
    MissReason.Absent: (Exit.MISS, "no object"),
    MissReason.Evicted: (Exit.MISS, "no object: it was evicted to make room"),
    MissReason.IndexFull: (Exit.MISS, "no object: the index was full, and it was evicted"),
    MissReason.Expired: (Exit.MISS, "no object: it has expired"),
    MissReason.Removed: (Exit.MISS, "no object: it was removed"),
    MissReason.Flushed: (Exit.MISS, "no object: its namespace was flushed"),
    MissReason.Version: (Exit.MISS, "no object: it was replaced meanwhile"),
    MissReason.Checksum: (Exit.FAILED, "the stored bytes are damaged"),
    MissReason.BufferTooSmall: (Exit.FAILED, "it has grown while it was read"),
    MissReason.NodeDown: (Exit.UNAVAILABLE, "the nodes that hold the object are down"),
    MissReason.Restarting: (Exit.UNAVAILABLE, "the nodes that hold the object are restarting"),
    MissReason.Rebuilding: (
        Exit.UNAVAILABLE,
        "unknown: the master has just started and still asks its nodes",
    ),
    MissReason.IoError: (Exit.UNAVAILABLE, "the node could not read the object from its disk"),
    MissReason.Unavailable: (Exit.UNAVAILABLE, "unknown: nobody could be asked"),
}
"""What a miss means for the exit code, and in words."""


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
@click.option("--parent", help="Key of the previous block of a chain, evicted after this one.")
@click.option("--upsert", is_flag=True, help="Replace an object that is there.")
@json_option
@target_options
@reports_errors
def put(
    key: str,
    file: Any,
    replicas: int,
    pin: Literal["soft", "hard"] | None,
    ttl_ms: int | None,
    parent: str | None,
    upsert: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Store the bytes of FILE (default: standard input) under KEY."""
    data = file.read()
    with target(options).connect() as store:
        status = store.put(
            key, data, replicas=replicas, pin=pin, ttl_ms=ttl_ms, parent=parent, upsert=upsert
        )
        if status and replicas > 1:
            _warn_of_few_nodes(store, replicas)
    if as_json:
        print_json({"key": key, "status": status.name, "size": len(data)})
    else:
        click.echo(f"{status.name}: {printable(key)} ({len(data)} bytes)")
    sys.exit(exit_of(status))


def _warn_of_few_nodes(store: kvstore.Store, replicas: int) -> None:
    alive = sum(node["state"] == _ALIVE for node in store.stats()["nodes"])
    if alive < replicas:
        warn(
            f"{replicas} replicas were asked for, but the cluster has {alive} living "
            f"node{'s' if alive != 1 else ''}: it keeps one on each"
        )


@click.command(epilog="Example: kvstore get greeting -o hello.bin")
@click.argument("key")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document; the bytes in base64 unless --output is given.",
)
@target_options
@reports_errors
def get(key: str, output: str | None, as_json: bool, **options: Any) -> None:
    """Print the bytes stored under KEY; a miss says why."""
    reasons: list[MissReason] = []
    with target(options).connect() as store:
        (data,) = store.batch_get([key], reasons=reasons)
    code, words = (Exit.OK, "") if data is not None else MISSES[reasons[0]]
    if data is not None and output is not None:
        try:
            with open(output, "wb") as stream:
                stream.write(data)
        except OSError as error:
            fail(f"{output}: {error.strerror}", Exit.USAGE)
    if as_json:
        document: dict[str, Any] = {"key": key, "found": data is not None}
        document["reason"] = None if data is not None else reasons[0].value
        document["size"] = None if data is None else len(data)
        if output is not None:
            document["output"] = output
        else:
            import base64

            document["data_base64"] = None if data is None else base64.b64encode(data).decode()
        print_json(document)
    elif data is None:
        fail(f"{key!r}: {words} ({reasons[0].value})", code)
    elif output is None:
        if is_terminal(of="stdout") and not _is_text(data):
            fail(f"{key!r} is not plain text: use -o FILE, or a pipe", Exit.USAGE)
        sys.stdout.buffer.write(data)
    sys.exit(code)


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\t\n\r" for c in text)


@click.command(epilog="Example: kvstore exists greeting && echo cached")
@click.argument("keys", nargs=-1, required=True)
@json_option
@target_options
@reports_errors
def exists(keys: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Show for each KEY whether it is present.

    Exits with 1 when one is absent, with 3 when nobody could say.
    """
    with target(options).connect() as store:
        sizes = dict(zip(keys, store.batch_sizes(list(keys)), strict=True))
    codes = {key: Exit.OK if size >= 0 else exit_of(Status(size)) for key, size in sizes.items()}
    if as_json:
        print_json({key: size >= 0 for key, size in sizes.items()})
    else:
        words = {Exit.OK: "present", Exit.UNAVAILABLE: "unknown"}
        for key, code in codes.items():
            click.echo(f"{words.get(code, 'absent'):<8} {printable(key)}")
    if Exit.UNAVAILABLE in codes.values():
        sys.exit(Exit.UNAVAILABLE)
    if any(code is not Exit.OK for code in codes.values()):
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
        _print_failures(statuses)
        click.echo(f"removed {removed}")
    _exit_with_worst(statuses)


@click.command(epilog="Example: kvstore unpin system-prompt")
@click.argument("keys", nargs=-1, required=True)
@json_option
@target_options
@reports_errors
def unpin(keys: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Remove the pin of each KEY; from then on it is evicted like any other object."""
    with target(options).connect() as store:
        statuses = {key: store.unpin(key) for key in keys}
    if as_json:
        print_json({key: status.name for key, status in statuses.items()})
    else:
        _print_failures(statuses)
        click.echo(f"unpinned {sum(status is Status.Ok for status in statuses.values())}")
    _exit_with_worst(statuses)


def _print_failures(statuses: dict[str, Status]) -> None:
    for key, status in statuses.items():
        if status is not Status.Ok:
            click.echo(f"{status.name}: {printable(key)}")


def _exit_with_worst(statuses: dict[str, Status]) -> None:
    codes = {exit_of(status) for status in statuses.values()}
    for code in (Exit.FAILED, Exit.UNAVAILABLE, Exit.MISS):
        if code in codes:
            sys.exit(code)


@click.command(epilog="Example: kvstore ls model-a/ --limit 20")
@click.argument("prefix", default="")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_LIST_LIMIT,
    show_default=True,
    help="Stop after this many keys, and say so; 0: list all.",
)
@json_option
@target_options
@reports_errors
def ls(prefix: str, limit: int, as_json: bool, **options: Any) -> None:
    """List keys that start with PREFIX, in no particular order."""
    with target(options).connect() as store:
        listed = store.keys(prefix)
        keys = islice(listed, limit) if limit else listed
        if as_json:
            print_json(list(keys))
        else:
            for key in keys:
                click.echo(printable(key))
        is_cut = limit > 0 and next(listed, None) is not None
    if is_cut:
        warn(f"stopped at {limit:,} keys, there are more: --limit 0 lists all")
