"""The connector's counters in vLLM's log line and on its metrics port; imports vLLM."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from kvstore.integrations.guard import Guard

_STATES = {
    "breaker_open",
    "fetched_tokens_per_s",
}  # gauges among a guard's stats; the others are counters


class Counted(KVConnectorStats):
    """Counts of an interval, by name."""

    def reset(self) -> None:
        """Start a new interval."""
        self.data.clear()

    def is_empty(self) -> bool:
        """Say whether nothing was counted."""
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Add the counts of another side or rank."""
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """Return the values for vLLM's log line."""
        return dict(sorted(self.data.items()))


class Intervals:
    """Computes the increase of a guard's counters since the last look."""

    def __init__(self, guard: Guard) -> None:
        """Begin now."""
        self._guard = guard
        self._before: dict[str, int | float] = {}

    def take(self) -> Counted | None:
        """Return the increases; None when there are none."""
        now = {name: count for name, count in self._guard.stats().items() if name not in _STATES}
        new = {name: count - self._before.get(name, 0) for name, count in now.items()}
        self._before = now
        counted = {name: count for name, count in new.items() if count}
        return Counted(data=counted) if counted else None


class PrometheusCounters(KVConnectorPromMetrics):
    """One counter with a label: vllm:kvstore_connector_total{what="blocks_saved", …}."""

    def __init__(self, *of_vllm: Any) -> None:
        """Register with vLLM's registry, with vLLM's arguments."""
        super().__init__(*of_vllm)
        self._counter = self._counter_cls(
            name="vllm:kvstore_connector",
            documentation="Operations and failures of the kvstore connector.",
            labelnames=[*self._labelnames, "what"],
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add an interval."""
        for what, count in (transfer_stats_data or {}).items():
            self._counter.labels(*self.per_engine_labelvalues[engine_idx], what).inc(count)
