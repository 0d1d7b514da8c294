"""The dashboard's panels, evaluated by a Prometheus that scrapes a cluster under a trace.

Run as a program, it draws them: python -m tests.monitoring.panels panels.png
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from kvstore import store_metrics
from kvstore.replay.runner import Replay
from kvstore.replay.trace import Request, generate
from tests.support import monitored
from tests.support.cluster import Cluster
from tests.support.documents import ROOT
from tests.support.prometheus import Prometheus

DASHBOARD = ROOT / "deploy/monitoring/dashboard.json"
BLOCK_BYTES = 64 << 10
WINDOW = "5s"
"""What $__rate_interval is: a few scrapes, as in Grafana."""


@dataclass(frozen=True)
class Panel:
    """One panel, with its expressions as Grafana would send them."""

    title: str
    kind: str
    unit: str
    expressions: tuple[str, ...]
    legends: tuple[str, ...]


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def panels() -> list[Panel]:
    return [
        Panel(
            panel["title"],
            panel["type"],
            panel["fieldConfig"]["defaults"]["unit"],
            tuple(expand(target["expr"]) for target in panel["targets"]),
            tuple(target["legendFormat"] for target in panel["targets"]),
        )
        for panel in dashboard()["panels"]
        if panel["type"] != "row"
    ]


def expand(expression: str) -> str:
    """Put values in place of the dashboard's variables."""
    for name, value in (("__rate_interval", WINDOW), ("node", ".*"), ("cluster", ".*")):
        expression = expression.replace(f"${name}", value)
    return expression


@contextmanager
def scraped_cluster(folder: Path) -> Iterator[Prometheus]:
    """Run a cluster that replays a trace by two stores of this process, and scrape all of it."""
    cluster = Cluster(folder)
    done = threading.Event()
    threads: list[threading.Thread] = []
    try:
        monitored.start(cluster, folder)
        local, remote = monitored.work(cluster)
        registry = CollectorRegistry()
        for store in (local, remote):
            store_metrics.register(store, registry)
            thread = threading.Thread(target=_replay, args=(store, done))
            thread.start()
            threads.append(thread)
        exporter, serving = start_http_server(0, "127.0.0.1", registry)
        ports = {
            "kvstore-master": [cluster.master.ports["http_port"]],
            "kvstore-node": [node.ports["http_port"] for node in cluster.nodes.values()],
            "kvstore-engine": [exporter.server_port],
        }
        prometheus = Prometheus(folder, ports)
        try:
            prometheus.wait_scraping()
            yield prometheus
        finally:
            prometheus.stop()
            exporter.shutdown()
            exporter.server_close()
            serving.join()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        cluster.close()


def _replay(store: Any, done: threading.Event) -> None:
    """Replay generated chats, one seed after the other, until told to stop."""
    seed = 1
    while not done.is_set():
        requests: list[Request] = list(generate(seed=seed))
        replay = Replay(store, BLOCK_BYTES, max(len(one.hash_ids) for one in requests))
        for request in requests:
            if done.is_set():
                return
            replay.run([request], lambda: None)
        seed += 1


def draw(prometheus: Prometheus, seconds: float, path: Path) -> None:
    """Draw every panel from what Prometheus has of the last seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    end = time.time()
    all_panels = panels()
    figure, axes = pyplot.subplots((len(all_panels) + 3) // 4, 4, figsize=(24, 30))
    for axis, panel in zip(axes.flat, all_panels, strict=False):
        for expression, legend in zip(panel.expressions, panel.legends, strict=True):
            for series in prometheus.query_range(expression, end - seconds, end):
                points = [(float(t) - end, float(value)) for t, value in series["values"]]
                axis.plot(*zip(*points, strict=True), label=_label(legend, series["metric"]))
        axis.set_title(f"{panel.title} ({panel.unit})", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=60)


def _label(legend: str, labels: dict[str, str]) -> str:
    if legend == "__auto":
        return labels.get("__name__", "")
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return legend


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, scraped_cluster(Path(folder)) as prometheus:
        seconds = 30.0
        time.sleep(seconds)
        draw(prometheus, seconds, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
