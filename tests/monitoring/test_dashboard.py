"""The dashboard: valid for Grafana, and every panel has data while a cluster works."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.panels import dashboard, expand, panels, scraped_cluster
from tests.support.documents import ROOT
from tests.support.processes import wait_for
from tests.support.prometheus import Prometheus, program, promtool

README = ROOT / "deploy/monitoring/README.md"
SHOWN = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    program("prometheus")
    with scraped_cluster(tmp_path_factory.mktemp("scraped")) as running:
        yield running


def values(result: list[dict[str, Any]]) -> list[float]:
    return [float(series["value"][1]) for series in result]


@pytest.mark.cluster
@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel.title)
def test_a_panel_has_data(panel: Any, prometheus: Prometheus) -> None:
    for expression in panel.expressions:

        def shown(asked: str = expression) -> list[float]:
            return [value for value in values(prometheus.query(asked)) if not math.isnan(value)]

        found = wait_for(shown, f"{panel.title}: data of {expression}", 60, poll_s=0.5)
        if panel.unit == "percentunit":
            assert all(0 <= value <= 1 for value in found), f"{panel.title}: {found}"


@pytest.mark.cluster
def test_the_rules_have_values_and_no_alert_of_a_fault_fires(prometheus: Prometheus) -> None:
    text = (ROOT / "deploy/monitoring/rules.yml").read_text()
    recorded = re.findall(r"record: (\S+)", text)
    assert len(recorded) == 6
    for name in recorded:
        wait_for(lambda name=name: prometheus.query(name), f"a value of {name}", 60, poll_s=0.5)  # type: ignore[misc]
    firing = prometheus.query('ALERTS{alertstate="firing"}')
    assert not firing, firing


def test_every_expression_is_valid_and_of_known_metrics(tmp_path: Path) -> None:
    known = set(re.findall(r"^\| `(\w+)` \|", README.read_text(), re.M))
    expressions = [target["expr"] for panel in SHOWN for target in panel["targets"]]
    for expression in expressions:
        names = set(re.findall(r"\b(?:kvstore|process)_\w+", expression))
        assert names, expression
        assert {name.removesuffix("_bucket") for name in names} <= known, expression
        selectors = re.findall(r'\b(?:kvstore|process)_\w+(?!\{cluster=~"\$cluster")\b', expression)
        assert not selectors, f"{expression}: of every cluster"
    assert not checked(tmp_path, [expand(expression) for expression in expressions])
    assert checked(tmp_path, ["sum(rate(kvstore_objects[5m])"]), "the checker checks nothing"


def checked(folder: Path, expressions: list[str]) -> str:
    """What promtool says against the expressions; "" when they are valid."""
    rules = [{"record": "checked", "expr": f"{one} # {i}"} for i, one in enumerate(expressions)]
    path = folder / "expressions.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool(), "check", "rules", str(path)], capture_output=True, text=True, timeout=60
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_grafana_can_load_it() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 36 and board["uid"] and board["title"]
    variables = {one["name"] for one in board["templating"]["list"]}
    every = board["panels"]
    for field in ("id", "title"):
        seen = [panel[field] for panel in every]
        assert len(set(seen)) == len(seen), f"two panels have the same {field}"
    for panel in SHOWN:
        assert panel["type"] in ("stat", "timeseries", "table")
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"]
        assert [target["refId"] for target in panel["targets"]] == sorted(
            {target["refId"] for target in panel["targets"]}
        )
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        columns = range(at["x"], at["x"] + at["w"])
        for cell in itertools.product(columns, range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]
