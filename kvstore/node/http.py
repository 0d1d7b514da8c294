"""What a node shows over HTTP: its own metrics, those of its host's clients, and its readiness.

Clients cannot be scraped: they count into their slots, and the node adds them up. So hits and
misses are there twice, told apart by `seen_by`: what the node answered over sockets, and what the
clients of its host got from shared memory and from any node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvstore.http import Readiness
from kvstore.metrics import Counter, Gauge, Labelled, families, latency_family
from kvstore.node.core_api import NodeCoreApi

ROWS = (
    Gauge("kvstore_capacity_bytes", "capacity_bytes", "Size of the segment."),
    Gauge("kvstore_ready_bytes", "ready_bytes", "Part of it that is pre-faulted."),
    Gauge("kvstore_used_bytes", "used_bytes", "Rounded bytes of live blocks."),
    Gauge("kvstore_requested_bytes", "requested_bytes", "Exact bytes of live blocks."),
    Gauge("kvstore_deferred_bytes", "deferred_bytes", "Freed, but still held by a reader."),
    Gauge("kvstore_leased_bytes", "leased_bytes", "Bytes under a lease."),
    Gauge("kvstore_soft_pinned_bytes", "soft_pinned_bytes", "Evicted last."),
    Gauge("kvstore_hard_pinned_bytes", "hard_pinned_bytes", "Never evicted."),
    Gauge("kvstore_objects", "objects", "Published objects."),
    Gauge("kvstore_reservations", "reservations", "Writes under way."),
    Gauge("kvstore_quarantined_bytes", "quarantined_bytes", "Held until a writer is gone."),
    Gauge("kvstore_leases", "leases", "Leases in force."),
    Gauge("kvstore_connections", "connections", "Open connections."),
    Gauge("kvstore_live_slots", "live_slots", "Client processes that map the segment."),
    Gauge("kvstore_applied_seq", "applied_seq", "Last operation of the master applied."),
    Counter("kvstore_evictions_total", "evictions", "Objects evicted."),
    Counter("kvstore_evicted_bytes_total", "evicted_bytes", "Their bytes."),
    Counter("kvstore_expirations_total", "expirations", "Objects whose time was over."),
    Counter("kvstore_removals_total", "removals", "Objects removed."),
    Counter("kvstore_no_space_total", "no_space", "Puts refused for want of room."),
    Counter("kvstore_frames_in_total", "frames_in", "Frames received."),
    Counter("kvstore_frames_out_total", "frames_out", "Frames sent."),
    Labelled("kvstore_refusals_total", "refusals", "code", "Connections refused or cut, by code."),
    Counter("kvstore_puts_ok_total", "puts_ok", "Objects published."),
    Counter("kvstore_puts_exist_total", "puts_exist", "Puts of a key that was there."),
    Counter("kvstore_puts_failed_total", "puts_failed", "Puts that failed."),
    Counter("kvstore_copies_in_total", "copies_in", "Replicas received."),
    Counter("kvstore_copies_out_total", "copies_out", "Replicas sent."),
    Counter("kvstore_copies_failed_total", "copies_failed", "Replicas not sent."),
    Counter("kvstore_link_losses_total", "link_losses", "Times the master's link broke."),
)
# Object bytes by operation and path: from the node's counters, and from the clients'.
_NODE_BYTES = (
    ("put", "shm", "put_bytes_shm"),
    ("put", "socket", "put_bytes_tcp"),
    ("get", "socket", "get_bytes_tcp"),
    ("copy_in", "socket", "copy_bytes_in"),
    ("copy_out", "socket", "copy_bytes_out"),
)
_LATENCIES = {"put": "put_us", "get": "get_us", "claim": "claim_us", "announce": "announce_us"}
_MISSES = "misses_"

Clients = Sequence[Mapping[str, Any]]


def collector(core: NodeCoreApi) -> Callable[[], Iterator[Metric]]:
    """Make the function that collects a node's metrics and those of its host's clients."""

    def collect() -> Iterator[Metric]:
        stats, clients = core.stats(), core.client_counters()
        yield from families(ROWS, stats)
        yield from _reads(stats, clients)
        link = GaugeMetricFamily("kvstore_link", "State of the master's link.", labels=["state"])
        for state in ("down", "syncing", "up"):
            link.add_metric([state], float(stats["link"] == state))
        yield link
        yield latency_family(
            "kvstore_latency_seconds",
            "Time of an operation inside the node.",
            "operation",
            {name: stats[key] for name, key in _LATENCIES.items()},
        )
        yield from client_families(clients)

    return collect


def _sum(clients: Clients, name: str) -> int:
    return sum(client["counters"].get(name, 0) for client in clients)


def _reads(stats: Mapping[str, Any], clients: Clients) -> Iterator[Metric]:
    hits = CounterMetricFamily("kvstore_hits", "Keys read.", labels=["seen_by", "path"])
    hits.add_metric(["node", "socket"], stats["hits"])
    hits.add_metric(["client", "shm"], _sum(clients, "hits_shm"))
    hits.add_metric(["client", "socket"], _sum(clients, "hits_socket"))
    yield hits
    misses = CounterMetricFamily(
        "kvstore_misses", "Keys not found, by reason.", labels=["seen_by", "reason"]
    )
    for reason, count in stats["misses"].items():
        misses.add_metric(["node", reason], count)
        misses.add_metric(["client", reason], _sum(clients, f"{_MISSES}{reason}"))
    yield misses
    moved = CounterMetricFamily("kvstore_bytes", "Object bytes.", labels=["operation", "path"])
    for operation, path, key in _NODE_BYTES:
        moved.add_metric([operation, path], stats[key])
    moved.add_metric(["get", "shm"], _sum(clients, "bytes_read_shm"))
    yield moved


def client_families(clients: Clients) -> Iterator[Metric]:
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
