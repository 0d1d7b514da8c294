"""What a node does after each answer of the master: pure decisions, no I/O."""

from __future__ import annotations

from enum import Enum

from kvstore.errors import Status

BACKOFF_FIRST_MS = 100
BACKOFF_MAX_MS = 2000


class Step(Enum):
    """What to do next."""

    CONTINUE = "continue"
    """Heartbeat again when it is due."""
    REGISTER = "register"
    """The session is over: open another one on the same master."""
    FIND_MASTER = "find_master"
    """Nobody answers there: say hello to every configured address again, with backoff."""
    GIVE_UP = "give_up"
    """Trying again cannot help: end the process, so that somebody looks."""


# Another process runs under this node id; the node belongs to another cluster; a bad request.
_HOPELESS = frozenset({Status.AlreadyExists, Status.VersionMismatch, Status.InvalidArgument})
_REFUSED = frozenset({Status.Unauthenticated, Status.PermissionDenied})


def after_register(status: Status, served_before: bool) -> Step:
    """Decide after a registration (or the hello before it).

    Args:
        status: how it ended.
        served_before: this process already had a session. Then its cache is worth keeping: a
            refused token may be a master that is being reconfigured, and reads go on meanwhile.
    """
    if status is Status.Ok:
        return Step.CONTINUE
    if status in _HOPELESS or (status in _REFUSED and not served_before):
        return Step.GIVE_UP
    return Step.FIND_MASTER


def after_heartbeat(status: Status) -> Step:
    """Decide after a heartbeat."""
    if status is Status.Ok:
        return Step.CONTINUE
    if status is Status.NotFound:
        return Step.REGISTER
    return Step.FIND_MASTER


def backoff_ms(failures: int, jitter: float) -> int:
    """Wait after so many failures in a row.

    Args:
        failures: 1 or more.
        jitter: random, 0 to 1; spreads nodes that lost the same master.

    Returns:
        Milliseconds: doubling from BACKOFF_FIRST_MS to BACKOFF_MAX_MS, halved at most by jitter.
    """
    full = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << min(failures - 1, 16))
    return full // 2 + int(full / 2 * jitter)
