"""Commands on namespaces: namespaces, flush."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.control import control
from kvstore.cli.output import (
    Exit,
    fail,
    is_terminal,
    print_json,
    print_table,
    reports_errors,
    warn,
)
from kvstore.cli.target import Target, is_given, json_option, target, target_options
from kvstore.errors import PermissionDeniedError, Status
from kvstore.sizes import format_size
from kvstore.text import printable

if TYPE_CHECKING:
    from kvstore._proto import master_pb2


def _listed(where: Target, tenant: str) -> master_pb2.ListNamespacesReply:
    """Ask for the namespaces of a tenant; "" is every tenant."""
    from kvstore._proto import master_pb2

    request = master_pb2.ListNamespacesRequest(tenant=tenant)
    with control(where) as (master, call):
        return master.ListNamespaces(request, **call)


@click.command(epilog="Example: kvstore namespaces --json | jq '.[] | select(.objects == 0)'")
@json_option
@target_options
@reports_errors
def namespaces(as_json: bool, **options: Any) -> None:
    """List the namespaces with their objects and bytes, those with the most bytes first.

    Without --tenant those of every tenant are listed, where the principal may see them. Keys are
    counted when the master looks them up: a host reads its own memory without asking.
    """
    where = target(options)
    every = not is_given("tenant")
    try:
        reply = _listed(where, "" if every else where.tenant)
    except PermissionDeniedError:
        if not every:
            raise
        reply = _listed(where, where.tenant)
    if as_json:
        print_json(
            [
                {
                    "tenant": one.namespace.tenant,
                    "namespace": one.namespace.name,
                    "objects": one.objects,
                    "bytes": one.bytes,
                    "keys_looked_up": one.keys_looked_up,
                    "keys_found": one.keys_found,
                    "epoch": one.epoch,
                }
                for one in reply.namespaces
            ]
        )
    else:
        print_table(
            ["tenant", "namespace", "objects", "size", "looked up", "found", "flushes"],
            [
                [
                    one.namespace.tenant,
                    one.namespace.name or "(default)",
                    one.objects,
                    format_size(one.bytes),
                    one.keys_looked_up,
                    one.keys_found,
                    one.epoch,
                ]
                for one in reply.namespaces
            ],
        )
    if reply.left_out:
        warn(f"{reply.left_out:,} more namespaces are not listed")


def _named(where: Target) -> str:
    return f"{where.namespace!r} of tenant {where.tenant!r}"


@click.command(epilog="Example: kvstore flush --namespace llama-3-70b/bf16/64")
@click.option("--all", "every", is_flag=True, help="Flush every namespace of the tenant.")
@click.option("--yes", is_flag=True, help="Do not ask, on a terminal.")
@json_option
@target_options
@reports_errors
def flush(every: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Make every object of a namespace unreachable, in constant time.

    Needs --namespace (--namespace "" is the default one) or --all. Exits with 1 when the master
    has never heard of the namespace, with 5 when a node could not be told.
    """
    if every == is_given("namespace"):
        fail('give --namespace NAME ("" is the default namespace), or --all', Exit.USAGE)
    where = target(options)
    known = _listed(where, where.tenant).namespaces
    chosen = [one for one in known if every or one.namespace.name == where.namespace]
    if not (yes or as_json) and is_terminal(of="stdin") and is_terminal(of="stderr"):
        objects, size = sum(one.objects for one in chosen), sum(one.bytes for one in chosen)
        what = f"every namespace of tenant {where.tenant!r}" if every else _named(where)
        question = f"flush {objects:,} objects ({format_size(size)}) of {printable(what)}?"
        if not click.confirm(question, err=True):
            fail("nothing was flushed", Exit.FAILED)
    names = sorted(one.namespace.name for one in chosen) if every else [where.namespace]
    rows = [_flush_one(replace(where, namespace=name)) for name in names]
    _report(where, rows, every, as_json, [one.namespace.name for one in known if one.objects])


def _flush_one(where: Target) -> tuple[str, master_pb2.FlushReply]:
    from kvstore._proto import master_pb2, types_pb2

    request = master_pb2.FlushRequest(
        namespace=types_pb2.Namespace(tenant=where.tenant, name=where.namespace),
        timeout_ms=where.timeout_ms,
    )
    with control(where) as (master, call):
        # The server answers Partial at its deadline: leave time for that answer.
        call = {**call, "timeout": where.timeout_ms / 1000 + 1}
        return where.namespace, master.Flush(request, **call)


def _report(
    where: Target,
    rows: Sequence[tuple[str, master_pb2.FlushReply]],
    every: bool,
    as_json: bool,
    others: Sequence[str],
) -> None:
    documents = [
        {
            "namespace": name,
            "status": Status(reply.status).name,
            "unreached_nodes": list(reply.unreached_nodes),
            "known": reply.known,
            "objects": reply.objects,
            "bytes": reply.bytes,
        }
        for name, reply in rows
    ]
    if as_json:
        print_json(documents if every else documents[0])
    else:
        for name, reply in rows:
            went = f"{reply.objects:,} objects ({format_size(reply.bytes)}) went"
            named = _named(replace(where, namespace=name))
            click.echo(f"{Status(reply.status).name}: namespace {printable(named)}: {went}")
    unreached = sorted({node for _, reply in rows for node in reply.unreached_nodes})
    if unreached:
        fail(f"nodes not reached yet: {', '.join(unreached)}", Exit.FAILED)
    if not every and not rows[0][1].known:
        near = difflib.get_close_matches(where.namespace, others, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        fail(f"the master has never heard of namespace {_named(where)}{hint}", Exit.MISS)
