"""Writes the results of a run: results.json with every round, table.md with the ratios."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.comparisons import Row, rows_of
from bench.rounds import Table

_HEAD = """\
All contenders ran in the same run, in turns; each number is the median over the rounds, and in
brackets the smallest and largest. A ratio is computed within each round: of the rates over all its
calls, and beside it of its median calls, which a disturbance of the machine moves less. Only ratios
are worth quoting: the absolute numbers belong to this machine on this day."""


@dataclass(frozen=True)
class Section:
    """A table of its own: rows of cells under named columns, with notes below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    raw: Any = None  # what the cells were made from, for results.json


@dataclass
class Results:
    """All results of a run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    contenders: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "settings": self.settings,
            "versions": self.versions,
            "contenders": self.contenders,
            "notes": self.notes,
            "ratios": [row.to_json() for row in rows_of(self.tables)],
            "sections": [asdict(section) for section in self.sections],
            "rounds": [asdict(table) for table in self.tables],
        }


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _cells(row: Row) -> list[str]:
    return [
        row.shape,
        f"{row.ours.median:.3g}",
        f"{row.theirs.median:.3g}",
        str(row.ratio),
        "" if row.p50_ratio is None else str(row.p50_ratio),
        f"{row.ours_us.p50:,.1f} / {row.ours_us.p99:,.1f}",
        f"{row.theirs_us.p50:,.1f} / {row.theirs_us.p99:,.1f}",
    ]


def _ratios(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for section, of_section in groupby(rows, key=lambda row: row.section):
        lines += ["", f"## {section}"]
        for title, of_title in groupby(of_section, key=lambda row: row.title):
            group = list(of_title)
            unit = group[0].unit
            columns = ["size x batch", f"ours {unit}", f"theirs {unit}", "ratio"]
            columns += ["ratio of median calls", "ours p50 / p99 us", "theirs p50 / p99 us"]
            lines += ["", f"**{title}**", "", *_table(columns, map(_cells, group))]
    return lines


def _at_a_glance(rows: Sequence[Row]) -> list[str]:
    """The medians of all ratios on one table: a comparison a line, a shape a column."""

    def cell(row: Row) -> str:
        of_calls = "" if row.p50_ratio is None else f" ({row.p50_ratio.median:.3g})"
        return f"{row.ratio.median:.3g}{of_calls}"

    shapes = list(dict.fromkeys(row.shape for row in rows))
    medians: dict[str, dict[str, str]] = {}
    for row in rows:
        medians.setdefault(row.title, {})[row.shape] = cell(row)
    cells = [[title, *(of.get(shape, "") for shape in shapes)] for title, of in medians.items()]
    head = ["", "## Ratios at a glance", "", "In brackets: of the median calls.", ""]
    return head + _table(["ratio of rates", *shapes], cells)


def markdown(results: Results) -> str:
    """The whole report as one page."""
    lines = ["# kvstore benchmark", "", _HEAD, ""]
    facts = {**results.machine, **results.settings, **results.versions}
    lines += _table(["what", "value"], [[name, str(value)] for name, value in facts.items()])
    lines += ["", *[f"* **{name}**: {about}" for name, about in results.contenders.items()]]
    lines += ["", *[f"* {note}" for note in results.notes]]
    if rows := rows_of(results.tables):
        lines += _at_a_glance(rows) + _ratios(rows)
    for section in results.sections:
        lines += ["", f"## {section.title}", "", *_table(section.columns, section.rows)]
        lines += ["", *[f"* {note}" for note in section.notes]]
    foreign = [share for table in results.tables for share in table.foreign_cpu]
    if foreign:
        share = f"{statistics.median(foreign):.0%} (at most {max(foreign):.0%})"
        lines += ["", f"Other processes took {share} of the processors in a round."]
    return "\n".join(lines) + "\n"


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("results.json").write_text(json.dumps(results.to_json(), indent=1) + "\n")
    folder.joinpath("table.md").write_text(markdown(results))
