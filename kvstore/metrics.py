"""Prometheus metrics from the native side's counters: tables of names, one collector."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kvstore import __version__

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Upper bounds that are exported, in seconds. The native buckets (four to a power of two, in
# microseconds) are finer; each is counted at the first bound that is not below its own.
LATENCY_BOUNDS_S: Final = (
    *(10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3),
    *(50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class Counter(NamedTuple):
    """A monotonic counter; its name ends in ``_total``."""

    name: str
    key: str
    """Of the stats dictionary."""
    help: str


class Gauge(NamedTuple):
    """A value that goes up and down."""

    name: str
    key: str
    help: str


class Labelled(NamedTuple):
    """A counter per value of one label; the stats hold a dictionary."""

    name: str
    key: str
    label: str
    help: str


class LabelledGauge(NamedTuple):
    """A gauge per value of one label; the stats hold a dictionary."""

    name: str
    key: str
    label: str
    help: str


Row = Counter | Gauge | Labelled | LabelledGauge


Labelable = CounterMetricFamily | GaugeMetricFamily


class Latency(NamedTuple):
    """A native histogram of microseconds."""

    buckets: tuple[tuple[int, int], ...]
    """(upper bound, count) of the buckets that are not empty, ascending."""
    sum_us: int


def families(rows: Iterable[Row], stats: Mapping[str, Any]) -> Iterator[Metric]:
    """Turn a table of rows into metrics.

    Args:
        rows: name, key and help of each.
        stats: the native side's counters.

    Yields:
        One metric family per row.
    """
    for row in rows:
        match row:
            case Counter(name, key, text):
                yield CounterMetricFamily(name.removesuffix("_total"), text, value=stats[key])
            case Gauge(name, key, text):
                yield GaugeMetricFamily(name, text, value=stats[key])
            case Labelled(name, key, label, text):
                yield by_label(
                    CounterMetricFamily(name.removesuffix("_total"), text, labels=[label]),
                    stats[key],
                )
            case LabelledGauge(name, key, label, text):
                yield by_label(GaugeMetricFamily(name, text, labels=[label]), stats[key])


def by_label(family: Labelable, values: Mapping[str, float]) -> Metric:
    """Fill a family of one label.

    Args:
        family: without values.
        values: by the label's values.

    Returns:
        The family.
    """
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def latency_family(
    name: str, text: str, labels: Sequence[str], latencies: Mapping[tuple[str, ...], Latency]
) -> Metric:
    """Convert native histograms of microseconds to one of seconds.

    Args:
        name: of the metric, ending in ``_seconds``.
        text: its help.
        labels: names of the labels that distinguish the histograms.
        latencies: by label values.
    """
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, latency in latencies.items():
        counts = cumulate(latency.buckets, LATENCY_BOUNDS_S)
        family.add_metric(values, counts, sum_value=latency.sum_us / 1e6)
    return family


def cumulate(
    buckets: Sequence[tuple[int, int]], bounds_s: Sequence[float]
) -> list[tuple[str, float]]:
    """Count native buckets at exported bounds, cumulatively, as the text format requires.

    Args:
        buckets: (upper bound in µs, count), ascending.
        bounds_s: exported bounds, ascending.

    Returns:
        (bound as text, values at or below it), the last one "+Inf".
    """
    result: list[tuple[str, float]] = []
    position, total = 0, 0
    for bound in bounds_s:
        while position < len(buckets) and buckets[position][0] <= bound * 1e6:
            total += buckets[position][1]
            position += 1
        result.append((f"{bound:g}", total))
    return [*result, ("+Inf", total + sum(count for _, count in buckets[position:]))]


class _Collector(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is collected at registration


def build_info() -> Iterator[Metric]:
    """Say which build this process runs; the value is always 1."""
    family = GaugeMetricFamily(
        "kvstore_build_info", "The build that runs.", labels=["version", "python"]
    )
    family.add_metric([__version__, platform.python_version()], 1)
    yield family


def renderer(*collects: Callable[[], Iterable[Metric]]) -> Callable[[], bytes]:
    """Make the function that writes a process's metrics.

    Args:
        collects: each yields the current metrics.

    Returns:
        A function that returns the text format, including the metrics of the process (CPU, memory,
        descriptors).
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collect in (build_info, *collects):
        registry.register(_Collector(collect))
    return lambda: generate_latest(registry)
