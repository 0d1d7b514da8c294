"""Prometheus metrics of the stores of a process: what an engine's own clients have counted.

A node adds up the clients of its host by tenant. Here each store counts for itself, also where no
node of its host maps memory to it.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.errors import InvalidArgumentError

MOST_STORES: Final = 100
"""Pairs of tenant and namespace with metrics of their own; further ones count as ("", "")."""
_REST: Final = ("", "")
_PORTS = 64


class _Family(NamedTuple):
    """A counter, and its labels beside tenant and namespace."""

    labels: tuple[str, ...]
    help: str


_FAMILIES: Final[Mapping[str, _Family]] = {
    "hits": _Family(("path",), "Keys read by this process's stores, by the way their bytes came."),
    "misses": _Family(("reason",), "Keys that this process's stores did not find, by reason."),
    "bytes": _Family(("operation", "path"), "Object bytes that this process's stores moved."),
    "puts": _Family(("result",), "Finished puts of this process: ok, exists or failed."),
    "wrong_checksums": _Family((), "Copies refused because their bytes were not those put."),
    "retries": _Family((), "Reads that went on to another replica, puts that were tried again."),
    "sought_keys": _Family(
        ("result",), "Keys of a prefix or size that was asked for: present, or absent."
    ),
    "lookups": _Family((), "Requests sent to the master."),
    "master_failures": _Family((), "Requests to the master without an answer."),
    "views": _Family((), "Views opened."),
    "leases": _Family((), "Leases taken."),
}

Names = tuple[str, str]
"""Tenant and namespace."""
Series = tuple[str, tuple[str, ...]]
"""A name of _FAMILIES and the values of its labels."""


class Counted(Protocol):
    """A Store or an AsyncStore."""

    @property
    def tenant(self) -> str:
        """Whose objects these are."""

    @property
    def namespace(self) -> str:
        """The set of compatible objects."""

    @property
    def closed(self) -> bool:
        """Whether it counts no more."""

    def counters(self) -> Mapping[str, Any]:
        """Return the counters of Store.counters."""


def register(store: Counted, registry: CollectorRegistry = REGISTRY) -> None:
    """Export a store's counters as ``kvstore_store_*``, with its tenant and namespace as labels.

    Stores of the same tenant and namespace are added up. A scrape reads memory of this process and
    asks nobody. A closed store is let go of; what it counted stays.

    Args:
        store: to export; several may be registered, each once.
        registry: that the process exposes.
    """
    with _lock:
        stores = _registered.get(registry)
        if stores is None:
            stores = _registered[registry] = _Stores()
            registry.register(stores)
    stores.add(store)


def serve(store: Counted, address: str) -> int:
    """Export a store at a port of this process, for engines that expose nothing themselves.

    The first call starts an HTTP server; later ones add their stores to it, whatever their address.

    Args:
        store: to export, as `register` does.
        address: "HOST:PORT"; where the port is taken, as by another rank of the engine, the next
            free one of 64 is.

    Returns:
        The port.

    Raises:
        InvalidArgumentError: The address is none, or none of these ports can be bound.
    """
    global _served
    with _lock:
        if _served is None:
            registry = CollectorRegistry()
            _served = registry, _listen(address, registry)
        registry, port = _served
    register(store, registry)
    return port


def _listen(address: str, registry: CollectorRegistry) -> int:
    host, _, first = address.rpartition(":")
    if not host or not first.isascii() or not first.isdigit() or not 0 < int(first) < 65536:
        raise InvalidArgumentError(f"{address!r} is not HOST:PORT")
    host = host.removeprefix("[").removesuffix("]")
    why = "there is no such port"
    for port in range(int(first), min(int(first) + _PORTS, 65536)):
        try:
            start_http_server(port, host, registry)
            return port
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno != errno.EADDRINUSE:
                break
    raise InvalidArgumentError(f"metrics at {address}: {why}")


class _Stores(Collector):
    """The stores of one registry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[tuple[Names, Counted]] = []
        self._closed: dict[Names, Counter[Series]] = {}

    def add(self, store: Counted) -> None:
        names = (store.tenant, store.namespace)
        with self._lock:
            if any(known is store for _, known in self._open):
                return
            if names not in self._closed and len(self._closed) >= MOST_STORES:
                names = _REST
            self._closed.setdefault(names, Counter())
            self._open.append((names, store))

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        for name, family in _FAMILIES.items():
            metric = CounterMetricFamily(
                f"kvstore_store_{name}",
                family.help,
                labels=["tenant", "namespace", *family.labels],
            )
            for names, series in counts.items():
                for (counted, values), count in series.items():
                    if counted == name:
                        metric.add_metric([*names, *values], count)
            yield metric

    def describe(self) -> Iterator[Metric]:
        return iter(())  # nothing is collected at registration

    def _counts(self) -> dict[Names, Counter[Series]]:
        with self._lock:
            still_open = []
            for names, store in self._open:
                if store.closed:
                    self._closed[names].update(_series(store.counters()))
                else:
                    still_open.append((names, store))
            self._open = still_open
            counts = {names: Counter(series) for names, series in self._closed.items()}
            for names, store in still_open:
                counts[names].update(_series(store.counters()))
        return counts


def _series(counted: Mapping[str, Any]) -> dict[Series, int]:
    """Give the counters of a store the names and labels of the metrics."""
    series: dict[Series, int] = {}
    for path, suffix in (("shm", "shm"), ("socket", "tcp"), ("ucx", "ucx")):
        series["hits", (path,)] = counted[f"hits_{suffix}"]
        series["bytes", ("get", path)] = counted[f"bytes_{suffix}"]
        series["bytes", ("put", path)] = counted[f"put_bytes_{suffix}"]
    for result, name in (("ok", "ok"), ("exists", "existing"), ("failed", "failed")):
        series["puts", (result,)] = counted["puts"][name]
    present = counted["keys_present"]
    series["sought_keys", ("present",)] = present
    series["sought_keys", ("absent",)] = counted["keys_sought"] - present
    for reason, count in counted["misses"].items():
        series["misses", (reason,)] = count
    for name, family in _FAMILIES.items():
        if not family.labels:
            series[name, ()] = counted[name]
    return series


_lock = threading.Lock()
_served: tuple[CollectorRegistry, int] | None = None
"""What serve() has started, and its port."""
_registered: weakref.WeakKeyDictionary[CollectorRegistry, _Stores] = weakref.WeakKeyDictionary()
