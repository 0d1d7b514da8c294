"""Commands on nodes: snapshot."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kvstore._proto import master_pb2
from kvstore.cli.control import control
from kvstore.cli.output import Exit, fail, print_json, reports_errors
from kvstore.cli.target import json_option, target, target_options
from kvstore.clock import pause_s
from kvstore.sizes import format_size

_POLL_S = 0.2


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
