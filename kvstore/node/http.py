"""What a node shows over HTTP: its own metrics, those of its host's clients, and its readiness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvstore import metrics
from kvstore.activity import families
from kvstore.http import Readiness
from kvstore.metrics import Counter, Gauge, Labelled
from kvstore.node import activity
from kvstore.node.activity import MISSES, Clients
from kvstore.node.core_api import NodeCoreApi

ROWS = (
    Gauge("kvstore_capacity_bytes", "capacity_bytes", "Size of the segment."),
    Gauge("kvstore_ready_bytes", "ready_bytes", "Part of it that is pre-faulted."),
    Gauge("kvstore_prefault_failed", "prefault_failed", "1 when no more of it will be ready."),
    Gauge("kvstore_used_bytes", "used_bytes", "Rounded bytes of live blocks."),
    Gauge("kvstore_requested_bytes", "requested_bytes", "Exact bytes of live blocks."),
    Gauge("kvstore_deferred_bytes", "deferred_bytes", "Freed, but still held by a reader."),
    Gauge("kvstore_leased_bytes", "leased_bytes", "Bytes under a lease."),
    Gauge("kvstore_soft_pinned_bytes", "soft_pinned_bytes", "Evicted last."),
    Gauge("kvstore_hard_pinned_bytes", "hard_pinned_bytes", "Never evicted."),
    Gauge("kvstore_objects", "objects", "Published objects."),
    Gauge("kvstore_reservations", "reservations", "Writes under way."),
    Gauge("kvstore_spares", "spares", "Blocks granted to clients for their next writes."),
    Gauge("kvstore_quarantined_bytes", "quarantined_bytes", "Held until a writer is gone."),
    Gauge("kvstore_leases", "leases", "Leases in force."),
    Gauge("kvstore_connections", "connections", "Open connections."),
    Gauge("kvstore_live_slots", "live_slots", "Client processes that map the segment."),
    Gauge("kvstore_applied_seq", "applied_seq", "Last operation of the master applied."),
    Counter("kvstore_expirations_total", "expirations", "Objects whose time was over."),
    Counter("kvstore_removals_total", "removals", "Objects removed."),
    Counter("kvstore_no_space_total", "no_space", "Puts refused for want of room."),
    Counter("kvstore_frames_in_total", "frames_in", "Frames received."),
    Counter("kvstore_frames_out_total", "frames_out", "Frames sent."),
    Labelled("kvstore_refusals_total", "refusals", "code", "Connections refused or cut, by code."),
    Counter("kvstore_copies_in_total", "copies_in", "Replicas received."),
    Counter("kvstore_copies_out_total", "copies_out", "Replicas sent."),
    Counter("kvstore_copies_failed_total", "copies_failed", "Replicas not sent."),
    Counter("kvstore_link_losses_total", "link_losses", "Times the master's link broke."),
    Gauge("kvstore_unwritten_bytes", "unwritten_bytes", "Bytes that only DRAM has, below it NVMe."),
    Counter(
        "kvstore_evicted_unwritten_total", "evicted_unwritten", "Evicted, and not on NVMe either."
    ),
)
NVME_ROWS = (
    Gauge("kvstore_nvme_failed", "failed", "1 when the NVMe tier is read-only or off: alert."),
    Gauge("kvstore_nvme_capacity_bytes", "capacity_bytes", "Size of all its segment files."),
    Gauge("kvstore_nvme_object_bytes", "object_bytes", "Bytes of its objects."),
    Gauge("kvstore_nvme_objects", "objects", "Objects on NVMe, those that DRAM has too included."),
    Gauge("kvstore_nvme_index_bytes", "index_bytes", "Memory of its index."),
    Gauge("kvstore_nvme_free_segments", "free_segments", "Segment files without objects."),
    Gauge("kvstore_nvme_snapshot_left_objects", "snapshot_left", "Of the snapshot under way."),
    Gauge(
        "kvstore_nvme_snapshot_timestamp_seconds", "snapshot_at_s", "End of the last complete one."
    ),
    Counter("kvstore_nvme_hits_total", "hits", "Objects read from NVMe."),
    Counter("kvstore_nvme_hit_bytes_total", "hit_bytes", "Their bytes."),
    Counter("kvstore_nvme_demoted_objects_total", "demoted_objects", "Objects written to NVMe."),
    Counter("kvstore_nvme_demoted_bytes_total", "demoted_bytes", "Their bytes."),
    Counter("kvstore_nvme_demote_failures_total", "demote_failures", "Objects it did not take."),
    Counter("kvstore_nvme_promoted_objects_total", "promoted_objects", "Brought back to DRAM."),
    Counter("kvstore_nvme_promoted_bytes_total", "promoted_bytes", "Their bytes."),
    Counter("kvstore_nvme_promotions_skipped_total", "promotions_skipped", "Reads that were not."),
    Counter("kvstore_nvme_prefetched_objects_total", "prefetched_objects", "Before any read."),
    Counter("kvstore_nvme_prefetched_bytes_total", "prefetched_bytes", "Their bytes."),
    Counter("kvstore_nvme_prefetch_used_total", "prefetch_used", "Of them, those read then."),
    Counter("kvstore_nvme_prefetch_wasted_total", "prefetch_wasted", "… and those never read."),
    Counter("kvstore_nvme_written_bytes_total", "written_bytes", "To the disk, all in all."),
    Counter("kvstore_nvme_readmitted_objects_total", "readmitted_objects", "Kept by a reclaim."),
    Counter("kvstore_nvme_dropped_objects_total", "dropped_objects", "Lost by NVMe, most by age."),
    Counter("kvstore_nvme_reclaimed_segments_total", "segments_reclaimed", "Segments emptied."),
    Counter("kvstore_nvme_checksum_errors_total", "checksum_errors", "Damaged objects met."),
    Counter("kvstore_nvme_io_errors_total", "io_errors", "Calls that the disk refused."),
    Counter("kvstore_nvme_catalog_errors_total", "catalog_errors", "The next start scans more."),
    Counter("kvstore_nvme_overloaded_total", "overloaded", "Writes and reads that had to wait."),
    Counter("kvstore_nvme_damaged_removals_total", "damaged_removals", "At the start: alert."),
    Counter("kvstore_nvme_snapshots_total", "snapshots", "Snapshots written."),
    Counter("kvstore_nvme_snapshot_objects_total", "snapshot_objects", "Objects in them."),
)


def collector(core: NodeCoreApi) -> Callable[[], Iterator[Metric]]:
    """Make the function that collects a node's metrics and those of its host's clients."""

    def collect() -> Iterator[Metric]:
        stats, clients = core.stats(), core.client_counters()
        yield from metrics.families(ROWS, stats)
        if stats["nvme"] is not None:
            yield from metrics.families(NVME_ROWS, stats["nvme"])
        yield from families("kvstore", {"": activity.of(stats, clients)})
        link = GaugeMetricFamily("kvstore_link", "State of the master's link.", labels=["state"])
        for state in ("down", "syncing", "up"):
            link.add_metric([state], float(stats["link"] == state))
        yield link
        yield from client_families(clients)

    return collect


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
        if name.startswith(MISSES):
            misses.add_metric([name.removeprefix(MISSES), tenant], value)
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
        stats = core.stats()
        details = {"link": stats["link"]}
        if stats["prefault_error"]:  # it serves what it has
            details["prefault_error"] = stats["prefault_error"]
        if stats["nvme"] is not None:
            details["nvme"] = stats["nvme"]["state"]
            if stats["nvme"]["error"]:
                details["nvme_error"] = stats["nvme"]["error"]
        return stats["link"] == "up", details

    return ready
