"""Activity of nodes and their clients: one table of names for a node's and the master's metrics.

A node exports its counters as ``kvstore_*`` and reports them with every heartbeat; the master
exports the reports as ``kvstore_cluster_*``, by node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, Metric

from kvstore.metrics import Latency, latency_family


class Family(NamedTuple):
    """A counter and its labels."""

    labels: tuple[str, ...]
    help: str


FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "hits": Family(
            ("seen_by", "path"), "Keys read, by who counted and by the way their bytes came."
        ),
        "misses": Family(("seen_by", "reason"), "Keys not found, by who counted and by reason."),
        "bytes": Family(("operation", "path"), "Object bytes, by the way they went."),
        "puts": Family(("result",), "Finished puts: ok, exists or failed."),
        "tier_hits": Family(("tier",), "Keys read, by the tier that had the object."),
        "evictions": Family((), "Objects evicted."),
        "evicted_bytes": Family((), "Bytes of evicted objects."),
        "evictions_by_cause": Family(
            ("cause",),
            "Objects that went by cause: memory and index (evicted for room in either), nvme "
            "(dropped from NVMe for room), expired (their TTL has passed).",
        ),
        "tenant_hits": Family(
            ("tenant",),
            "Keys read by the clients of the node's host, of the tenants that read most.",
        ),
        "tenant_read_bytes": Family(("tenant",), "Their bytes."),
    }
)
OPERATIONS: Final = ("put", "get", "claim", "announce")
"""Operations whose latencies a node measures."""

Labels = tuple[str, ...]
"""Values of a family's labels, in their order."""


@dataclass(frozen=True)
class Activity:
    """Counts since a node's process started, those of its host's clients included."""

    counters: Mapping[tuple[str, Labels], int] = field(default_factory=lambda: MappingProxyType({}))
    """By family (a name of FAMILIES) and label values."""
    latencies: Mapping[str, Latency] = field(default_factory=lambda: MappingProxyType({}))
    """By operation (one of OPERATIONS)."""


def families(prefix: str, by_node: Mapping[str, Activity], label: str = "") -> Iterator[Metric]:
    """Turn activities into metrics.

    Args:
        prefix: of the metrics' names, without the underscore.
        by_node: activities by node id.
        label: name of the label that holds the node id; "" for none.

    Yields:
        One counter per family, and the histogram of latencies.
    """
    first = (label,) if label else ()
    for name, family in FAMILIES.items():
        metric = CounterMetricFamily(
            f"{prefix}_{name}", family.help, labels=[*first, *family.labels]
        )
        for node_id, activity in by_node.items():
            node = [node_id] if label else []
            for (counted, values), count in activity.counters.items():
                if counted == name:
                    metric.add_metric([*node, *values], count)
        yield metric
    yield latency_family(
        f"{prefix}_latency_seconds",
        "Time of an operation inside the node.",
        [*first, "operation"],
        {
            (*([node_id] if label else []), operation): latency
            for node_id, activity in by_node.items()
            for operation, latency in activity.latencies.items()
        },
    )
