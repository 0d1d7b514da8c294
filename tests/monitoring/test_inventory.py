"""deploy/monitoring/README.md lists every metric that is exported, and no other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvstore import store_metrics
from tests.support import exposition, monitored
from tests.support.cluster import Cluster
from tests.support.documents import ROOT
from tests.support.exposition import Exported
from tests.support.processes import wait_for
from tests.support.prometheus import promtool

pytestmark = pytest.mark.cluster
README = ROOT / "deploy/monitoring/README.md"
_TABLE = re.compile(r"(<!-- metrics: (\w+) -->\n)(.*?)(<!-- end of metrics -->)", re.S)


@pytest.fixture
def exported(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """The expositions of a master, a node and an engine that have done something."""
    monitored.start(cluster, tmp_path)
    registry = CollectorRegistry()
    for store in monitored.work(cluster):
        store_metrics.register(store, registry)

    def master() -> str:
        text = exposition.fetch(cluster.master.ports["http_port"])
        told = all(one.samples for one in exposition.parse(text).values())
        return text if told else ""  # by heartbeats

    return {
        "master": wait_for(master, "the nodes' reports"),
        "node": exposition.fetch(cluster.nodes["a"].ports["http_port"]),
        "engine": generate_latest(registry).decode(),
    }


def tables(exported: dict[str, str]) -> dict[str, str]:
    """The table of each section, from what runs."""
    parts = {who: exposition.parse(text) for who, text in exported.items()}
    silent = [one.name for part in parts.values() for one in part.values() if not one.samples]
    assert not silent, f"their labels cannot be seen: {silent}"
    common = set(parts["master"]) & set(parts["node"])
    servers: dict[str, Exported] = {name: parts["node"][name] for name in common}
    return {
        "servers": exposition.table(servers),
        **{who: exposition.table(part, known=common) for who, part in parts.items()},
    }


def documented(text: str) -> dict[str, str]:
    return {who: table for _, who, table, _ in _TABLE.findall(text)}


def differences(documented: dict[str, str], running: dict[str, str]) -> list[str]:
    """Rows that only one of both sides has."""
    wrong = []
    for who in sorted({*documented, *running}):
        rows, real = (set(side.get(who, "").splitlines()) for side in (documented, running))
        wrong += [f"{who}, not documented: {row}" for row in sorted(real - rows)]
        wrong += [f"{who}, does not exist: {row}" for row in sorted(rows - real)]
    return wrong


def test_every_metric_is_documented_and_every_documented_one_exists(
    exported: dict[str, str],
) -> None:
    running = tables(exported)
    if os.environ.get("KVSTORE_WRITE_METRICS"):
        text = _TABLE.sub(lambda m: m[1] + running[m[2]] + m[4], README.read_text())
        README.write_text(text)
    found = documented(README.read_text())
    assert set(found) == {"servers", "master", "node", "engine"}
    assert not differences(found, running), (
        "KVSTORE_WRITE_METRICS=1 writes the tables anew:\n" + "\n".join(differences(found, running))
    )
    # The check itself: it sees what is missing, what does not exist, and what is described wrongly.
    first = found["node"].splitlines()[2]
    for edited in (
        found["node"].replace(f"{first}\n", ""),
        found["node"] + first.replace("kvstore_", "kvstore_no_such_", 1) + "\n",
        found["node"].replace("| gauge |", "| counter |", 1),
    ):
        assert differences({**found, "node": edited}, running)


def test_names_and_units_follow_the_conventions(exported: dict[str, str]) -> None:
    checker = promtool()
    for who, text in exported.items():
        done = subprocess.run(
            [checker, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and not done.stderr, f"{who}: {done.stderr}"
    bad = "# TYPE kvstore_reads counter\nkvstore_reads 1\n"
    done = subprocess.run([checker, "check", "metrics"], input=bad, capture_output=True, text=True)
    assert "_total" in done.stderr, "the checker checks nothing"
