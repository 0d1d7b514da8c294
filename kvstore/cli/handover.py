"""The command handover."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from kvstore import clock
from kvstore._proto import master_pb2
from kvstore.cli.control import control
from kvstore.cli.output import Exit, fail, print_json, reports_errors
from kvstore.cli.target import Target, json_option, target, target_options
from kvstore.errors import KvstoreError

_POLL_S = 0.02


@click.command(epilog="Example: kvstore handover --master 10.0.0.1,10.0.0.2")
@click.option(
    "--wait-s", default=30, show_default=True, help="How long to wait until another master serves."
)
@json_option
@target_options
@reports_errors
def handover(wait_s: int, as_json: bool, **options: Any) -> None:
    """End the active master while another one stands by; wait until that serves.

    Before an upgrade or the maintenance of its machine. Puts wait meanwhile, a fraction of a second
    mostly, and reads whose placement is known go on. Refused without a standby (exit code 3). Name
    all masters with --master, or the new one is not found.
    """
    where = target(options)
    began_ms = clock.monotonic_ms()
    with control(where) as (master, call):
        reply = master.Handover(master_pb2.HandoverRequest(), **call)
    found = _wait(where, reply.master_epoch, began_ms + wait_s * 1000)
    took_s = (clock.monotonic_ms() - began_ms) / 1000
    if found is None:
        names = ", ".join(one.block_endpoint or one.host for one in reply.standbys)
        fail(f"no other master serves after {wait_s} s; there stood by: {names}", Exit.FAILED)
    if as_json:
        print_json(
            {
                "active": found.block_endpoint,
                "master_epoch": found.master_epoch,
                "seconds": round(took_s, 3),
                "rebuilding": found.rebuilding,
            }
        )
    else:
        state = "serves, and waits for its nodes" if found.rebuilding else "serves"
        click.echo(f"{found.block_endpoint} {state} after {took_s:.2f} s")


def _wait(where: Target, ended_epoch: int, until_ms: int) -> master_pb2.StatusReply | None:
    """Wait for a master with a later epoch that knows its nodes; None if there is none in time."""
    latest: master_pb2.StatusReply | None = None
    while clock.monotonic_ms() < until_ms:
        with suppress(KvstoreError), control(where) as (master, call):
            status = master.Status(master_pb2.StatusRequest(), **call)
            if status.master_epoch > ended_epoch:
                latest = status
                if not status.rebuilding:
                    break
        clock.pause_s(_POLL_S)
    return latest
