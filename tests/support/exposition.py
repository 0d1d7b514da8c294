"""What processes export to Prometheus: read, and written down as the table of deploy/monitoring."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

HEADER = "| Metric | Type | Labels | Unit | Meaning |\n|---|---|---|---|---|\n"
_SUFFIXES = {"counter": "_total"}


@dataclass
class Exported:
    """One metric as it is exported, of all its samples."""

    name: str
    kind: str
    help: str
    labels: set[str] = field(default_factory=set)
    samples: dict[frozenset[tuple[str, str]], float] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        if "timestamp_seconds" in self.name or self.name == "process_start_time_seconds":
            return "seconds since 1970"
        for unit in ("bytes", "seconds"):
            if self.name.removesuffix("_total").endswith(f"_{unit}") or f"_{unit}_" in self.name:
                return unit
        return "0 or 1" if re.match(r"1 (while|when|until|for)\b", self.help) else "count"

    def row(self) -> str:
        labels = ", ".join(f"`{label}`" for label in sorted(self.labels)) or "\N{EN DASH}"
        return f"| `{self.name}` | {self.kind} | {labels} | {self.unit} | {self.help} |"


def fetch(http_port: int) -> str:
    """Read /metrics of a process of this host."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def parse(text: str) -> dict[str, Exported]:
    """Take an exposition apart, by the name that a query uses (histograms by their own)."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + _SUFFIXES.get(family.type, "")
        one = found[name] = Exported(name, family.type, family.documentation)
        for sample in family.samples:
            one.labels |= set(sample.labels) - {"le"}
            one.samples[frozenset(sample.labels.items())] = sample.value
    return found


def names_of(text: str) -> set[str]:
    """Return every name that a query may use, those of histograms' parts included."""
    return {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }


def table(metrics: Mapping[str, Exported], known: Iterable[str] = ()) -> str:
    """Write metrics as a Markdown table, without those that are `known`."""
    rows = [metrics[name].row() for name in sorted(set(metrics) - set(known))]
    return HEADER + "".join(f"{row}\n" for row in rows)


def value(metrics: Mapping[str, Exported], name: str, **labels: Any) -> float:
    """Return the value of one sample, or fail."""
    return metrics[name].samples[frozenset(labels.items())]
