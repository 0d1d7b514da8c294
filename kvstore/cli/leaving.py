"""Commands for nodes that leave the cluster: drain, undrain, forget."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kvstore import clock
from kvstore._proto import master_pb2, types_pb2
from kvstore.cli.control import control
from kvstore.cli.output import Exit, fail, print_json, reports_errors
from kvstore.cli.overview import node_as_dict
from kvstore.cli.target import json_option, target, target_options

_POLL_S = 0.2
_TELL_MS = 5000
_STALLED_MS = 30_000


class _Reporter:
    """Says on standard error how a drain advances; on a terminal with a bar."""

    def __init__(self, node_id: str, reply: master_pb2.DrainReply, bar: Progress | None) -> None:
        self._node_id = node_id
        self._total = self._left = reply.node.drain_left_objects
        self._bar = bar
        self._task = bar.add_task("drain", total=self._total, left=self._left) if bar else None
        self._waits_for = ""
        self._told_ms = self._moved_ms = clock.monotonic_ms()

    def update(self, reply: master_pb2.DrainReply) -> None:
        """Show the state of the drain."""
        now_ms = clock.monotonic_ms()
        left = reply.node.drain_left_objects
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


@click.command(epilog="Example: kvstore drain node-a && systemctl stop kvstore-node")
@click.argument("node_id")
@click.option("--cancel", is_flag=True, help="As kvstore undrain.")
@click.option("--no-wait", is_flag=True, help="Return at once; copying continues.")
@click.option(
    "--wait-s", default=600, show_default=True, help="Stop waiting after this many seconds."
)
@json_option
@target_options
@reports_errors
def drain(
    node_id: str, cancel: bool, no_wait: bool, wait_s: int, as_json: bool, **options: Any
) -> None:
    """Copy a node's objects to other nodes while it continues to serve reads.

    Progress is reported every few seconds, with the reason when nothing can be moved. Exit code 5
    says that objects are left; the node then goes on draining.
    """
    request = master_pb2.DrainRequest(node_id=node_id, cancel=cancel)
    with control(target(options)) as (master, call):
        reply = master.Drain(request, **call)
        if not (cancel or no_wait or reply.drained):
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
                    reply = master.Drain(request, **call)
    left = reply.node.drain_left_objects
    if as_json:
        answer = {"node": node_as_dict(reply.node), "drained": reply.drained}
        print_json({**answer, "waits_for": reply.waits_for})
    elif cancel:
        click.echo(f"{node_id} accepts writes again")
    elif reply.drained or no_wait:
        click.echo(f"{node_id}: {'drained' if reply.drained else f'{left:,} objects left'}")
    if cancel or no_wait or reply.drained:
        return
    if as_json:
        sys.exit(Exit.FAILED)
    why = f"; {reply.waits_for}" if reply.waits_for else ""
    fail(f"{node_id}: {left:,} objects left{why}", Exit.FAILED)


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
    if as_json:
        print_json({"node": node_as_dict(reply.node), "drained": False})
    else:
        click.echo(f"{node_id} accepts writes again")


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
