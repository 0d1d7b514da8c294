"""A node whose shared memory was damaged from outside begins again with new memory, in place.

Every process that maps the segment for writing can shorten it or punch holes into it. Neither wrong
bytes nor a crash follow from that (native/src/base/bus_guard.h), but what was lost stays lost, and
the memory cannot be trusted any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, Metric

from kvstore import clock
from kvstore.logging import EventLogger

_log = EventLogger("node")
_LEAST_PAUSE_S = 0.1
_MOST_PAUSE_S = 30.0
_CALM_MS = 60_000
"""A node that has served for this long begins again after the least pause."""

Announce = Callable[[dict[str, Any]], None]


class SegmentDamagedError(Exception):
    """Somebody has damaged the node's shared memory; its files are removed."""


class Server(Protocol):
    """One life of the node (kvstore.node.server.NodeServer)."""

    def serve(self, stop: asyncio.Event, announce: Announce) -> Awaitable[None]:
        """Serve until `stop` is set; raise SegmentDamagedError."""


class Rebuilds:
    """Counts how often the node has begun again."""

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0

    def families(self) -> Iterator[Metric]:
        """Collect the metric."""
        yield CounterMetricFamily(
            "kvstore_segment_rebuilds",
            "Times the node replaced shared memory that another process had damaged.",
            self.count,
        )

    async def serve(
        self,
        server: Server,
        another: Callable[[], Server],
        stop: asyncio.Event,
        announce: Announce,
    ) -> None:
        """Serve until `stop` is set, with as many servers as it takes.

        Pauses grow while the memory is damaged again and again.

        Args:
            server: the first.
            another: creates the next one; the one before has released everything.
            stop: stops the node.
            announce: called with the addresses of each once it serves.
        """
        pause_s = _LEAST_PAUSE_S
        while True:
            begun_ms = clock.monotonic_ms()
            try:
                await server.serve(stop, announce)
            except SegmentDamagedError as error:
                self.count += 1
                calm = clock.monotonic_ms() - begun_ms >= _CALM_MS
                pause_s = _LEAST_PAUSE_S if calm else min(2 * pause_s, _MOST_PAUSE_S)
                _log.error("segment_damaged", error=error, begins_again_in_s=pause_s)
            else:
                return
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)
                return
            server = another()
