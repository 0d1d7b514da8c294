"""Decides what a node does after each answer of the master: pure, no I/O."""

from __future__ import annotations

from enum import Enum

from kvstore.errors import Status

BACKOFF_FIRST_MS = 100
BACKOFF_MAX_MS = 2000
_SMALL_CLUSTER_MS = 2000
"""Interval of heartbeats with a hundred nodes."""
LINK_LEAST_MS = 250
LINK_MOST_MS = 2000
LATE_MAX = 3
"""Calls without an answer in time, after which the master counts as unreachable."""


class Step(Enum):
    """Next step of the agent."""

    CONTINUE = "continue"
    """Send the next heartbeat when it is due."""
    REGISTER = "register"
    """The session has expired: register again at the same master."""
    FIND_MASTER = "find_master"
    """The master is unreachable: probe every configured address, with backoff."""
    GIVE_UP = "give_up"
    """Retrying cannot help: stop the process, so that an operator notices."""


# Another process runs under this node id; the node belongs to another cluster; a bad request.
_HOPELESS = frozenset({Status.AlreadyExists, Status.VersionMismatch, Status.InvalidArgument})
_REFUSED = frozenset({Status.Unauthenticated, Status.PermissionDenied})


def after_register(status: Status, served_before: bool) -> Step:
    """Decide after a registration (or the hello before it).

    Args:
        status: result of the call.
        served_before: this process already had a session. Its cache is then worth keeping: a
            refused token may be due to a master being reconfigured, and reads continue.
    """
    if status is Status.Ok:
        return Step.CONTINUE
    if status in _HOPELESS or (status in _REFUSED and not served_before):
        return Step.GIVE_UP
    return Step.FIND_MASTER


def after_heartbeat(status: Status, failures: int) -> Step:
    """Decide after a heartbeat.

    Args:
        status: its result.
        failures: consecutive ones, this one included. A master that did not answer in time may
            have a thousand nodes to hear: looking for it would be more work for it.
    """
    if status is Status.Ok or (status is Status.DeadlineExceeded and failures < LATE_MAX):
        return Step.CONTINUE
    if status is Status.NotFound:
        return Step.REGISTER
    return Step.FIND_MASTER


def heartbeat_wait_ms(interval_ms: int, failures: int, unlinked: int, jitter: float) -> int:
    """Compute the wait until the next heartbeat.

    Args:
        interval_ms: as the master said; in a large cluster half a minute.
        failures: consecutive ones; the next attempt must not come as late as that. In a small
            cluster it costs the next master little, and ends an outage sooner.
        unlinked: consecutive ones that were answered although there is no link: by a master that is
            about to end, perhaps. In a large cluster links take their time after a restart, and a
            thousand nodes that ask meanwhile would delay them further.
        jitter: random, 0 to 1; spreads nodes that joined at the same time.
    """
    if interval_ms <= _SMALL_CLUSTER_MS:
        failures = max(failures, unlinked)
    if failures:
        most_ms = min(BACKOFF_MAX_MS, max(1, interval_ms // 4))
        return backoff_ms(failures, jitter, most_ms, _first_ms(interval_ms))
    return interval_ms - int(interval_ms / 5 * jitter)


def found_wait_ms(interval_ms: int, jitter: float) -> int:
    """Compute the wait until the first heartbeat to a master that was found.

    Args:
        interval_ms: as the master before it said.
        jitter: random, 0 to 1; spreads nodes that looked for it at the same time.
    """
    return int(_first_ms(interval_ms) * jitter)


def _first_ms(interval_ms: int) -> int:
    """The fewer nodes there are, the less it costs a new master that they are quick."""
    return max(1, min(BACKOFF_FIRST_MS, interval_ms // 50))


def link_timeout_ms(interval_ms: int) -> int:
    """Compute how long a heartbeat's answer may take over the link; then it goes as a call.

    Both have to fit into the session's TTL, which is at least twice the interval.
    """
    return max(LINK_LEAST_MS, min(LINK_MOST_MS, interval_ms))


def backoff_ms(
    failures: int, jitter: float, most_ms: int = BACKOFF_MAX_MS, first_ms: int = BACKOFF_FIRST_MS
) -> int:
    """Compute the wait after a number of consecutive failures.

    Args:
        failures: 1 or more.
        jitter: random, 0 to 1; spreads nodes that lost the same master.
        most_ms: bound.
        first_ms: after the first failure.

    Returns:
        Milliseconds: doubling from `first_ms` to the bound, at most halved by jitter.
    """
    full = min(most_ms, first_ms << min(failures - 1, 16))
    return full // 2 + int(full / 2 * jitter)
