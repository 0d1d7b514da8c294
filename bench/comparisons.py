"""Names the rows that are compared: the ratios that the report quotes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.rounds import Table
from bench.sample import Sample, Spread, best, rate_ratio, time_ratio

Source = tuple[str, str]  # contender, operation
SHM, TCP, EMBEDDED = "kvstore-shm", "kvstore-tcp", "kvstore-embedded"
MOONCAKE, MOONCAKE_LOCAL, REDIS = "mooncake-tcp", "mooncake-in-process", "redis"
GET_LIMIT = (("limits", "copy get plain"), ("limits", "copy get nt"))
PUT_LIMIT = (("limits", "copy put plain"), ("limits", "copy put nt"))
STREAM = (("limits", "tcp stream"),)


@dataclass(frozen=True)
class Comparison:
    """Compares ours with the best of `theirs`, where both were measured."""

    section: str
    title: str
    ours: Source
    theirs: tuple[Source, ...]
    unit: str = "GB/s"


def _against_limits() -> list[Comparison]:
    same_host, network = "Same host, against memcpy", "Forced TCP, against one raw stream"
    rows = []
    for name in (SHM, EMBEDDED):
        rows += [
            Comparison(same_host, f"{name} get_into / memcpy", (name, "get"), GET_LIMIT),
            Comparison(same_host, f"{name} put_from / memcpy", (name, "put_from"), PUT_LIMIT),
            Comparison(same_host, f"{name} put / memcpy", (name, "put"), PUT_LIMIT),
        ]
    return [
        *rows,
        Comparison(network, f"{TCP} get_into / raw stream", (TCP, "get"), STREAM),
        Comparison(network, f"{TCP} put_from / raw stream", (TCP, "put_from"), STREAM),
        Comparison(network, f"{TCP} put / raw stream", (TCP, "put"), STREAM),
        Comparison(
            network,
            f"{TCP} get_into / raw request and reply",
            (TCP, "get"),
            (("limits", "tcp get"),),
        ),
        *[
            Comparison(
                network,
                f"{TCP} {name} / raw put, answer awaited",
                (TCP, name),
                (("limits", "tcp put"),),
            )
            for name in ("put_from", "put")
        ],
    ]


def _against_peers() -> list[Comparison]:
    section = "Against the peers"
    rows = []
    both = ("put_from", "put")
    for ours, peer, puts in (
        (SHM, MOONCAKE, both),
        (TCP, MOONCAKE, both),
        (EMBEDDED, MOONCAKE_LOCAL, both),
        (SHM, REDIS, ("put",)),
        (TCP, REDIS, ("put",)),
    ):
        title = f"{ours} / {peer}"
        rows += [
            Comparison(section, f"{title} get_into", (ours, "get"), ((peer, "get"),)),
            *[Comparison(section, f"{title} {put}", (ours, put), ((peer, put),)) for put in puts],
        ]
        rows += [
            Comparison(section, f"{title} {name}", (ours, asks), ((peer, asks),), "M keys/s")
            for name, asks in (("exists, present", "exists"), ("exists, absent", "absent"))
        ]
    return rows


COMPARISONS = (*_against_limits(), *_against_peers())


@dataclass(frozen=True)
class Times:
    """Of one call: medians over the rounds of a round's median and 99th percentile."""

    p50: float
    p99: float

    @staticmethod
    def of(samples: Sequence[Sample]) -> Times:
        return Times(
            statistics.median(sample.p50_ns / 1000 for sample in samples),
            statistics.median(sample.p99_ns / 1000 for sample in samples),
        )


@dataclass(frozen=True)
class Row:
    """One comparison at one shape."""

    section: str
    title: str
    shape: str
    size: int
    batch: int
    unit: str
    ours: Spread
    theirs: Spread
    ratio: Spread
    p50_ratio: Spread | None  # of the rates of each round's median call; None against a stream
    ours_us: Times
    theirs_us: Times

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _rates(samples: Sequence[Sample], unit: str) -> Spread:
    if unit == "GB/s":
        return Spread.of([sample.gbps for sample in samples])
    return Spread.of([sample.keys_per_s / 1e6 for sample in samples])


def compare(comparison: Comparison, table: Table) -> Row | None:
    """The row of a comparison; None where there is nothing to compare."""
    ours = table.get(*comparison.ours)
    theirs = [samples for source in comparison.theirs if (samples := table.get(*source))]
    if not ours or not theirs or any(len(samples) != len(ours) for samples in theirs):
        return None  # one side did not take part, or a peer failed on the way
    fastest = best(*theirs)
    return Row(
        section=comparison.section,
        title=comparison.title,
        shape=str(table.shape),
        size=table.shape.size,
        batch=table.shape.batch,
        unit=comparison.unit,
        ours=_rates(ours, comparison.unit),
        theirs=_rates(fastest, comparison.unit),
        ratio=rate_ratio(ours, fastest),
        # A stream's calls end when the last byte arrives, not one duration after they began.
        p50_ratio=None if comparison.theirs == STREAM else time_ratio(fastest, ours),
        ours_us=Times.of(ours),
        theirs_us=Times.of(fastest),
    )


def rows_of(tables: Sequence[Table]) -> list[Row]:
    """Every comparison that these tables allow, in the order they are printed."""
    rows = [compare(comparison, table) for comparison in COMPARISONS for table in tables]
    return [row for row in rows if row is not None]
