"""A node's metrics, those of its host's clients, and its readiness over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvstore import metrics
from kvstore.activity import families
from kvstore.metrics import Counter, Gauge, Labelled, LabelledGauge
from kvstore.node import activity
from kvstore.node.activity import MISSES, Clients
from kvstore.node.core_api import NodeCoreApi
from kvstore.tasks import Readiness

ROWS = (
    Gauge("kvstore_capacity_bytes", "capacity_bytes", "Size of the segment."),
    Gauge("kvstore_ready_bytes", "ready_bytes", "Pre-faulted bytes of the segment."),
    Gauge("kvstore_prefault_failed", "prefault_failed", "1 when pre-faulting has stopped early."),
    Gauge(
        "kvstore_index_growth_failed",
        "index_growth_failed",
        "1 when the index could not grow for lack of memory.",
    ),
    Gauge("kvstore_used_bytes", "used_bytes", "Rounded bytes of live blocks."),
    LabelledGauge(
        "kvstore_domain_capacity_bytes",
        "domain_capacity_bytes",
        "domain",
        "Memory of the tenants that share it: shared, private, and those of `domains`.",
    ),
    LabelledGauge(
        "kvstore_domain_used_bytes",
        "domain_used_bytes",
        "domain",
        "Memory of these tenants that is in use.",
    ),
    LabelledGauge(
        "kvstore_ucx_registered_bytes",
        "ucx_registered_bytes",
        "domain",
        "Memory that can be read by UCX; 0 while its process cannot be reached.",
    ),
    Gauge("kvstore_requested_bytes", "requested_bytes", "Exact bytes of live blocks."),
    Gauge(
        "kvstore_deferred_bytes",
        "deferred_bytes",
        "Bytes that are freed but still held by a reader.",
    ),
    Gauge("kvstore_leased_bytes", "leased_bytes", "Bytes under a lease."),
    Gauge(
        "kvstore_soft_pinned_bytes", "soft_pinned_bytes", "Bytes under a soft pin (evicted last)."
    ),
    Gauge(
        "kvstore_hard_pinned_bytes", "hard_pinned_bytes", "Bytes under a hard pin (never evicted)."
    ),
    Gauge("kvstore_objects", "objects", "Published objects."),
    Gauge("kvstore_reservations", "reservations", "Writes in progress."),
    Gauge("kvstore_spares", "spares", "Blocks pre-granted to clients for their next writes."),
    Gauge(
        "kvstore_quarantined_bytes",
        "quarantined_bytes",
        "Bytes held until an aborted writer has stopped.",
    ),
    Gauge("kvstore_leases", "leases", "Leases in force."),
    Gauge("kvstore_connections", "connections", "Open connections."),
    Gauge("kvstore_live_slots", "live_slots", "Client processes that map the segment."),
    Labelled(
        "kvstore_attaches_refused_total",
        "attaches_refused",
        "cause",
        "Attempts of clients on this host to map the segment that failed, by cause.",
    ),
    Gauge(
        "kvstore_applied_seq", "applied_seq", "Number of the last applied operation of the master."
    ),
    LabelledGauge(
        "kvstore_index_entries",
        "index_by_state",
        "state",
        "Entries of the index, one an object: used, free, and growth, which it can still grow by.",
    ),
    Counter(
        "kvstore_index_evictions_total",
        "index_evictions",
        "Objects evicted for an entry of the index, not for memory.",
    ),
    Counter("kvstore_expirations_total", "expirations", "Objects expired."),
    Counter("kvstore_removals_total", "removals", "Objects removed."),
    Counter("kvstore_no_space_total", "no_space", "Puts refused for lack of space."),
    Counter("kvstore_frames_in_total", "frames_in", "Frames received."),
    Counter("kvstore_frames_out_total", "frames_out", "Frames sent."),
    Labelled(
        "kvstore_refusals_total",
        "refusals",
        "code",
        "Connections refused or closed for an error, by code.",
    ),
    Labelled(
        "kvstore_auth_failures_total",
        "proofs",
        "result",
        "Wrong tokens at the block port; pauses that began after several, and attempts in one.",
    ),
    Counter(
        "kvstore_hot_asks_total",
        "hot_asks",
        "Replicas asked for because clients of other hosts read an object often.",
    ),
    Counter("kvstore_copies_in_total", "copies_in", "Replicas received."),
    Counter("kvstore_copies_out_total", "copies_out", "Replicas sent."),
    Counter("kvstore_copies_failed_total", "copies_failed", "Replicas that could not be sent."),
    Counter("kvstore_link_losses_total", "link_losses", "Losses of the link to the master."),
    Gauge(
        "kvstore_unwritten_bytes",
        "unwritten_bytes",
        "Bytes of DRAM-only objects, with an NVMe tier.",
    ),
    Counter(
        "kvstore_evicted_unwritten_total",
        "evicted_unwritten",
        "Objects evicted without a copy on NVMe.",
    ),
)
NVME_ROWS = (
    Gauge(
        "kvstore_nvme_failed", "failed", "1 when the NVMe tier is read-only or off: alert on it."
    ),
    Gauge("kvstore_nvme_capacity_bytes", "capacity_bytes", "Size of all NVMe log files."),
    Gauge("kvstore_nvme_object_bytes", "object_bytes", "Bytes of objects on NVMe."),
    Gauge("kvstore_nvme_objects", "objects", "Objects on NVMe, including those also in DRAM."),
    Gauge("kvstore_nvme_index_bytes", "index_bytes", "Memory of the NVMe index."),
    Gauge("kvstore_nvme_free_segments", "free_segments", "NVMe log files without objects."),
    Gauge(
        "kvstore_nvme_snapshot_left_objects",
        "snapshot_left",
        "Objects left to write of the current snapshot.",
    ),
    Gauge(
        "kvstore_nvme_snapshot_timestamp_seconds",
        "snapshot_at_s",
        "Completion of the last complete snapshot.",
    ),
    Counter("kvstore_nvme_hits_total", "hits", "Objects read from NVMe."),
    Counter("kvstore_nvme_hit_bytes_total", "hit_bytes", "Bytes read from NVMe."),
    Counter("kvstore_nvme_demoted_objects_total", "demoted_objects", "Objects demoted to NVMe."),
    Counter("kvstore_nvme_demoted_bytes_total", "demoted_bytes", "Bytes demoted."),
    Counter(
        "kvstore_nvme_demote_failures_total",
        "demote_failures",
        "Objects that could not be demoted.",
    ),
    Counter("kvstore_nvme_promoted_objects_total", "promoted_objects", "Objects promoted to DRAM."),
    Counter("kvstore_nvme_promoted_bytes_total", "promoted_bytes", "Bytes promoted."),
    Counter(
        "kvstore_nvme_promotions_skipped_total", "promotions_skipped", "Reads without a promotion."
    ),
    Counter("kvstore_nvme_prefetched_objects_total", "prefetched_objects", "Objects prefetched."),
    Counter("kvstore_nvme_prefetched_bytes_total", "prefetched_bytes", "Bytes prefetched."),
    Counter(
        "kvstore_nvme_prefetch_used_total", "prefetch_used", "Prefetched objects that were read."
    ),
    Counter(
        "kvstore_nvme_prefetch_wasted_total", "prefetch_wasted", "Prefetched objects never read."
    ),
    Counter("kvstore_nvme_written_bytes_total", "written_bytes", "Bytes written to the disk."),
    Counter(
        "kvstore_nvme_readmitted_objects_total", "readmitted_objects", "Objects kept by a reclaim."
    ),
    Counter("kvstore_nvme_dropped_objects_total", "dropped_objects", "Objects dropped from NVMe."),
    Counter(
        "kvstore_nvme_reclaimed_segments_total", "segments_reclaimed", "NVMe log files reclaimed."
    ),
    Counter("kvstore_nvme_checksum_errors_total", "checksum_errors", "Damaged objects found."),
    Counter("kvstore_nvme_io_errors_total", "io_errors", "Failed disk calls."),
    Counter(
        "kvstore_nvme_catalog_errors_total",
        "catalog_errors",
        "Failed catalog writes; the next start scans more.",
    ),
    Counter("kvstore_nvme_overloaded_total", "overloaded", "Reads and writes that had to wait."),
    Counter(
        "kvstore_nvme_damaged_removals_total",
        "damaged_removals",
        "Damaged removals found at the start: alert on it.",
    ),
    Counter("kvstore_nvme_snapshots_total", "snapshots", "Snapshots written."),
    Counter(
        "kvstore_nvme_snapshot_objects_total", "snapshot_objects", "Objects written by snapshots."
    ),
)
# What the clients of this host count, but for misses (native/src/base/client_counters.h).
CLIENT_HELP: Final[Mapping[str, str]] = {
    "keys_read": "Keys that clients asked for, found or not.",
    "hits_shm": "Keys read from mapped memory.",
    "hits_socket": "Keys read through a socket, from any node.",
    "hits_ucx": "Keys read by one-sided reads, from any node.",
    "bytes_read_shm": "Object bytes read from mapped memory.",
    "bytes_read_socket": "Object bytes read through a socket.",
    "bytes_read_ucx": "Object bytes read by one-sided reads.",
    "puts_ok": "Puts that published an object, at any node.",
    "puts_existing": "Puts of a key that had an object.",
    "puts_failed": "Puts that failed.",
    "bytes_put_shm": "Object bytes written into mapped memory.",
    "bytes_put_socket": "Object bytes sent through a socket.",
    "bytes_put_ucx": "Object bytes that nodes fetched from clients.",
    "wrong_checksums": "Copies refused because their bytes were not those put.",
    "retries": "Reads that went on to another replica, puts that were tried again.",
    "lookups": "Requests sent to the master.",
    "master_failures": "Requests to the master without an answer.",
    "views": "Views opened.",
    "leases": "Leases taken.",
}


def collector(core: NodeCoreApi) -> Callable[[], Iterator[Metric]]:
    """Make the function that collects the metrics of a node and of its host's clients."""

    def collect() -> Iterator[Metric]:
        stats, clients = core.stats(), core.client_counters()
        yield from metrics.families(ROWS, stats)
        if stats["nvme"] is not None:
            yield from metrics.families(NVME_ROWS, stats["nvme"])
        yield from families("kvstore", {"": activity.of(stats, clients)})
        link = GaugeMetricFamily(
            "kvstore_link", "1 for the state of the link to the master.", labels=["state"]
        )
        states = {state: float(stats["link"] == state) for state in ("down", "syncing", "up")}
        yield metrics.by_label(link, states)
        yield from client_families(clients)

    return collect


def client_families(clients: Clients) -> Iterator[Metric]:
    """Add up the counters of this host's client processes, by tenant.

    Args:
        clients: one dictionary per process: ``tenant`` and ``counters`` (by name).

    Yields:
        kvstore_client_misses_total by reason, kvstore_client_<name>_total for all others.
    """
    totals: dict[tuple[str, str], int] = {}
    for client in clients:
        for name, value in client["counters"].items():
            key = (name, client["tenant"])
            totals[key] = totals.get(key, 0) + value
    misses = CounterMetricFamily(
        "kvstore_client_misses",
        "Keys not found by clients, by reason.",
        labels=["reason", "tenant"],
    )
    others: dict[str, CounterMetricFamily] = {}
    for (name, tenant), value in sorted(totals.items()):
        if name.startswith(MISSES):
            misses.add_metric([name.removeprefix(MISSES), tenant], value)
            continue
        family = others.setdefault(
            name,
            CounterMetricFamily(
                f"kvstore_client_{name}",
                CLIENT_HELP.get(name, "Counted by the clients of this host."),
                labels=["tenant"],
            ),
        )
        family.add_metric([tenant], value)
    yield misses
    yield from others.values()


def degraded(stats: Mapping[str, Any], restart_loses: str) -> list[str]:
    """Say what a node lacks while it serves, a sentence each.

    Args:
        stats: of NodeCoreApi.stats().
        restart_loses: why a restart would lose the objects; empty: it would not.
    """
    nvme = stats["nvme"]
    lacks = {
        "memory": stats["prefault_error"],
        "index": stats["index_error"],
        "restart": restart_loses,
        "ucx": "; ".join(f"domain {name}: {why}" for name, why in stats["ucx_errors"].items()),
        f"nvme {nvme['state'].replace('_', ' ')}" if nvme else "nvme": nvme and nvme["error"],
    }
    return [f"{what}: {why}" for what, why in lacks.items() if why]


def readiness(
    core: NodeCoreApi,
    problem: Callable[[], str] = lambda: "",
    lacks_more: Callable[[], list[str]] = list,
) -> Readiness:
    """Make /readyz: ready while puts are served, which requires the link to the master.

    What the node lacks while it serves is listed as `degraded`.

    Args:
        core: of the node.
        problem: says why the master tells no client of this node; empty: it does.
        lacks_more: what else it lacks, a sentence each.
    """
    restart_loses = core.beginning()["restart_loses"]

    def ready() -> tuple[bool, dict[str, Any]]:
        stats = core.stats()
        details = {"link": stats["link"]}
        lacks = [*degraded(stats, restart_loses), *lacks_more()]
        if lacks:
            details["degraded"] = lacks
        if stats["prefault_error"]:  # it serves with less memory
            details["prefault_error"] = stats["prefault_error"]
        if stats["nvme"] is not None:
            details["nvme"] = stats["nvme"]["state"]
            if stats["nvme"]["error"]:
                details["nvme_error"] = stats["nvme"]["error"]
        if found := problem():
            details["endpoint_problem"] = found
        return stats["link"] == "up" and not found, details

    return ready
