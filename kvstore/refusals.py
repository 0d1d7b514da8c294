"""Refused peers of a server's block port, in its log and its audit log.

The native side counts them by status and host, so that a flood costs a line a minute and no more.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, TypedDict

from kvstore.audit import Record
from kvstore.errors import Status
from kvstore.logging import EventLogger, RecurringByKey

_POLL_S = 1.0
_NO_RIGHT = (Status.Unauthenticated, Status.PermissionDenied)


class Refusal(TypedDict):
    """Peers of one host that were refused, or whose connections ended with an error."""

    status: int
    host: str
    """Empty: of many hosts."""
    principal: str
    """That they are, or claim to be."""
    reason: str
    count: int


class RefusingCore(Protocol):
    """A native server: NodeCoreApi, MasterCoreApi."""

    def take_refusals(self) -> list[Refusal]:
        """Return the refusals since the last call."""


async def report(core: RefusingCore, log: EventLogger, record: Record) -> None:
    """Log refused peers until cancelled: each status and host at once, then once a minute.

    Args:
        core: that refuses them.
        log: of the server.
        record: notes in the audit log who had no right to what it asked for.
    """
    known = RecurringByKey(log, "connection_refused")
    while True:
        for refusal in core.take_refusals():
            if refusal["status"] in _NO_RIGHT:
                who = refusal["principal"]
                record(
                    "Refused",
                    principal=who,
                    peer=refusal["host"],
                    via="block",
                    outcome=Status(refusal["status"]),
                    arguments={"reason": refusal["reason"].removeprefix(f"{who}: ")},
                    repeats=True,
                )
            known.of((refusal["status"], refusal["host"])).warn(
                status=Status(refusal["status"]).name,
                host=refusal["host"] or "several",
                reason=refusal["reason"],
                count=refusal["count"],
            )
        await asyncio.sleep(_POLL_S)
