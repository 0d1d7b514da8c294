"""A node's activity, from its native counters and those of its host's clients.

Clients cannot be scraped: they count in shared memory, and the node adds the counts up. Hits and
misses are therefore reported twice, distinguished by `seen_by`: requests that the node answered
over sockets, and reads by the clients of its host, from shared memory and from any node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvstore._proto import node_pb2
from kvstore.activity import OPERATIONS, Activity, Labels
from kvstore.metrics import Latency

MISSES = "misses_"
"""Prefix of the clients' counters of misses; the reason follows."""
# Family, label values and key of the node's counters.
_OF_NODE: tuple[tuple[str, Labels, str], ...] = (
    ("hits", ("node", "socket"), "hits"),
    ("bytes", ("put", "shm"), "put_bytes_shm"),
    ("bytes", ("put", "socket"), "put_bytes_tcp"),
    ("bytes", ("get", "socket"), "get_bytes_tcp"),
    ("bytes", ("put", "ucx"), "put_bytes_ucx"),
    ("bytes", ("get", "ucx"), "get_bytes_ucx"),
    ("bytes", ("copy_in", "socket"), "copy_bytes_in"),
    ("bytes", ("copy_out", "socket"), "copy_bytes_out"),
    ("puts", ("ok",), "puts_ok"),
    ("puts", ("exists",), "puts_exist"),
    ("puts", ("failed",), "puts_failed"),
    ("tier_hits", ("nvme",), "hits_nvme"),
    ("evictions", (), "evictions"),
    ("evicted_bytes", (), "evicted_bytes"),
)
_OF_CLIENTS: tuple[tuple[str, Labels, str], ...] = (
    ("hits", ("client", "shm"), "hits_shm"),
    ("hits", ("client", "socket"), "hits_socket"),
    ("hits", ("client", "ucx"), "hits_ucx"),
    ("bytes", ("get", "shm"), "bytes_read_shm"),
)
_HITS = ("hits_shm", "hits_socket", "hits_ucx")
_READ_BYTES = ("bytes_read_shm", "bytes_read_socket", "bytes_read_ucx")
_MOST_TENANTS = 16

Clients = Sequence[Mapping[str, Any]]
"""Of NodeCoreApi.client_counters()."""


def of(stats: Mapping[str, Any], clients: Clients) -> Activity:
    """Collect the counters under their names.

    Args:
        stats: the node's, of NodeCoreApi.stats().
        clients: its clients'.
    """
    counters = {(family, labels): stats[key] for family, labels, key in _OF_NODE}
    counters |= {(family, labels): _sum(clients, key) for family, labels, key in _OF_CLIENTS}
    for reason, count in stats["misses"].items():
        counters["misses", ("node", reason)] = count
        counters["misses", ("client", reason)] = _sum(clients, f"{MISSES}{reason}")
    counters["tier_hits", ("dram",)] = stats["hits_dram"] + _sum(clients, "hits_shm")
    counters |= _causes(stats) | _of_tenants(clients)
    histograms = {operation: stats[f"{operation}_us"] for operation in OPERATIONS}
    latencies = {
        operation: Latency(tuple(histogram["buckets"]), histogram["sum"])
        for operation, histogram in histograms.items()
    }
    return Activity(counters, latencies)


def _causes(stats: Mapping[str, Any]) -> dict[tuple[str, Labels], int]:
    """Tell apart why objects went; the native count of evictions includes those for the index."""
    nvme = stats["nvme"] or {}
    by_cause = {
        "memory": stats["evictions"] - stats["index_evictions"],
        "index": stats["index_evictions"],
        "nvme": nvme.get("dropped_objects", 0),
        "expired": stats["expirations"],
    }
    return {("evictions_by_cause", (cause,)): count for cause, count in by_cause.items()}


def _of_tenants(clients: Clients) -> dict[tuple[str, Labels], int]:
    """Add up what each tenant read; a report has room for some tenants only."""
    hits: dict[str, int] = {}
    read: dict[str, int] = {}
    for client in clients:
        tenant, counters = client["tenant"], client["counters"]
        hits[tenant] = hits.get(tenant, 0) + sum(counters.get(name, 0) for name in _HITS)
        read[tenant] = read.get(tenant, 0) + sum(counters.get(name, 0) for name in _READ_BYTES)
    hits.pop("", None)  # of clients that have not said yet who they are
    most = sorted(hits, key=lambda tenant: (-hits[tenant], tenant))[:_MOST_TENANTS]
    found: dict[tuple[str, Labels], int] = {
        ("tenant_hits", (tenant,)): hits[tenant] for tenant in most
    }
    return found | {("tenant_read_bytes", (tenant,)): read[tenant] for tenant in most}


def _sum(clients: Clients, name: str) -> int:
    return sum(client["counters"].get(name, 0) for client in clients)


def to_wire(activity: Activity) -> node_pb2.Activity:
    """Convert to the heartbeat's message; zeros are left out."""
    return node_pb2.Activity(
        counters=[
            node_pb2.Activity.Counter(family=family, labels=labels, value=value)
            for (family, labels), value in activity.counters.items()
            if value
        ],
        latencies=[
            node_pb2.Activity.Latency(
                operation=operation,
                bounds_us=[bound for bound, _ in latency.buckets],
                counts=[count for _, count in latency.buckets],
                sum_us=latency.sum_us,
            )
            for operation, latency in activity.latencies.items()
            if latency.buckets
        ],
    )
