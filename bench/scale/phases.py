"""What is measured, one phase after the other, on one cluster."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import ROOT, BenchError, Talker, wait_for
from bench.scale.fleet import NODES_OF_A_RACK, Fleet
from bench.scale.master import CpuMeter, Master

PROGRAM = ROOT / "build" / "native" / "scale_generator"
BATCH = 128
_JOIN_S = 600.0
_DEAD_S = 60.0
_POLL_S = 0.2
SETTLE_S = 45.0
"""Until every node knows how often to report, and its slow start is over."""

Progress = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """How large the cluster is, and how long each phase lasts."""

    nodes: int = 1000
    clients: int = 2000
    objects: int = 50_000_000
    watchers: int = 100
    seconds: float = 20.0
    churn_per_minute: float = 0.01
    """Share of the objects that is withdrawn and written anew."""
    paced_share: float = 0.25
    """Of the batches that were answered without pauses, asked for where latencies are measured."""

    quiet_ms: int = 3000
    """Dead nodes that lookups have not named for that time are not named any more."""

    @property
    def rack(self) -> int:
        """Nodes that die together."""
        return min(NODES_OF_A_RACK, max(1, self.nodes // 5))


class ScaleCluster:
    """The master, the generator that speaks for nodes and clients, and the nodes' agents."""

    def __init__(
        self, stack: ExitStack, folder: Path, shape: Shape, config: Mapping[str, Any]
    ) -> None:
        if not PROGRAM.exists():
            raise BenchError("scale_generator is not built: ninja -C build/native scale_generator")
        self.shape = shape
        self.master = Master(folder, config)
        stack.callback(self.master.kill)
        objects = shape.objects // shape.nodes
        command = [str(PROGRAM), self.master.address, self.master.cluster_id]
        command += [str(shape.nodes), str(objects)]
        self._generator = stack.enter_context(Talker("generator", command, folder))
        self._mutex = threading.Lock()
        self.fleet = Fleet(
            self.master.address, self.tell("endpoint")["endpoint"], shape.nodes, self.tell
        )
        stack.callback(self.fleet.close)
        self._folder = folder
        self._stack = stack

    @property
    def generator_pid(self) -> int:
        """Of the generator."""
        return self._generator.pid

    def tell(self, line: str) -> Any:
        """Give the generator a command; its answer."""
        with self._mutex:
            self._generator.send(line)
            return self._generator.receive()

    def wait_up(self, count: int, timeout_s: float = _JOIN_S) -> None:
        """Wait until so many links are up: everything is announced over them."""

        def up() -> bool:
            failures = self.fleet.failures()
            if failures:
                raise BenchError(f"{len(failures)} nodes have given up: {failures[0]}")
            time.sleep(_POLL_S)
            return int(self.tell("links")["up"]) >= count

        try:
            wait_for(up, f"{count} links to be up", timeout_s)
        except BenchError as error:
            raise BenchError(f"{error}; {self.tell('links')}") from None

    @contextmanager
    def watched(self) -> Iterator[Talker]:
        """Attach the watchers."""
        command = [sys.executable, "-m", "bench.scale.watchers", self.master.grpc]
        count = self.shape.watchers
        with Talker("watchers", [*command, str(count)], self._folder) as watchers:

            def attached() -> bool:
                watchers.send("")
                return int(watchers.receive()["open"]) == count

            wait_for(attached, "the watchers to be attached")
            yield watchers


def joining(cluster: ScaleCluster) -> Row:
    """All nodes register, link and announce at once."""
    before = cluster.master.rss_bytes()
    meter = CpuMeter(cluster.master)
    started = time.monotonic()
    cluster.fleet.join()
    count = cluster.shape.nodes
    wait_for(lambda: cluster.fleet.registered >= count, "the nodes to register", _JOIN_S)
    registered = time.monotonic() - started
    cluster.wait_up(count)
    seconds = time.monotonic() - started
    links = cluster.tell("links")
    used = cluster.master.rss_bytes() - before
    cpu = meter.shares()
    return {
        "registered_s": round(registered, 2),
        "announced_s": round(seconds, 2),
        "objects": links["announced"],
        "refused": links["refused"],
        "link_losses": links["losses"],
        "rss_bytes_an_object": round(used / cluster.shape.objects, 1),
        "rss_bytes": used,
        "cpu": cpu,
        "cpu_us_an_object": round(cpu["process"] * seconds * 1e6 / links["announced"], 3),
    }


def heartbeats(cluster: ScaleCluster) -> Row:
    """Nothing but heartbeats and the links' own pings."""
    time.sleep(min(SETTLE_S, 5 * cluster.shape.seconds))
    fleet, seconds = cluster.fleet, cluster.shape.seconds
    meter, before = CpuMeter(cluster.master), (fleet.heartbeats, fleet.over_links)
    time.sleep(seconds)
    return {
        "heartbeats_per_s": round((fleet.heartbeats - before[0]) / seconds, 1),
        "over_links_per_s": round((fleet.over_links - before[1]) / seconds, 1),
        "cpu": meter.shares(),
    }


def lookups(cluster: ScaleCluster, batches_per_s: float) -> Row:
    """Every client looks up random objects in batches; 0: as fast as the master answers."""
    cluster.tell(f"clients {cluster.shape.clients}")
    cluster.tell(f"load {batches_per_s}")
    meter = CpuMeter(cluster.master)
    time.sleep(cluster.shape.seconds)
    cpu = meter.shares()
    found = _unload(cluster)
    core = cpu.get("block port", 0.0)
    per_core = round(found["keys_per_s"] / core) if core else 0
    return {**found, "cpu": cpu, "keys_per_s_of_a_core": per_core}


def _unload(cluster: ScaleCluster) -> Row:
    found: Row = cluster.tell("unload")
    if found["wrong"] or found["failed"]:
        raise BenchError(f"lookups were answered wrongly: {found}")
    return found


def churning(cluster: ScaleCluster, batches_per_s: float) -> Row:
    """Nodes withdraw objects and write others, beside the lookups."""
    shape = cluster.shape
    before = cluster.tell("links")
    cluster.tell(f"churn {shape.objects * shape.churn_per_minute / 60}")
    try:
        found = lookups(cluster, batches_per_s)
    finally:
        cluster.tell("churn 0")
    after = cluster.tell("links")
    moved = {name: after[name] - before[name] for name in ("claimed", "announced", "withdrawn")}
    return {**found, **moved, "refused": after["refused"] - before["refused"]}


def watching(cluster: ScaleCluster, batches_per_s: float) -> Row:
    """The same with watchers attached."""
    with cluster.watched() as watchers:
        found = churning(cluster, batches_per_s)
        watchers.send("")
        return {**found, "watchers": watchers.receive()}


def rack_death(cluster: ScaleCluster, batches_per_s: float, verb: str, first: int) -> Row:
    """A rack goes without a goodbye; until when lookups name its nodes."""
    rack = cluster.shape.rack
    cluster.tell(f"clients {cluster.shape.clients}")
    cluster.tell(f"load {batches_per_s}")
    time.sleep(min(2.0, cluster.shape.seconds))
    cluster.fleet.end(first, rack)
    cluster.tell(f"{verb} {first} {rack}")
    wait_for(
        lambda: int(cluster.tell("named")["quiet_for_ms"]) >= cluster.shape.quiet_ms,
        "lookups to name the rack no more",
        _DEAD_S,
    )
    named_for_ms = cluster.tell("named")["named_for_ms"]
    meter = CpuMeter(cluster.master)
    time.sleep(cluster.shape.seconds / 2)
    cpu = meter.shares()
    return {"nodes": rack, "named_for_ms": named_for_ms, "cpu_after": cpu, **_unload(cluster)}


def restart(cluster: ScaleCluster, living: int) -> Row:
    """The master is killed and comes back: until it knows all placements again."""
    before = cluster.tell("links")
    cluster.master.kill()
    started = time.monotonic()
    cluster.master.restart()
    served = time.monotonic() - started
    wait_for(lambda: int(cluster.tell("links")["up"]) < living, "the links to break", _JOIN_S)
    cluster.wait_up(living)
    announced = time.monotonic() - started
    cluster.master.wait_logged("rebuild_finished", 1, _JOIN_S)
    ready = time.monotonic() - started
    cpu_s = cluster.master.cpu_s()
    after = cluster.tell("links")
    objects = after["announced"] - before["announced"]
    return {
        "serves_s": round(served, 2),
        "announced_s": round(announced, 2),
        "ready_s": round(ready, 2),
        "objects": objects,
        "refused": after["refused"] - before["refused"],
        "cpu_s": {name: round(spent, 2) for name, spent in cpu_s.items()},
        "cpu_us_an_object": round(cpu_s["process"] * 1e6 / max(1, objects), 3),
    }


def run_all(cluster: ScaleCluster, progress: Progress, until: str = "") -> dict[str, Row]:
    """Every phase, in order; those behind `until` are left out."""
    rows: dict[str, Row] = {}

    def phase(name: str, measure: Callable[[], Row]) -> Row:
        if until in rows:
            return {"keys_per_s": 0.0}
        progress(name)
        rows[name] = measure()
        progress(f"{name}: {json.dumps(rows[name])}")
        return rows[name]

    shape = cluster.shape
    phase("join", lambda: joining(cluster))
    phase("heartbeats", lambda: heartbeats(cluster))
    full = phase("lookups, no pauses", lambda: lookups(cluster, 0))
    paced = full["keys_per_s"] / BATCH * shape.paced_share
    phase("lookups", lambda: lookups(cluster, paced))
    phase("churn", lambda: churning(cluster, paced))
    phase("churn, watched", lambda: watching(cluster, paced))
    phase("rack killed", lambda: rack_death(cluster, paced, "cut", 0))
    phase("rack without power", lambda: rack_death(cluster, paced, "mute", shape.rack))
    phase("restart", lambda: restart(cluster, shape.nodes - 2 * shape.rack))
    phase("lookups after the restart", lambda: lookups(cluster, paced))
    return rows
