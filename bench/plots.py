"""The ratios as pictures: one PNG a section, bars with the smallest and largest round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.comparisons import Row

_COLUMNS = 3
_CELL_INCHES = (4.6, 2.8)


def _panel(axes: Any, title: str, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    medians = [row.ratio.median for row in rows]
    below = [row.ratio.median - row.ratio.low for row in rows]
    above = [row.ratio.high - row.ratio.median for row in rows]
    axes.bar(places, medians, yerr=[below, above], capsize=2, color="#4878a8", ecolor="#333333")
    axes.axhline(1.0, color="#b04040", linewidth=0.8)
    axes.set_title(title, fontsize=8)
    axes.set_xticks(list(places), [row.shape for row in rows], rotation=60, fontsize=6, ha="right")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylabel("ratio", fontsize=7)
    if max(row.ratio.high for row in rows) > 20 * max(min(medians), 1e-9):
        axes.set_yscale("log")


def _file_name(section: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in section.lower())
    return "-".join(part for part in kept.split("-") if part) + ".png"


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the pictures; none where matplotlib, the [bench] extra, is not installed."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for section, of_section in groupby(rows, key=lambda row: row.section):
        panels = [
            (title, list(of_title))
            for title, of_title in groupby(of_section, key=lambda row: row.title)
        ]
        height = math.ceil(len(panels) / _COLUMNS)
        size = (_CELL_INCHES[0] * _COLUMNS, _CELL_INCHES[1] * height)
        figure, grid = pyplot.subplots(
            height, _COLUMNS, figsize=size, squeeze=False, layout="constrained"
        )
        for axes, panel in zip(grid.flat, panels, strict=False):
            _panel(axes, *panel)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.suptitle(f"{section}: median ratio over the rounds, and its spread", fontsize=10)
        path = folder / _file_name(section)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        paths.append(path)
    return paths
