"""Commands that describe the cluster: status, nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.control import control
from kvstore.cli.output import (
    format_duration,
    print_fields,
    print_json,
    print_table,
    reports_errors,
    warn,
)
from kvstore.cli.target import Target, json_option, target, target_options
from kvstore.cli.web import ask_console
from kvstore.errors import (
    InvalidArgumentError,
    KvstoreError,
    PermissionDeniedError,
    UnsupportedError,
)
from kvstore.sizes import format_size, parse_size

if TYPE_CHECKING:
    from kvstore._proto import types_pb2


def state_name(node: types_pb2.NodeInfo) -> str:
    """Return the name of a node's state, such as "alive"."""
    from kvstore._proto import types_pb2

    if node.restarting_ms:
        return "restarting"
    return types_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower()


def node_as_dict(node: types_pb2.NodeInfo) -> dict[str, Any]:
    """Return what `kvstore nodes --json` prints for one node."""
    return {
        "node_id": node.node_id,
        "state": state_name(node),
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


@click.command(epilog="Example: kvstore status --window-s 3600 --bytes-per-token 160kb")
@click.option(
    "--window-s",
    type=click.IntRange(1, 6 * 3600),
    default=600,
    show_default=True,
    help="What it did in this time.",
)
@click.option(
    "--bytes-per-token",
    metavar="SIZE",
    help="Bytes of one token in the store, over all ranks (default: the master's).",
)
@click.option(
    "--prefill-tokens-per-s",
    type=click.FloatRange(0, 1e9),
    help="How fast one engine computes a prompt (default: the master's).",
)
@json_option
@target_options
@reports_errors
def status(
    window_s: int,
    bytes_per_token: str | None,
    prefill_tokens_per_s: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the cluster's state, and what it did lately.

    Hit ratio: of the keys that were read or looked up in vain, those that were read. Saved: what
    was read in place of being computed. Wasted: what the store once had, and engines computed
    again (estimated from the mean size of an object). --json names the most read prefixes, too.
    """
    from google.protobuf.json_format import MessageToDict

    from kvstore._proto import master_pb2

    rates = _rates(bytes_per_token, prefill_tokens_per_s)
    where = target(options)
    with control(where) as (master, call):
        reply = master.Status(master_pb2.StatusRequest(), **call)
    lately = _lately(where, reply.http_endpoint, window_s, rates)
    fields = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # The JSON mapping of protobuf prints 64-bit integers as strings; users and jq expect numbers.
    for name in ("uptime_ms", "objects", "capacity_bytes", "used_bytes"):
        fields[name] = getattr(reply, name)
    for name in ("under_replicated_objects", "pending_operations"):
        fields[name] = getattr(reply, name)
    if as_json:
        prefixes = _hot_prefixes(where, reply.http_endpoint) if lately is not None else None
        print_json({**fields, "lately": lately, "hot_prefixes": prefixes})
        return
    fields["standbys"] = ", ".join(one.block_endpoint or one.host for one in reply.standbys)
    fields["capacity_bytes"] = format_size(reply.capacity_bytes)
    fields["used_bytes"] = format_size(reply.used_bytes)
    print_fields(fields)
    if lately is not None:
        click.echo()
        print_fields(_in_words(lately))


def _rates(bytes_per_token: str | None, prefill_tokens_per_s: float | None) -> dict[str, float]:
    """Check what a token is worth; only what was given."""
    given: dict[str, float] = {}
    if bytes_per_token is not None:
        try:
            given["bytes_per_token"] = parse_size(bytes_per_token)
        except ValueError as error:
            raise InvalidArgumentError(f"--bytes-per-token: {error}") from None
    if prefill_tokens_per_s is not None:
        given["prefill_tokens_per_s"] = prefill_tokens_per_s
    return given


def _lately(
    where: Target, endpoint: str, window_s: int, rates: dict[str, float]
) -> dict[str, Any] | None:
    """Ask the master what the cluster did; None, and a warning, if it does not tell."""
    try:
        found = ask_console(where, endpoint, "overview", window_ms=1000 * window_s)
    except KvstoreError as error:
        warn(f"what the cluster did is not known: {error}")
        return None
    from kvstore.master.savings import Rates, in_tokens

    savings = found["savings"]
    known = {name: savings[name] or 0.0 for name in ("bytes_per_token", "prefill_tokens_per_s")}
    savings = in_tokens(
        Rates(**{**known, **rates}), savings["saved_bytes"], savings["wasted_bytes"]
    )
    return {"window": found["window"], **found["traffic"], "savings": savings}


def _hot_prefixes(where: Target, endpoint: str) -> list[dict[str, Any]] | None:
    """Ask which chains of keys are read most; None for who may not know, or an older master."""
    try:
        found: list[dict[str, Any]] = ask_console(where, endpoint, "prefixes")["prefixes"]
    except (PermissionDeniedError, UnsupportedError):
        return None
    except KvstoreError as error:
        warn(f"hot prefixes are not known: {error}")
        return None
    return found


def _in_words(lately: dict[str, Any]) -> dict[str, str]:
    """Say what the cluster did, for reading."""
    missed, gone = lately["misses"], lately["evictions"]
    ratio = lately["hit_ratio"]
    return {
        "in the last": format_duration(lately["window"]["length_ms"]),
        "hit ratio": "nothing was wanted"
        if ratio is None
        else f"{100 * ratio:.1f} % ({lately['hits']:,} read, {sum(missed.values()):,} not found)",
        "misses": largest_first(missed),
        "read": f"{format_rate(lately['read_bytes_per_s'])}, {format_size(lately['read_bytes'])}",
        "written": f"{format_rate(lately['put_bytes_per_s'])}, {format_size(lately['put_bytes'])}",
        "evictions": largest_first(gone),
        "saved": saving_in_words(lately["savings"], "saved"),
        "wasted": saving_in_words(lately["savings"], "wasted"),
    }


def largest_first(counts: dict[str, int]) -> str:
    """Return counts by name, without zeros: "evicted 1,200, absent 3"."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered if count) or "none"


def saving_in_words(savings: dict[str, float | None], which: str) -> str:
    """Return the bytes that were saved or wasted, and the tokens and time if they are known."""
    parts = [format_size(round(savings[f"{which}_bytes"] or 0))]
    tokens, seconds = savings[f"{which}_tokens"], savings[f"{which}_s"]
    if tokens is not None:
        parts.append(f"{tokens:,.0f} tokens")
    if seconds is not None:
        parts.append(f"{format_duration(round(1000 * seconds))} of prefill")
    return ", ".join(parts)


def format_rate(bytes_per_s: float) -> str:
    """Return bytes a second in decimal units, such as "1.2 GB/s"."""
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if bytes_per_s < 1000 or unit == "GB/s":
            return f"{bytes_per_s:.0f} {unit}" if unit == "B/s" else f"{bytes_per_s:.2f} {unit}"
        bytes_per_s /= 1000
    raise AssertionError("the loop returns at GB/s")


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
                state_name(node),
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
