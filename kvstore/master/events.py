"""What happened in the cluster lately: a bounded list of events to read.

Events are found by comparing the cluster with what it was a second ago, so that whatever changes it
needs to know nothing of them. What goes on for long, such as evictions, is one event that counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from kvstore.master.history import evictions
from kvstore.master.model import Cluster, Node, NodeState

KEPT: Final = 500
ONGOING_MS: Final = 600_000
"""What repeats within this time is one event."""
MASTER: Final = ""
"""In place of a node id."""


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    number: int
    unix_ms: int
    kind: str
    node_id: str
    """Empty: the master, or the cluster."""
    text: str
    is_warning: bool
    count: int = 1
    last_unix_ms: int = 0


@dataclass(frozen=True)
class Happened:
    """An event without its number and time."""

    kind: str
    node_id: str
    text: str
    is_warning: bool = False


class Events:
    """The list; for one thread at a time."""

    def __init__(self) -> None:
        """Start empty."""
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._number = 0
        self._ongoing: dict[str, Event] = {}
        self._refusal = ""

    def latest(self) -> list[Event]:
        """Return the events, the newest first."""
        return list(self._events)[::-1]

    def add(self, happened: Happened, unix_ms: int, count: int = 1) -> Event:
        """Add an event, and return it."""
        self._number += 1
        event = Event(
            self._number,
            unix_ms,
            happened.kind,
            happened.node_id,
            happened.text,
            happened.is_warning,
            count,
            unix_ms,
        )
        self._events.append(event)
        return event

    def compare(self, before: Cluster, after: Cluster, unix_ms: int) -> None:
        """Add what has changed between two states of the cluster."""
        for happened in between(before, after):
            self.add(happened, unix_ms)

    def counted(self, counts: Mapping[str, int], unix_ms: int) -> None:
        """Add evictions and wrong checksums.

        Args:
            counts: what has happened since the last call, as History.observe returns it.
            unix_ms: the wall clock.
        """
        for cause, count in evictions(counts).items():
            if count:
                self._go_on(f"evicted: {cause}", _evicted(cause), count, unix_ms)
        if wrong := counts.get("wrong_checksums", 0):
            text = "objects whose bytes were not those that were put; they were read as misses"
            self._go_on("checksum", Happened("checksum", MASTER, text, True), wrong, unix_ms)

    def refused(self, why: str, unix_ms: int) -> None:
        """Add a refusal of the master's own configuration file.

        Args:
            why: it is not in effect; empty: it is.
            unix_ms: the wall clock.
        """
        if why != self._refusal:
            self._refusal = why
            self.add(_config(MASTER, why), unix_ms)

    def _go_on(self, name: str, happened: Happened, count: int, unix_ms: int) -> None:
        """Count further in the event of this name, or begin one."""
        known = self._ongoing.get(name)
        if known is None or unix_ms - known.unix_ms >= ONGOING_MS or known not in self._events:
            self._ongoing[name] = self.add(happened, unix_ms, count)
            return
        longer = replace(known, count=known.count + count, last_unix_ms=unix_ms)
        self._events[self._events.index(known)] = longer
        self._ongoing[name] = longer


def between(before: Cluster, after: Cluster) -> Iterator[Happened]:
    """Tell what has changed between two states of the cluster."""
    if before.rebuilding and not after.rebuilding:
        yield Happened("rebuilt", MASTER, "the directory is rebuilt: known nodes have announced")
    for node_id in before.nodes:
        if node_id not in after.nodes:
            yield Happened("forgotten", node_id, "forgotten, with what it held")
    for node_id, node in after.nodes.items():
        old = before.nodes.get(node_id)
        if old is not node:
            yield from _of_node(old, node)


def _of_node(old: Node | None, node: Node) -> Iterator[Happened]:
    name = node.node_id
    if old is None:
        yield Happened("joined", name, f"joined, {_where(node)}")
        return
    if node.session_id and old.incarnation != node.incarnation:
        yield Happened("restarted", name, f"another process of the node runs, {_where(node)}")
    elif old.session_id == 0 != node.session_id:
        yield Happened("returned", name, f"is back, {_where(node)}")
    if old.state is not node.state:
        yield from _of_end(old, node)
    if node.draining is not old.draining:
        yield (
            Happened("drain", name, "is draining: its objects are copied to other nodes")
            if node.draining
            else Happened("undrain", name, "takes writes again")
        )
    if node.problem and node.problem != old.problem:
        yield Happened("unreachable", name, f"is not told to clients: {node.problem}", True)
    yield from _of_health(old, node)


def _of_end(old: Node, node: Node) -> Iterator[Happened]:
    name = node.node_id
    if node.state is NodeState.RESTARTING:
        yield Happened("restarts", name, "stops to be restarted; it is awaited with its objects")
    elif node.state is NodeState.DEAD and old.state is NodeState.RESTARTING:
        yield Happened("died", name, "is dead: it did not return from its restart in time", True)
    elif node.state is NodeState.DEAD and node.left:
        yield Happened("left", name, "has left the cluster; its objects are misses")
    elif node.state is NodeState.DEAD:
        yield Happened("died", name, "is dead: no heartbeat for too long", True)


def _of_health(old: Node, node: Node) -> Iterator[Happened]:
    name, was, now = node.node_id, old.health, node.health
    if node.session_id == 0 or not now.software_version:
        return  # it has not reported yet
    if now.config_refused != was.config_refused:
        yield _config(name, now.config_refused)
    for lack in now.lacks:
        if lack not in was.lacks:
            yield Happened("degraded", name, lack, True)
    if was.lacks and not now.lacks and was.software_version:
        yield Happened("whole", name, "lacks nothing any more")


def _config(node_id: str, why: str) -> Happened:
    if not why:
        return Happened("config_accepted", node_id, "its configuration file is in effect again")
    return Happened("config_refused", node_id, f"keeps its configuration: {why}", True)


def _where(node: Node) -> str:
    version = node.health.software_version
    at = node.endpoints.tcp or node.endpoints.unix or "without an address yet"
    return f"{at}, version {version}" if version else at


def _evicted(cause: str) -> Happened:
    texts = {
        "memory": "objects evicted for room in memory",
        "index": "objects evicted for an entry of the index",
        "nvme": "objects dropped from NVMe for room",
        "expired": "objects expired",
        "unknown": "objects evicted by nodes of an older version",
    }
    return Happened("evicted", MASTER, texts[cause])
