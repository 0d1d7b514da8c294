"""Commands for nodes that leave the cluster: drain, undrain, forget."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kvstore import clock
from kvstore._proto import master_pb2, types_pb2
from kvstore.cli.control import control
from kvstore.cli.output import Exit, fail, print_json, reports_errors
from kvstore.cli.overview import node_as_dict
from kvstore.cli.target import json_option, target, target_options
from kvstore.sizes import format_size

_POLL_S = 0.2
_TELL_MS = 5000
_STALLED_MS = 30_000
_REPORTS_MS = 10_000

_Ask: TypeAlias = "Callable[..., master_pb2.DrainReply]"


class _Reporter:
    """Says on standard error how a drain advances; on a terminal with a bar."""

    def __init__(self, node_id: str, reply: master_pb2.DrainReply, bar: Progress | None) -> None:
        self._node_id = node_id
        self._total = self._left = reply.left_objects
        self._bar = bar
        self._task = bar.add_task("drain", total=self._total, left=self._left) if bar else None
        self._waits_for = ""
        self._told_ms = self._moved_ms = clock.monotonic_ms()

    def update(self, reply: master_pb2.DrainReply) -> None:
        """Show the state of the drain."""
        now_ms = clock.monotonic_ms()
        left = reply.left_objects
        if left < self._left:
            self._moved_ms = now_ms
        self._left = left
        if self._bar is not None and self._task is not None:
            done = max(0, self._total - left)
            self._bar.update(self._task, completed=done, left=f"{left:,}")
        why = reply.waits_for
        if not why and now_ms - self._moved_ms >= _STALLED_MS:
            stalled_s = (now_ms - self._moved_ms) // 1000
            why = f"no object was moved for {stalled_s} s: see kvstore_cluster_copies_failed_total"
        due = now_ms - self._told_ms >= _TELL_MS
        if (due and (why or self._bar is None)) or (why and why != self._waits_for and not due):
            self._told_ms, self._waits_for = now_ms, why
            self._tell(f"{left:,} objects left{f'; {why}' if why else ''}")

    def _tell(self, text: str) -> None:
        line = f"{self._node_id}: {text}"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=True)


@dataclass(frozen=True)
class _Loss:
    """Objects that a drain costs."""

    objects: int
    size: int

    def __str__(self) -> str:
        return f"{self.objects:,} objects ({format_size(self.size)})"

    def as_dict(self) -> dict[str, int]:
        return {"objects": self.objects, "bytes": self.size}


def _expected(reply: master_pb2.DrainReply) -> _Loss:
    """Return what the other nodes have no room for; objects are taken for equally large."""
    short = reply.left_bytes - reply.room_bytes
    if short <= 0:
        return _Loss(0, 0)
    return _Loss(math.ceil(reply.left_objects * short / reply.left_bytes), short)


def _foretell(node_id: str, reply: master_pb2.DrainReply) -> str:
    """Say what a drain moves, and what that costs."""
    alone = _Loss(reply.left_objects, reply.left_bytes)
    room = format_size(reply.room_bytes)
    said = f"{node_id}: {alone} lie on it alone, and the other nodes have {room} free"
    loss = _expected(reply)
    if not loss.size:
        return f"{said}: nothing has to be lost"
    return f"{said}: about {loss} will be lost, as the others evict what was not used for longest"


def _evicted(first: master_pb2.DrainReply, last: master_pb2.DrainReply) -> _Loss:
    """Return what the other nodes dropped meanwhile; one that has restarted counts anew."""
    return _Loss(
        max(0, last.evicted_objects - first.evicted_objects),
        max(0, last.evicted_bytes - first.evicted_bytes),
    )


@click.command(epilog="Example: kvstore drain node-a && systemctl stop kvstore-node")
@click.argument("node_id")
@click.option("--cancel", is_flag=True, help="As kvstore undrain.")
@click.option("--dry-run", is_flag=True, help="Say what it would move and lose; change nothing.")
@click.option("--no-wait", is_flag=True, help="Return at once; copying continues.")
@click.option(
    "--wait-s", default=600, show_default=True, help="Stop waiting after this many seconds."
)
@json_option
@target_options
@reports_errors
def drain(
    node_id: str,
    cancel: bool,
    dry_run: bool,
    no_wait: bool,
    wait_s: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Copy a node's objects to other nodes while it continues to serve reads.

    It begins with what the others have no room for: they then evict what was not used for longest.
    Progress is reported every few seconds, with the reason when nothing can be moved; at the end,
    what was evicted meanwhile, by other writers, too. Exit code 5 says that objects are left, which
    are lost when the node stops; it goes on draining until then.
    """
    with control(target(options)) as (master, call):

        def ask(**more: bool) -> master_pb2.DrainReply:
            return master.Drain(master_pb2.DrainRequest(node_id=node_id, **more), **call)

        if cancel:
            _say_undrained(ask(cancel=True), as_json)
            return
        # A master of an older version does not know `look`, and must not begin a drain then.
        before = ask(look=True, cancel=dry_run)
        if dry_run:
            if not before.looked:
                fail("this version of the master cannot say it: upgrade it first", Exit.FAILED)
            _say_dry(node_id, before, as_json)
            return
        if not before.drained and not as_json:
            click.echo(_foretell(node_id, before), err=True)
        reply = ask()
        if not (no_wait or reply.drained):
            reply = _watch(node_id, reply, wait_s, ask)
        if reply.drained and _expected(before).size:
            reply = _last_reports(master, call, reply, ask)
    _say(node_id, before, reply, as_json, no_wait)


def _watch(
    node_id: str, reply: master_pb2.DrainReply, wait_s: int, ask: _Ask
) -> master_pb2.DrainReply:
    """Wait until a drain is over, and show how it advances."""
    console = Console(stderr=True)
    columns = (TextColumn("drain"), BarColumn(), TextColumn("{task.fields[left]} left"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        reporter = _Reporter(node_id, reply, bar if console.is_terminal else None)
        end_ms = clock.monotonic_ms() + wait_s * 1000
        while not (reply.drained or _is_dead(reply.node)):
            reporter.update(reply)
            if clock.monotonic_ms() >= end_ms:
                break
            clock.pause_s(_POLL_S)
            reply = ask()
    return reply


def _last_reports(
    master: Any, call: dict[str, Any], reply: master_pb2.DrainReply, ask: _Ask
) -> master_pb2.DrainReply:
    """Wait for a heartbeat of every other living node: what they evicted comes with it."""
    began_ms = clock.monotonic_ms()
    while clock.monotonic_ms() - began_ms < _REPORTS_MS:
        clock.pause_s(_POLL_S)
        nodes = master.ListNodes(master_pb2.ListNodesRequest(), **call).nodes
        passed_ms = clock.monotonic_ms() - began_ms
        alive = [n for n in nodes if n.state == types_pb2.NODE_STATE_ALIVE]
        if all(n.last_heartbeat_age_ms < passed_ms for n in alive):
            break
    return ask()


def _say(
    node_id: str,
    before: master_pb2.DrainReply,
    reply: master_pb2.DrainReply,
    as_json: bool,
    no_wait: bool,
) -> None:
    left = _Loss(reply.left_objects, reply.left_bytes)
    evicted = _evicted(before, reply)
    cost = f"; the other nodes evicted {evicted} meanwhile" if evicted.objects else ""
    if as_json:
        print_json(
            {
                "node": node_as_dict(reply.node),
                "drained": reply.drained,
                "waits_for": reply.waits_for,
                "expected_loss": _expected(before).as_dict(),
                "left": left.as_dict(),
                "evicted_meanwhile": evicted.as_dict(),
            }
        )
    elif reply.drained:
        click.echo(f"{node_id}: drained{cost}")
    elif no_wait:
        click.echo(f"{node_id}: {left.objects:,} objects left")
    if no_wait or reply.drained:
        return
    if as_json:
        sys.exit(Exit.FAILED)
    why = f"; {reply.waits_for}" if reply.waits_for else ""
    lost = f"{left} left, lost if it is stopped now" if left.objects else "0 objects left"
    fail(f"{node_id}: {lost}{why}{cost}", Exit.FAILED)


def _say_dry(node_id: str, before: master_pb2.DrainReply, as_json: bool) -> None:
    if not as_json:
        click.echo(_foretell(node_id, before))
        return
    print_json(
        {
            "node": node_as_dict(before.node),
            "room_bytes": before.room_bytes,
            "expected_loss": _expected(before).as_dict(),
            "left": _Loss(before.left_objects, before.left_bytes).as_dict(),
        }
    )


def _say_undrained(reply: master_pb2.DrainReply, as_json: bool) -> None:
    if as_json:
        print_json({"node": node_as_dict(reply.node), "drained": False})
    else:
        click.echo(f"{reply.node.node_id} accepts writes again")


def _is_dead(node: types_pb2.NodeInfo) -> bool:
    return node.state == types_pb2.NODE_STATE_DEAD


@click.command(epilog="Example: kvstore undrain node-a")
@click.argument("node_id")
@json_option
@target_options
@reports_errors
def undrain(node_id: str, as_json: bool, **options: Any) -> None:
    """End a drain: the node accepts writes again. What was copied stays copied."""
    request = master_pb2.DrainRequest(node_id=node_id, cancel=True)
    with control(target(options)) as (master, call):
        reply = master.Drain(request, **call)
    _say_undrained(reply, as_json)


@click.command(epilog="Example: kvstore forget node-a")
@click.argument("node_id")
@json_option
@target_options
@reports_errors
def forget(node_id: str, as_json: bool, **options: Any) -> None:
    """Drop a dead node: its objects, and the removes and flushes that wait for it.

    If it returns with its memory, it is a new node to the cluster, and what may have been removed
    meanwhile is discarded. A living node is refused (exit code 4): stop it first.
    """
    request = master_pb2.ForgetRequest(node_id=node_id)
    with control(target(options)) as (master, call):
        reply = master.Forget(request, **call)
    if as_json:
        print_json({"node_id": node_id, "forgotten": reply.forgotten})
    elif reply.forgotten:
        click.echo(f"{node_id} forgotten, with {reply.node.objects:,} objects")
    if not reply.forgotten:
        age_s = reply.node.last_heartbeat_age_ms / 1000
        fail(
            f"{node_id} is {node_as_dict(reply.node)['state']} (last heartbeat {age_s:.1f} s ago): "
            "stop it before it is forgotten",
            Exit.REFUSED,
        )
