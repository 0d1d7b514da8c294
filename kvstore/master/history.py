"""What the cluster did over the last hours: a ring of samples in bounded memory.

Nodes report counts since their processes started. Their increases are added up here, so that a
restarted node neither takes away what it did before nor does it twice. What a node did between its
last heartbeat and its end is not counted. Of a process that is older than this master, what it does
from its first report on counts. Nothing is kept over a restart of the master.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kvstore.activity import Labels
from kvstore.errors import MissReason
from kvstore.master.model import Cluster, Node

INTERVAL_MS: Final = 10_000
KEPT_MS: Final = 6 * 3600 * 1000
CAUSES: Final = ("memory", "index", "nvme", "expired", "unknown")
"""Why objects went; unknown: evictions of a node whose version does not tell."""
REASONS: Final = tuple(reason.value for reason in MissReason if reason is not MissReason.None_)

# What nodes count, by column. Their "hits" over sockets include those by UCX.
_OF_NODES: Final[Mapping[str, tuple[str, Labels]]] = {
    "hits_shm": ("hits", ("client", "shm")),
    "hits_remote": ("hits", ("node", "socket")),
    "read_shm": ("bytes", ("get", "shm")),
    "read_socket": ("bytes", ("get", "socket")),
    "read_ucx": ("bytes", ("get", "ucx")),
    "put_shm": ("bytes", ("put", "shm")),
    "put_socket": ("bytes", ("put", "socket")),
    "put_ucx": ("bytes", ("put", "ucx")),
    "puts_ok": ("puts", ("ok",)),
    "puts_exists": ("puts", ("exists",)),
    "puts_failed": ("puts", ("failed",)),
    "evicted_bytes": ("evicted_bytes", ()),
    "wrong_checksums": ("misses", ("client", "checksum")),
    "evictions": ("evictions", ()),
    **{f"evicted_{cause}": ("evictions_by_cause", (cause,)) for cause in CAUSES[:-1]},
}
_PLACES: Final = {counted: place for place, counted in enumerate(_OF_NODES.values())}
_WIDTH: Final = len(_OF_NODES)
NODE_COLUMNS: Final = tuple(_OF_NODES)
# Counted by the master itself, and values at the end of a sample.
_MISSED: Final = tuple(f"missed_{reason}" for reason in REASONS)
GAUGES: Final = ("used_bytes", "capacity_bytes", "objects", "nodes")
COUNTERS: Final = (*NODE_COLUMNS, *_MISSED)

Row = tuple[int, int, "array[float]"]
"""Start (Unix time), length (both in ms), and values: COUNTERS, then GAUGES."""


@dataclass
class _Seen:
    """The last report of a node's process."""

    incarnation: int
    counts: list[int]
    marks: list[tuple[int, list[int]]]
    """Times and counts at the ends of the last two samples, for rates."""
    report: object
    """Its last activity, to pass over what was seen."""


@dataclass(frozen=True)
class Window:
    """What happened in some time."""

    from_unix_ms: int
    length_ms: int
    counts: Mapping[str, int] = field(default_factory=dict)
    """By COUNTERS."""


class History:
    """The ring; for one thread at a time."""

    def __init__(self, unix_ms: int, now_ms: int) -> None:
        """Start empty.

        Args:
            unix_ms: the wall clock.
            now_ms: the steady clock, of which all later times are.
        """
        self._rows: deque[Row] = deque(maxlen=KEPT_MS // INTERVAL_MS)
        self._seen: dict[str, _Seen] = {}
        self._open = array("d", bytes(8 * len(COUNTERS)))
        self._gauges = array("d", bytes(8 * len(GAUGES)))
        self._begin_unix_ms, self._begin_ms, self._now_ms = unix_ms, now_ms, now_ms
        self._missed: list[int] | None = None

    def observe(
        self, cluster: Cluster, stats: Mapping[str, Any], unix_ms: int, now_ms: int
    ) -> dict[str, int]:
        """Add what has happened since the last call; once a second or so.

        Args:
            cluster: the nodes and their reports.
            stats: of the native master.
            unix_ms: the wall clock.
            now_ms: the steady clock.

        Returns:
            The increases by column, without those that are 0.
        """
        more = self._of_nodes(cluster, now_ms) + self._of_master(stats)
        for place, count in enumerate(more):
            self._open[place] += count
        alive = [n for n in cluster.nodes.values() if n.session_id]
        self._gauges = array(
            "d",
            (
                sum(node.used_bytes for node in alive),
                sum(node.capacity_bytes for node in alive),
                stats["objects"],
                len(alive),
            ),
        )
        self._now_ms = now_ms
        if now_ms - self._begin_ms >= INTERVAL_MS:
            self._rows.append(self._row())
            self._open = array("d", bytes(8 * len(COUNTERS)))
            self._begin_unix_ms, self._begin_ms = unix_ms, now_ms
            for seen in self._seen.values():
                seen.marks = [seen.marks[-1], (now_ms, seen.counts)]
        return {name: count for name, count in zip(COUNTERS, more, strict=True) if count}

    def _row(self) -> Row:
        length_ms = self._now_ms - self._begin_ms
        return (self._begin_unix_ms, length_ms, self._open + self._gauges)

    def _of_nodes(self, cluster: Cluster, now_ms: int) -> list[int]:
        more = [0] * _WIDTH
        for node_id in self._seen.keys() - cluster.nodes.keys():
            del self._seen[node_id]
        for node_id, node in cluster.nodes.items():
            seen = self._seen.get(node_id)
            if node.session_id == 0 or (seen is not None and seen.report is node.activity):
                continue
            counts = _counts(node)
            if seen is None or seen.incarnation != node.incarnation:
                is_older = seen is None and node.joined_ms == 0
                if is_older and not node.activity.counters:
                    continue  # it has registered again, and not reported yet
                before = counts if is_older else [0] * _WIDTH
                seen = _Seen(node.incarnation, before, [(now_ms, before)], None)
                self._seen[node_id] = seen
            # Of one process they only grow; a new session begins with an empty report.
            counts = list(map(max, counts, seen.counts))
            changes = zip(more, counts, seen.counts, strict=True)
            more = [total + now - old for total, now, old in changes]
            seen.counts, seen.report = counts, node.activity
        return more

    def _of_master(self, stats: Mapping[str, Any]) -> list[int]:
        now = [int(stats["lookups"].get(reason, 0)) for reason in REASONS]
        before = self._missed or now
        self._missed = now
        return [max(0, count - old) for count, old in zip(now, before, strict=True)]

    def window(self, length_ms: int) -> Window:
        """Add up the last samples, the unfinished one included.

        Args:
            length_ms: at least this long, as far as there are samples.
        """
        rows = self._latest(length_ms)
        sums = [int(sum(column)) for column in zip(*(row[2] for row in rows), strict=True)]
        counts = dict(zip(COUNTERS, sums, strict=False))
        return Window(rows[0][0], sum(row[1] for row in rows), counts)

    def series(self, length_ms: int, points: int) -> dict[str, list[float]]:
        """Return the last samples by column, at most `points` of them.

        Args:
            length_ms: as in window().
            points: neighbours are added up to get there.

        Returns:
            COUNTERS, GAUGES, and at_unix_ms and length_ms of each point.
        """
        rows = self._latest(length_ms)
        together = -(-len(rows) // points)
        found: dict[str, list[float]] = {
            name: [] for name in ("at_unix_ms", "length_ms", *COUNTERS, *GAUGES)
        }
        # From the end, so that a point keeps its samples from one call to the next.
        first = len(rows) % together or together
        for begin in (0, *range(first, len(rows), together)):
            some = rows[begin : first if begin == 0 else begin + together]
            found["at_unix_ms"].append(some[0][0])
            found["length_ms"].append(sum(row[1] for row in some))
            for place, name in enumerate(COUNTERS):
                found[name].append(sum(row[2][place] for row in some))
            for place, name in enumerate(GAUGES, len(COUNTERS)):
                found[name].append(some[-1][2][place])
        return found

    def _latest(self, length_ms: int) -> list[Row]:
        rows, covered = [self._row()], self._now_ms - self._begin_ms
        for row in reversed(self._rows):
            if covered >= length_ms:
                break
            rows.append(row)
            covered += row[1]
        return rows[::-1]

    def rates(self, node_id: str) -> dict[str, float]:
        """Return what a node does a second, by NODE_COLUMNS, over the last 10 to 20 s."""
        seen = self._seen.get(node_id)
        if seen is None:
            return dict.fromkeys(NODE_COLUMNS, 0.0)
        since_ms, before = seen.marks[0]
        length_s = max(1000, self._now_ms - since_ms) / 1000
        pairs = zip(NODE_COLUMNS, seen.counts, before, strict=True)
        return {name: (count - old) / length_s for name, count, old in pairs}


def _counts(node: Node) -> list[int]:
    counts = [0] * _WIDTH
    for counted, count in node.activity.counters.items():
        place = _PLACES.get(counted)
        if place is not None:
            counts[place] = count
    return counts


def evictions(counts: Mapping[str, int]) -> dict[str, int]:
    """Return evictions by cause, from counts by COUNTERS."""
    found = {cause: counts.get(f"evicted_{cause}", 0) for cause in CAUSES[:-1]}
    told = found["memory"] + found["index"]
    return {**found, "unknown": max(0, counts.get("evictions", 0) - told)}


def misses(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the keys that lookups did not find, by reason."""
    return {reason: counts.get(f"missed_{reason}", 0) for reason in REASONS}


def hit_ratio(hits: int, missed: Iterable[int]) -> float | None:
    """Return the share of wanted keys that were read; None if none were wanted."""
    wanted = hits + sum(missed)
    return hits / wanted if wanted else None
