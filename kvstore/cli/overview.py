"""Commands that describe the cluster: status, nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.control import control
from kvstore.cli.output import print_fields, print_json, print_table, reports_errors, warn
from kvstore.cli.target import json_option, target, target_options
from kvstore.sizes import format_size

if TYPE_CHECKING:
    from kvstore._proto import types_pb2


def state_name(state: types_pb2.NodeState.ValueType) -> str:
    """Return the name of a node's state, such as "alive"."""
    from kvstore._proto import types_pb2

    return types_pb2.NodeState.Name(state).removeprefix("NODE_STATE_").lower()


def node_as_dict(node: types_pb2.NodeInfo) -> dict[str, Any]:
    """Return what `kvstore nodes --json` prints for one node."""
    return {
        "node_id": node.node_id,
        "state": state_name(node.state),
        "capacity_bytes": node.capacity_bytes,
        "used_bytes": node.used_bytes,
        "index_entries": node.index_entries,
        "index_limit": node.index_limit,
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
        "endpoint_problem": node.endpoint_problem,
    }


@click.command(epilog="Example: kvstore status --master 10.0.0.1:50051 --json")
@json_option
@target_options
@reports_errors
def status(as_json: bool, **options: Any) -> None:
    """Show a summary of the cluster's state."""
    from google.protobuf.json_format import MessageToDict

    from kvstore._proto import master_pb2

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


def percent(part: int, whole: int) -> str:
    """Return a share in percent; nothing of an unknown whole."""
    return f"{100 * part / whole:.0f} %" if whole else ""


@click.command(epilog="Example: kvstore nodes --json | jq '.[] | select(.state != \"alive\")'")
@json_option
@target_options
@reports_errors
def nodes(as_json: bool, **options: Any) -> None:
    """List the known nodes with state, capacity and usage.

    `fill` is the share of memory in use, `index` that of the entries that the index has or can grow
    to: where it is full, small objects are evicted although there is memory.
    """
    from kvstore._proto import master_pb2

    with control(target(options)) as (master, call):
        reply = master.ListNodes(master_pb2.ListNodesRequest(), **call)
    if as_json:
        print_json([node_as_dict(node) for node in reply.nodes])
        return
    print_table(
        ["node", "state", "used", "capacity", "fill", "objects", "index", "endpoint"],
        [
            [
                node.node_id,
                state_name(node.state),
                format_size(node.used_bytes),
                format_size(node.capacity_bytes),
                percent(node.used_bytes, node.capacity_bytes),
                node.objects,
                percent(node.index_entries, node.index_limit),
                node.endpoints.tcp,
            ]
            for node in reply.nodes
        ],
    )
    for node in reply.nodes:
        if node.endpoint_problem:
            warn(f"{node.node_id} is not told to clients: {node.endpoint_problem}")
