"""The master's metrics (kvstore_cluster_*) and readiness over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvstore import activity
from kvstore.master.core_api import CoreNamespace, MasterCoreApi
from kvstore.master.journal import Journal
from kvstore.master.model import Cluster, NodeState
from kvstore.master.registry import Registry
from kvstore.metrics import Counter, Gauge, Labelled, by_label, families
from kvstore.tasks import Readiness

MOST_TENANTS: Final = 100
"""Tenants with metrics of their own."""
ROWS = (
    Gauge("kvstore_cluster_objects", "objects", "Objects that can be read."),
    Gauge(
        "kvstore_cluster_object_bytes",
        "object_bytes",
        "Bytes of these objects, each object's once.",
    ),
    Gauge(
        "kvstore_cluster_unreachable_objects",
        "unreachable_objects",
        "Further objects that only nodes hold which are down.",
    ),
    Gauge("kvstore_cluster_replicas", "replicas", "Replicas on living nodes."),
    Gauge("kvstore_cluster_tombstones", "tombstones", "Removed keys still remembered."),
    Gauge(
        "kvstore_cluster_namespaces_known",
        "namespaces",
        "Namespaces that exist: written to, waited for, or flushed before.",
    ),
    Gauge(
        "kvstore_cluster_directory_memory_bytes",
        "directory_memory_bytes",
        "Memory used by the directory, keys included.",
    ),
    Labelled(
        "kvstore_cluster_lookups_total",
        "lookups",
        "result",
        "Keys looked up, by hit or miss reason.",
    ),
    Gauge("kvstore_cluster_claims_granted", "claims_granted_now", "Writes in progress."),
    Gauge(
        "kvstore_cluster_claims_waiting",
        "claims_waiting_now",
        "Writes that wait for another write of their key.",
    ),
    Gauge(
        "kvstore_cluster_claims_limbo", "claims_limbo_now", "Claims of nodes whose link is down."
    ),
    Counter("kvstore_cluster_claims_granted_total", "claims_granted", "Claims granted."),
    Counter(
        "kvstore_cluster_claims_exists_total", "claims_exists", "Claims answered AlreadyExists."
    ),
    Counter(
        "kvstore_cluster_claims_inherited_total",
        "claims_inherited",
        "Claims inherited from a failed writer.",
    ),
    Counter(
        "kvstore_cluster_claims_expired_total",
        "claims_expired",
        "Claims that reached their deadline.",
    ),
    Gauge("kvstore_cluster_copies_queued", "copies_queued", "Copies waiting to be ordered."),
    Gauge("kvstore_cluster_copies_in_flight", "copies_in_flight", "Copies in progress."),
    Counter("kvstore_cluster_copies_done_total", "copies_done", "Copies made."),
    Counter("kvstore_cluster_copies_failed_total", "copies_failed", "Copies that failed."),
    Counter("kvstore_cluster_copies_given_up_total", "copies_given_up", "Copies abandoned."),
    Gauge("kvstore_cluster_operations_pending", "ops_pending", "Entries in the remove log."),
    Gauge("kvstore_cluster_waits_pending", "waits_pending", "Removes waiting for holders."),
    Gauge(
        "kvstore_cluster_lookups_waiting",
        "lookups_waiting_now",
        "Lookups waiting for keys (wait_ms).",
    ),
    Counter("kvstore_cluster_announced_total", "announced", "Replicas announced."),
    Counter(
        "kvstore_cluster_announces_refused_total", "announces_refused", "Announcements refused."
    ),
    Counter("kvstore_cluster_withdrawn_total", "withdrawn", "Replicas withdrawn."),
    Counter("kvstore_cluster_removes_total", "removes", "Keys removed."),
    Counter("kvstore_cluster_flushes_total", "flushes", "Namespaces flushed."),
    Gauge("kvstore_cluster_connections", "connections", "Open block-port connections."),
    Counter("kvstore_cluster_frames_in_total", "frames_in", "Frames received."),
    Counter("kvstore_cluster_frames_out_total", "frames_out", "Frames sent."),
    Counter("kvstore_cluster_bytes_in_total", "bytes_in", "Bytes received."),
    Counter("kvstore_cluster_bytes_out_total", "bytes_out", "Bytes sent."),
    Labelled(
        "kvstore_cluster_refusals_total",
        "refusals",
        "code",
        "Connections refused or closed for an error, by code.",
    ),
    Labelled(
        "kvstore_cluster_auth_failures_total",
        "proofs",
        "result",
        "Wrong tokens at the block port; pauses that began after several, and attempts in one.",
    ),
)


def _node_families(cluster: Cluster, replicas: Mapping[str, int]) -> Iterator[Metric]:
    columns: list[tuple[str, str, dict[str, float]]] = [
        (
            "kvstore_cluster_node_capacity_bytes",
            "Bytes of the node that are ready for objects.",
            {n.node_id: n.capacity_bytes for n in cluster.nodes.values()},
        ),
        (
            "kvstore_cluster_node_used_bytes",
            "Bytes of the node that are in use.",
            {n.node_id: n.used_bytes for n in cluster.nodes.values()},
        ),
        (
            "kvstore_cluster_node_replicas",
            "Replicas recorded on the node.",
            {n: float(count) for n, count in replicas.items()},
        ),
        (
            "kvstore_cluster_node_up",
            "1 while the node is registered.",
            {n.node_id: float(n.session_id != 0) for n in cluster.nodes.values()},
        ),
    ]
    for name, text, values in columns:
        yield by_label(GaugeMetricFamily(name, text, labels=["node"]), values)
    states = dict.fromkeys((state.name.lower() for state in NodeState), 0)
    for node in cluster.nodes.values():
        states[node.state.name.lower()] += 1
    yield by_label(
        GaugeMetricFamily("kvstore_cluster_nodes", "Known nodes by state.", labels=["state"]),
        states,
    )


def _namespace_families(uses: list[CoreNamespace], most: int) -> Iterator[Metric]:
    """Of the namespaces with the most bytes: there may be thousands."""
    uses.sort(key=lambda one: (-one["bytes"], one["tenant"], one["namespace"]))
    labels = ["tenant", "namespace"]
    objects = GaugeMetricFamily(
        "kvstore_cluster_namespace_objects",
        "Objects of a namespace (the metric_namespaces largest ones).",
        labels=labels,
    )
    size = GaugeMetricFamily(
        "kvstore_cluster_namespace_bytes",
        "Bytes of the objects of a namespace, each object's once.",
        labels=labels,
    )
    lookups = CounterMetricFamily(
        "kvstore_cluster_namespace_lookups",
        "Keys looked up at the master, by whether they were found. Hits in a host's own memory "
        "do not reach the master.",
        labels=[*labels, "result"],
    )
    for one in uses[:most]:
        names = [one["tenant"], one["namespace"]]
        objects.add_metric(names, one["objects"])
        size.add_metric(names, one["bytes"])
        lookups.add_metric([*names, "hit"], one["keys_found"])
        lookups.add_metric([*names, "miss"], one["keys_looked_up"] - one["keys_found"])
    yield from (objects, size, lookups)
    yield GaugeMetricFamily(
        "kvstore_cluster_namespaces",
        "Namespaces with objects.",
        sum(1 for one in uses if one["objects"]),
    )


class TenantLookups:
    """Adds up the lookups of each tenant's namespaces, which come and go with their counters.

    The first tenants have a series of their own; all others share that of "", which names no
    tenant. Nobody's count ever falls, as that would look like a restart.
    """

    def __init__(self) -> None:
        """Start with all counts at 0."""
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[int, int]] = {}
        self._totals: dict[str, tuple[int, int]] = {}

    def families(self, uses: list[CoreNamespace]) -> Iterator[Metric]:
        """Collect the metric.

        Args:
            uses: every namespace that exists.
        """
        family = CounterMetricFamily(
            "kvstore_cluster_tenant_lookups",
            "Keys of a tenant looked up at the master, by whether they were found.",
            labels=["tenant", "result"],
        )
        with self._lock:
            self._add(uses)
            for tenant, (found, missed) in self._totals.items():
                family.add_metric([tenant, "hit"], found)
                family.add_metric([tenant, "miss"], missed)
        yield family

    def _add(self, uses: list[CoreNamespace]) -> None:
        seen = {}
        for one in uses:
            key = (one["tenant"], one["namespace"])
            now = (one["keys_found"], one["keys_looked_up"] - one["keys_found"])
            before = self._seen.get(key, (0, 0))
            if now[0] < before[0] or now[1] < before[1]:
                before = (0, 0)  # it went, and came again
            tenant = one["tenant"]
            if tenant not in self._totals and len(self._totals) >= MOST_TENANTS:
                tenant = ""
            found, missed = self._totals.get(tenant, (0, 0))
            self._totals[tenant] = (found + now[0] - before[0], missed + now[1] - before[1])
            seen[key] = now
        self._seen = seen


def collector(
    core: MasterCoreApi,
    registry: Registry,
    journal: Journal,
    calls: Mapping[tuple[str, str], int],
    most_namespaces: Callable[[], int],
) -> Callable[[], Iterator[Metric]]:
    """Make the function that collects the master's metrics.

    Args:
        core: its counters.
        registry: the nodes.
        journal: its counters.
        calls: finished gRPC calls by (method, status).
        most_namespaces: how many namespaces have metrics of their own.
    """
    tenants = TenantLookups()

    def collect() -> Iterator[Metric]:
        stats: dict[str, Any] = core.stats()
        yield from families(ROWS, stats)
        cluster = registry.cluster
        yield from _node_families(cluster, {n["node_id"]: n["replicas"] for n in core.nodes()})
        uses = core.namespace_uses()
        yield from _namespace_families(uses, most_namespaces())
        yield from tenants.families(uses)
        told = {node_id: node.activity for node_id, node in cluster.nodes.items()}
        yield from activity.families("kvstore_cluster", told, "node")
        yield GaugeMetricFamily(
            "kvstore_cluster_rebuilding",
            "1 until the known nodes have announced their objects.",
            cluster.rebuilding,
        )
        yield CounterMetricFamily(
            "kvstore_cluster_journal_written", "Operations made durable.", journal.written
        )
        yield CounterMetricFamily(
            "kvstore_cluster_journal_failures",
            "Batches that could not be written.",
            journal.failures,
        )
        yield GaugeMetricFamily(
            "kvstore_cluster_journal_full",
            "1 while removes and flushes are refused, as the disk has no room for them.",
            bool(journal.refusal),
        )
        rpc = CounterMetricFamily(
            "kvstore_cluster_rpc", "Finished gRPC calls.", labels=["method", "status"]
        )
        for (method, status), count in list(calls.items()):
            rpc.add_metric([method, status], count)
        yield rpc

    return collect


def readiness(registry: Registry) -> Readiness:
    """Make /readyz: not ready while the directory is being rebuilt, which delays puts."""

    def ready() -> tuple[bool, dict[str, Any]]:
        cluster = registry.cluster
        return not cluster.rebuilding, {
            "rebuilding": cluster.rebuilding,
            "awaited_nodes": sorted(cluster.awaited),
        }

    return ready
