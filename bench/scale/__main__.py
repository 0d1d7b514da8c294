"""Measures how far one master carries (`python -m bench.scale`).

One real master; a native generator that speaks for the nodes (their links, announcements, claims,
withdrawals) and the clients, over loopback TCP; the nodes' own agents for registration and
heartbeats. Generator, agents and master share the machine: what counts are the master's processor
time and its memory. `--quick` is small and checks that everything works; do not quote its results.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import describe
from bench.processes import BenchError
from bench.scale.phases import ScaleCluster, Shape, run_all
from bench.scale.table import table

_QUICK = Shape(
    nodes=20,
    clients=10,
    objects=100_000,
    watchers=5,
    seconds=0.5,
    churn_per_minute=1.0,
    quiet_ms=1000,
)
_QUICK_CONFIG = {"heartbeat_ms": 200, "node_ttl_ms": 1000}


def measure(shape: Shape, config: dict[str, Any], until: str) -> dict[str, Any]:
    """Run the phases on a fresh cluster."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-scale-"))
    try:
        with ExitStack() as stack:
            cluster = ScaleCluster(stack, folder, shape, config)
            rows = run_all(cluster, lambda line: print(line, file=sys.stderr, flush=True), until)
            descriptors = cluster.master.descriptors
            cluster.fleet.close()
            cluster.master.stop()
        return {
            "machine": describe(),
            "shape": asdict(shape),
            "master_config": config,
            "descriptor_limit": descriptors,
            "phases": rows,
        }
    finally:
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=Shape.nodes)
    parser.add_argument("--clients", type=int, default=Shape.clients)
    parser.add_argument("--objects", type=int, default=Shape.objects)
    parser.add_argument("--watchers", type=int, default=Shape.watchers)
    parser.add_argument("--seconds", type=float, default=Shape.seconds, help="of each phase")
    parser.add_argument("--master-config", type=json.loads, default={}, help="JSON of its config")
    parser.add_argument("--until", default="", help="the last phase; default: all")
    parser.add_argument("--quick", action="store_true", help="20 nodes, 100,000 objects")
    parser.add_argument("--out", type=Path, default=Path("build/bench/scale"))
    parser.add_argument("--json", action="store_true", help="print results.json, not the table")
    given = parser.parse_args(arguments)
    shape = Shape(given.nodes, given.clients, given.objects, given.watchers, given.seconds)
    config = given.master_config
    if given.quick:
        shape, config = _QUICK, {**_QUICK_CONFIG, **config}
    # Ended from outside it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    logging.getLogger().addHandler(logging.NullHandler())  # agents tell of every lost master
    try:
        found = measure(shape, config, given.until)
    except BenchError as error:
        sys.exit(f"bench.scale: {error}")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "table.md").write_text(table(found))
    print(json.dumps(found, indent=2) if given.json else "\n" + table(found))


if __name__ == "__main__":
    main()
