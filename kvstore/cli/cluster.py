"""Commands on the cluster: status, nodes, flush, snapshot."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kvstore._proto import master_pb2, types_pb2
from kvstore.cli.control import control
from kvstore.cli.output import Exit, fail, print_fields, print_json, print_table, reports_errors
from kvstore.cli.target import json_option, target, target_options
from kvstore.clock import pause_s
from kvstore.errors import Status
from kvstore.sizes import format_size

_POLL_S = 0.2


def _state_name(state: types_pb2.NodeState.ValueType) -> str:
    return types_pb2.NodeState.Name(state).removeprefix("NODE_STATE_").lower()


def node_as_dict(node: types_pb2.NodeInfo) -> dict[str, Any]:
    """Return what `kvstore nodes --json` prints for one node."""
    return {
        "node_id": node.node_id,
        "state": _state_name(node.state),
        "capacity_bytes": node.capacity_bytes,
        "used_bytes": node.used_bytes,
        "objects": node.objects,
        "weight": round(node.weight, 4),
        "linked": node.linked,
        "node_epoch": node.node_epoch,
        "last_heartbeat_age_ms": node.last_heartbeat_age_ms,
        "drain_left_objects": node.drain_left_objects,
        "labels": dict(node.labels),
        "endpoints": {
            "tcp": node.endpoints.tcp,
            "unix": node.endpoints.unix,
            "http": node.endpoints.http,
        },
    }


@click.command(epilog="Example: kvstore status --master 10.0.0.1:50051 --json")
@json_option
@target_options
@reports_errors
def status(as_json: bool, **options: Any) -> None:
    """Show a summary of the cluster's state."""
    with control(target(options)) as (master, call):
        reply = master.Status(master_pb2.StatusRequest(), **call)
    fields = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # The JSON mapping of protobuf prints 64-bit integers as strings; users and jq expect numbers.
    for name in ("uptime_ms", "objects", "capacity_bytes", "used_bytes"):
        fields[name] = getattr(reply, name)
    for name in ("under_replicated_objects", "pending_operations"):
        fields[name] = getattr(reply, name)
    if as_json:
        print_json(fields)
    else:
        fields["capacity_bytes"] = format_size(reply.capacity_bytes)
        fields["used_bytes"] = format_size(reply.used_bytes)
        print_fields(fields)


@click.command(epilog="Example: kvstore nodes --json | jq '.[] | select(.state != \"alive\")'")
@json_option
@target_options
@reports_errors
def nodes(as_json: bool, **options: Any) -> None:
    """List the known nodes with state, capacity and usage."""
    with control(target(options)) as (master, call):
        reply = master.ListNodes(master_pb2.ListNodesRequest(), **call)
    if as_json:
        print_json([node_as_dict(node) for node in reply.nodes])
        return
    print_table(
        ["node", "state", "used", "capacity", "objects", "endpoint"],
        [
            [
                node.node_id,
                _state_name(node.state),
                format_size(node.used_bytes),
                format_size(node.capacity_bytes),
                node.objects,
                node.endpoints.tcp,
            ]
            for node in reply.nodes
        ],
    )


@click.command(epilog="Example: kvstore flush --namespace llama-3-70b/bf16/64")
@json_option
@target_options
@reports_errors
def flush(as_json: bool, **options: Any) -> None:
    """Make every object of a namespace unreachable, in constant time."""
    where = target(options)
    request = master_pb2.FlushRequest(
        namespace=types_pb2.Namespace(tenant=where.tenant, name=where.namespace),
        timeout_ms=where.timeout_ms,
    )
    with control(where) as (master, call):
        # The server answers Partial at its deadline: leave time for that answer.
        reply = master.Flush(request, **{**call, "timeout": where.timeout_ms / 1000 + 1})
    outcome = Status(reply.status)
    if as_json:
        print_json({"status": outcome.name, "unreached_nodes": list(reply.unreached_nodes)})
    else:
        click.echo(f"{outcome.name}: namespace {where.namespace!r} of tenant {where.tenant!r}")
    if outcome is Status.Partial:
        fail(f"nodes not reached yet: {', '.join(reply.unreached_nodes)}", Exit.FAILED)


@click.command(epilog="Example: kvstore snapshot node-a && reboot")
@click.argument("node_id")
@click.option(
    "--wait-s", default=600, show_default=True, help="Stop waiting after this many seconds."
)
@json_option
@target_options
@reports_errors
def snapshot(node_id: str, wait_s: int, as_json: bool, **options: Any) -> None:
    """Write a node's DRAM-only objects to NVMe, most recently used first."""
    with control(target(options)) as (master, call):
        begun = master.Snapshot(master_pb2.SnapshotRequest(node_id=node_id), **call)
        request = master_pb2.SnapshotRequest(node_id=node_id, request=begun.request)
        columns = (TextColumn("snapshot"), BarColumn(), TextColumn("{task.fields[left]} left"))
        console = Console(stderr=True)
        progress = begun.progress
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("snapshot", total=None, left="?")
            most = 0
            for _ in range(int(wait_s / _POLL_S)):
                if progress.done:
                    break
                pause_s(_POLL_S)
                progress = master.Snapshot(request, **call).progress
                most = max(most, progress.left)
                bar.update(task, total=most or None, completed=most - progress.left)
                bar.update(task, left=progress.left)
    fields = {
        "node_id": node_id,
        "done": progress.done,
        "objects": progress.objects,
        "bytes": progress.bytes,
        "left": progress.left,
        "error": progress.error,
    }
    if as_json:
        print_json(fields)
    elif progress.done and not progress.error:
        size = format_size(progress.bytes)
        click.echo(f"{node_id}: {progress.objects} objects ({size}) written, {progress.left} left")
    if progress.error:
        fail(f"{node_id}: {progress.error}", Exit.FAILED)
    if not progress.done or progress.left:
        fail(f"{node_id}: {progress.left} objects were not written", Exit.FAILED)
