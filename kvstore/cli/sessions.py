"""The command sessions: who is connected to master and nodes, and how to disconnect them."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import click

from kvstore.cli.control import control
from kvstore.cli.output import (
    Exit,
    fail,
    format_duration,
    print_json,
    print_table,
    reports_errors,
    warn,
)
from kvstore.cli.target import Target, json_option, target, target_options
from kvstore.cli.web import ask
from kvstore.errors import KvstoreError
from kvstore.proofs import prove, server_name
from kvstore.security import load_identity

_MASTER = "master"
_THREADS = 16


@click.command(epilog="Example: kvstore sessions --end engine-a")
@click.option(
    "--end",
    "ended",
    metavar="PRINCIPAL|ID",
    help="End the sessions of a principal, or the one with this id (WHERE:NUMBER).",
)
@json_option
@target_options
@reports_errors
def sessions(ended: str | None, as_json: bool, **options: Any) -> None:
    """List the sessions of master and nodes, and the gRPC calls in progress.

    Whoever has a valid token may connect again: to keep somebody out, change the token file, which
    ends the sessions, too. Needs an operator of every tenant.
    """
    where = target(options)
    servers = _servers(where)
    if ended is None:
        _list(where, servers, as_json)
    else:
        _end(where, servers, ended, as_json)


class Server(NamedTuple):
    """Whom to ask."""

    name: str
    endpoint: str
    """Of its HTTP port."""
    proven_to: str
    """Its name in proofs."""


def _servers(where: Target) -> list[Server]:
    """Return the master and the nodes that serve."""
    from kvstore._proto import master_pb2, types_pb2

    with control(where) as (master, call):
        status = master.Status(master_pb2.StatusRequest(), **call)
        nodes = master.ListNodes(master_pb2.ListNodesRequest(), **call).nodes
    found = [Server(_MASTER, status.http_endpoint, server_name(status.cluster_id))]
    for node in nodes:
        if node.state != types_pb2.NODE_STATE_DEAD and node.endpoints.http:
            name = f"node:{node.node_id}" if node.node_id == _MASTER else node.node_id
            proven_to = server_name(status.cluster_id, node.node_id)
            found.append(Server(name, node.endpoints.http, proven_to))
    return found


def _ask(where: Target, method: str, query: str, server: Server) -> Any:
    """Make a request at /sessions; an error is returned."""
    target = f"/sessions{query}"
    proof = ""
    if where.token_file:
        identity = load_identity(where.token_file)
        proof = prove(identity, server.proven_to, method, target)
    try:
        return ask(
            server.name,
            f"{server.endpoint}{target}",
            method=method,
            authorization=proof,
            timeout_ms=where.timeout_ms,
            tls=where.tls,
        )
    except KvstoreError as error:
        return error


def _ask_all(
    where: Target, servers: Sequence[Server], method: str, query: str
) -> tuple[dict[str, Any], list[KvstoreError]]:
    """Ask servers at once: answers by server, and the errors. If all fail the first is raised."""
    with ThreadPoolExecutor(_THREADS) as threads:
        answers = list(threads.map(partial(_ask, where, method, query), servers))
    errors = [one for one in answers if isinstance(one, KvstoreError)]
    if len(errors) == len(answers):
        raise errors[0]
    told = zip(servers, answers, strict=True)
    return {server.name: one for server, one in told if not isinstance(one, KvstoreError)}, errors


def _list(where: Target, servers: Sequence[Server], as_json: bool) -> None:
    answers, errors = _ask_all(where, servers, "GET", "")
    rows = [
        {**one, "id": f"{name}:{one['id']}", "server": name}
        for name, answer in answers.items()
        for one in answer["sessions"]
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ["id", "kind", "principal", "role", "tenant", "client", "peer", "for", "in progress"],
            [
                [
                    *(one[name] for name in ("id", "kind", "principal", "role", "tenant")),
                    one["client"],
                    one["peer"],
                    format_duration(one["age_ms"]),
                    one["in_progress"],
                ]
                for one in rows
            ],
        )
    _complain(errors)


def _end(where: Target, servers: Sequence[Server], ended: str, as_json: bool) -> None:
    name, colon, number = ended.rpartition(":")  # no principal's name has a colon
    chosen = [server for server in servers if server.name == name] if colon else servers
    if not chosen:
        fail(f"there is no server {name!r}: the id is WHERE:NUMBER, as in the list", Exit.MISS)
    choice = {"id": number} if colon else {"principal": ended}
    answers, errors = _ask_all(where, chosen, "DELETE", "?" + urllib.parse.urlencode(choice))
    count = sum(int(answer["ended"]) for answer in answers.values())
    if as_json:
        print_json({"ended": {name: answer["ended"] for name, answer in answers.items()}})
    else:
        click.echo(f"{count} ended")
    _complain(errors)
    if not count:
        fail(f"no session {ended!r}", Exit.MISS)


def _complain(errors: Sequence[KvstoreError]) -> None:
    for error in errors:
        warn(str(error))
    if errors:
        fail(f"{len(errors)} of the servers did not answer", Exit.UNAVAILABLE)
