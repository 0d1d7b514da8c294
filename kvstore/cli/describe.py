"""Commands that describe one object: inspect, explain."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.control import control
from kvstore.cli.data import MISSES
from kvstore.cli.output import (
    Exit,
    fail,
    format_duration,
    format_time,
    print_fields,
    print_json,
    print_table,
    reports_errors,
)
from kvstore.cli.target import Target, json_option, target, target_options
from kvstore.clock import unix_ms
from kvstore.errors import KvstoreError, MissReason, Status, UnavailableError
from kvstore.sizes import format_size
from kvstore.text import printable

if TYPE_CHECKING:
    from kvstore._proto.master_pb2 import ListNodesReply

_TIERS = {1: "dram", 2: "nvme"}  # Tier of types.proto
_PINS = {1: "soft", 2: "hard"}
_DEAD = "dead"


def _node_states(reply: ListNodesReply) -> dict[str, tuple[str, int | None]]:
    """Return each node's state and, of a dead one, when it was last heard of."""
    from kvstore.cli.overview import state_name

    now = unix_ms()
    states = {}
    for node in reply.nodes:
        state = state_name(node)
        seen = now - node.last_heartbeat_age_ms if state == _DEAD else None
        states[node.node_id] = (state, seen)
    return states


def _down(since_ms: int | None) -> str:
    return "node_down" if since_ms is None else f"node_down since {format_time(since_ms)}"


@click.command(epilog="Example: kvstore inspect greeting --json")
@click.argument("key")
@json_option
@target_options
@reports_errors
def inspect(key: str, as_json: bool, **options: Any) -> None:
    """Show the master's record of KEY: size, version, pin, times, replicas.

    Exits with 3 when every node that holds it is down.
    """
    from kvstore._proto import master_pb2, types_pb2

    where = target(options)
    request = master_pb2.InspectRequest(
        namespace=types_pb2.Namespace(tenant=where.tenant, name=where.namespace), key=key
    )
    try:
        with control(where) as (master, call):
            found = master.Inspect(request, **call)
            states = _node_states(master.ListNodes(master_pb2.ListNodesRequest(), **call))
    except KvstoreError as error:
        if error.status is Status.NotFound:
            fail(f"no object under {key!r}", Exit.MISS)
        raise
    replicas = []
    for replica in found.replicas:
        state, since_ms = states.get(replica.node_id, (_DEAD, None))
        replicas.append(
            {
                "node_id": replica.node_id,
                "tier": _TIERS.get(replica.tier),
                "state": state,
                "down_since_ms": since_ms,
            }
        )
    record = {
        "key": key,
        "size": found.size_bytes,
        "version": found.version,
        "pin": _PINS.get(found.pin),
        "tier": _TIERS.get(min((replica.tier for replica in found.replicas), default=0)),
        "replicas": replicas,
        "replicas_wanted": found.replicas_wanted,
        "created_ms": found.created_unix_ms,
        "ttl_left_ms": found.ttl_left_ms or None,
    }
    if as_json:
        print_json(record)
    else:
        _print_record(record)
    if all(replica["state"] == _DEAD for replica in replicas):
        sys.exit(Exit.UNAVAILABLE)


def _print_record(record: Mapping[str, Any]) -> None:
    ttl_ms, replicas = record["ttl_left_ms"], record["replicas"]
    print_fields(
        {
            "key": record["key"],
            "size": f"{format_size(record['size'])} ({record['size']:,} bytes)",
            "version": record["version"],
            "pin": record["pin"] or "none",
            "expires": "never" if ttl_ms is None else f"in {format_duration(ttl_ms)}",
            "put": format_time(record["created_ms"]),
            "replicas": f"{len(replicas)} ({record['replicas_wanted']} wanted)",
        }
    )
    click.echo()
    print_table(
        ["node", "tier", "state"],
        [
            [
                one["node_id"],
                one["tier"] or "-",
                _down(one["down_since_ms"]) if one["state"] == _DEAD else one["state"],
            ]
            for one in replicas
        ],
    )


@click.command(epilog="Example: kvstore explain greeting --json")
@click.argument("key")
@json_option
@target_options
@reports_errors
def explain(key: str, as_json: bool, **options: Any) -> None:
    """Show where KEY is or was: per node, when it was put, read and lost, and why.

    `near` is how near the node is to this process, which reads from the nearest one.

    Exits with 1 when no node holds it, with 3 when only nodes that are down may.
    """
    where = target(options)
    with where.connect() as store:
        known = store.explain(key)
        reason = store.lookup([key]).reason
        near = {peer["node_id"]: peer["near"] for peer in store.peers()}
    states = _silent_nodes(where, known)
    for one in known:
        one["down_since_ms"] = states.get(one["node_id"], ("", None))[1]
        one["near"] = near.get(one["node_id"])
    if as_json:
        print_json([{**one, "reason": one["reason"].value} for one in known])
    else:
        print_table(
            ["node", "near", "tiers", "size", "put", "last used", "gone", "reason"],
            [
                [
                    one["node_id"],
                    one["near"] or "-",
                    " ".join(one["tiers"]) or "-",
                    one["size"] if one["tiers"] else "-",
                    format_time(one["put_ms"]),
                    format_time(one["used_ms"]),
                    format_time(one["gone_ms"]),
                    _why(one, states),
                ]
                for one in known
            ],
        )
    if any(one["tiers"] for one in known):
        return
    code, words = MISSES.get(reason, (Exit.MISS, ""))
    if code is Exit.UNAVAILABLE:
        click.echo(f"kvstore: {printable(key)}: {words}", err=True)
    sys.exit(code)


def _silent_nodes(where: Target, known: list[dict[str, Any]]) -> dict[str, tuple[str, int | None]]:
    """Ask the master about the nodes that did not answer, if there are any."""
    if all(one["reason"] is not MissReason.NodeDown for one in known):
        return {}
    from kvstore._proto import master_pb2

    try:
        with control(where) as (master, call):
            return _node_states(master.ListNodes(master_pb2.ListNodesRequest(), **call))
    except UnavailableError:
        return {}


def _why(one: Mapping[str, Any], states: Mapping[str, tuple[str, int | None]]) -> str:
    if one["tiers"]:
        return "-"
    if one["reason"] is not MissReason.NodeDown:
        return str(one["reason"].value)
    state, _ = states.get(one["node_id"], (_DEAD, None))
    return _down(one["down_since_ms"]) if state == _DEAD else f"{state}, but it does not answer"
