"""Watches the cluster for the console, into the history and the list of events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

from kvstore import clock
from kvstore.master.core_api import MasterCoreApi
from kvstore.master.events import MASTER, Event, Events, Happened
from kvstore.master.history import History, Window
from kvstore.master.registry import Registry

_LOOK_S: Final = 1.0
_LOOK_OF_A_NODE_S: Final = 0.002
"""A look goes over every node: of a thousand, every two seconds."""


class Recorder:
    """History and events of one master; thread-safe."""

    def __init__(
        self,
        core: MasterCoreApi,
        registry: Registry,
        refusal: Callable[[], str],
        master_epoch: int,
    ) -> None:
        """Start with what the cluster is now.

        Args:
            core: the native master.
            registry: the nodes.
            refusal: why the master's configuration file is not in effect; empty: it is.
            master_epoch: of this process, for its first event.
        """
        self._core = core
        self._registry = registry
        self._refusal = refusal
        self._mutex = threading.Lock()
        self._before = registry.cluster
        self._history = History(clock.unix_ms(), clock.monotonic_ms())
        self._events = Events()
        known = len(self._before.nodes)
        text = f"the master has started (epoch {master_epoch}) and knows {known} nodes"
        self._events.add(Happened("started", MASTER, text), clock.unix_ms())

    async def record(self) -> None:
        """Look until cancelled: every second, or less often at many nodes."""
        while True:
            await asyncio.to_thread(self.look)
            nodes = len(self._registry.cluster.nodes)
            await asyncio.sleep(max(_LOOK_S, nodes * _LOOK_OF_A_NODE_S))

    def look(self) -> None:
        """Bring history and events up to date."""
        stats = self._core.stats()
        with self._mutex:
            cluster, unix_ms = self._registry.cluster, clock.unix_ms()
            more = self._history.observe(cluster, stats, unix_ms, clock.monotonic_ms())
            self._events.compare(self._before, cluster, unix_ms)
            self._events.counted(more, unix_ms)
            self._events.refused(self._refusal(), unix_ms)
            self._before = cluster

    def window(self, length_ms: int) -> Window:
        """As History.window, up to now."""
        self.look()
        with self._mutex:
            return self._history.window(length_ms)

    def series(self, length_ms: int, points: int) -> dict[str, list[float]]:
        """As History.series."""
        with self._mutex:
            return self._history.series(length_ms, points)

    def rates(self, node_ids: list[str]) -> dict[str, dict[str, float]]:
        """As History.rates, by node."""
        with self._mutex:
            return {node_id: self._history.rates(node_id) for node_id in node_ids}

    def events(self) -> list[Event]:
        """Return the events, the newest first."""
        self.look()
        with self._mutex:
            return self._events.latest()
