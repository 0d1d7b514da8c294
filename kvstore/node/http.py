"""What a node shows over HTTP: kvstore_node_* and kvstore_client_* metrics, and its readiness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvstore.http import Readiness
from kvstore.metrics import Counter, Gauge, Labelled, families, latency_family
from kvstore.node.core_api import NodeCoreApi

ROWS = (
    Gauge("kvstore_node_capacity_bytes", "capacity_bytes", "Size of the segment."),
    Gauge("kvstore_node_ready_bytes", "ready_bytes", "Part of it that is pre-faulted."),
    Gauge("kvstore_node_used_bytes", "used_bytes", "Rounded bytes of live blocks."),
    Gauge("kvstore_node_requested_bytes", "requested_bytes", "Exact bytes of live blocks."),
    Gauge("kvstore_node_deferred_bytes", "deferred_bytes", "Freed, but still held by a reader."),
    Gauge("kvstore_node_leased_bytes", "leased_bytes", "Bytes under a lease."),
    Gauge("kvstore_node_soft_pinned_bytes", "soft_pinned_bytes", "Evicted last."),
    Gauge("kvstore_node_hard_pinned_bytes", "hard_pinned_bytes", "Never evicted."),
    Gauge("kvstore_node_objects", "objects", "Published objects."),
    Gauge("kvstore_node_reservations", "reservations", "Writes under way."),
    Gauge("kvstore_node_quarantined_bytes", "quarantined_bytes", "Held until a writer is gone."),
    Gauge("kvstore_node_leases", "leases", "Leases in force."),
    Gauge("kvstore_node_connections", "connections", "Open connections."),
    Gauge("kvstore_node_live_slots", "live_slots", "Client processes that map the segment."),
    Gauge("kvstore_node_applied_seq", "applied_seq", "Last operation of the master applied."),
    Counter("kvstore_node_evictions_total", "evictions", "Objects evicted."),
    Counter("kvstore_node_evicted_bytes_total", "evicted_bytes", "Their bytes."),
    Counter("kvstore_node_expirations_total", "expirations", "Objects whose time was over."),
    Counter("kvstore_node_removals_total", "removals", "Objects removed."),
    Counter("kvstore_node_no_space_total", "no_space", "Puts refused for want of room."),
    Counter("kvstore_node_frames_in_total", "frames_in", "Frames received."),
    Counter("kvstore_node_frames_out_total", "frames_out", "Frames sent."),
    Labelled(
        "kvstore_node_refusals_total", "refusals", "code", "Connections refused or cut, by code."
    ),
    Counter("kvstore_node_hits_total", "hits", "Keys served over sockets."),
    Labelled("kvstore_node_misses_total", "misses", "reason", "Keys not served, by reason."),
    Counter("kvstore_node_puts_ok_total", "puts_ok", "Objects published."),
    Counter("kvstore_node_puts_exist_total", "puts_exist", "Puts of a key that was there."),
    Counter("kvstore_node_puts_failed_total", "puts_failed", "Puts that failed."),
    Counter("kvstore_node_copies_in_total", "copies_in", "Replicas received."),
    Counter("kvstore_node_copies_out_total", "copies_out", "Replicas sent."),
    Counter("kvstore_node_copies_failed_total", "copies_failed", "Replicas not sent."),
    Counter("kvstore_node_link_losses_total", "link_losses", "Times the master's link broke."),
)
# Bytes by direction and path; "shm" bytes never crossed a socket.
_BYTES = (
    ("put", "shm", "put_bytes_shm"),
    ("put", "tcp", "put_bytes_tcp"),
    ("get", "tcp", "get_bytes_tcp"),
    ("copy_in", "tcp", "copy_bytes_in"),
    ("copy_out", "tcp", "copy_bytes_out"),
)
_LATENCIES = {"put": "put_us", "get": "get_us", "claim": "claim_us", "announce": "announce_us"}
_MISSES = "misses_"


def collector(core: NodeCoreApi) -> Callable[[], Iterator[Metric]]:
    """Make the function that collects a node's metrics and those of its host's clients."""

    def collect() -> Iterator[Metric]:
        stats = core.stats()
        yield from families(ROWS, stats)
        bytes_family = CounterMetricFamily(
            "kvstore_node_bytes", "Object bytes moved.", labels=["operation", "path"]
        )
        for operation, path, key in _BYTES:
            bytes_family.add_metric([operation, path], stats[key])
        yield bytes_family
        link = GaugeMetricFamily("kvstore_node_link", "State of the link.", labels=["state"])
        for state in ("down", "syncing", "up"):
            link.add_metric([state], float(stats["link"] == state))
        yield link
        yield latency_family(
            "kvstore_node_latency_seconds",
            "Time of an operation inside the node.",
            "operation",
            {name: stats[key] for name, key in _LATENCIES.items()},
        )
        yield from client_families(core.client_counters())

    return collect


def client_families(clients: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Add up what the client processes of this host counted, by tenant.

    Args:
        clients: one dictionary a process: ``tenant`` and ``counters`` (by name).

    Yields:
        kvstore_client_misses_total by reason, kvstore_client_<name>_total for the rest.
    """
    totals: dict[tuple[str, str], int] = {}
    for client in clients:
        for name, value in client["counters"].items():
            key = (name, client["tenant"])
            totals[key] = totals.get(key, 0) + value
    misses = CounterMetricFamily(
        "kvstore_client_misses", "Keys not found by clients.", labels=["reason", "tenant"]
    )
    others: dict[str, CounterMetricFamily] = {}
    for (name, tenant), value in sorted(totals.items()):
        if name.startswith(_MISSES):
            misses.add_metric([name.removeprefix(_MISSES), tenant], value)
            continue
        family = others.setdefault(
            name,
            CounterMetricFamily(
                f"kvstore_client_{name}", "Counted by the clients of this host.", labels=["tenant"]
            ),
        )
        family.add_metric([tenant], value)
    yield misses
    yield from others.values()


def readiness(core: NodeCoreApi) -> Readiness:
    """Make /readyz: ready while puts are served, which needs the link to the master."""

    def ready() -> tuple[bool, dict[str, Any]]:
        state = core.link_state()
        return state == "up", {"link": state}

    return ready
