"""Three nodes that are upgraded in place one after the other, below a replayed trace.

As a kubelet does it: the container's preStop, SIGTERM, then the other version on the same tmpfs, at
the same ports. `tests.fault.replay_restart --way upgrade` prints what it costs, beside the same
traffic without an upgrade, and with one that loses each node's memory. Beside the replay run paced
clients that verify every byte, over shared memory and over TCP.
"""

from __future__ import annotations

import compileall
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kvstore.replay.trace import Request
from tests.fault.paced import paced
from tests.support.cluster import Cluster
from tests.support.processes import wait_for

ROOT = Path(__file__).resolve().parents[2]
NODES = ("a", "b", "c")
CASES = ("no_upgrade", "upgraded", "cache_lost")
PAUSE_S = 1.0
"""Between a node that is ready again and the next one; upgrade.sh waits for readiness alone."""
PACED_RATE = 100.0
PACED_BYTES = 16 << 20
"""More memory for each node, which is what the paced clients put in a minute or two."""


def prestop_s() -> float:
    """How long the preStop command of the manifests lasts."""
    manifest = (ROOT / "deploy" / "rbg" / "store.yaml").read_text()
    for document in yaml.safe_load_all(manifest):
        for found in _prestops(document):
            return float(found["sleep"]["seconds"])
    raise AssertionError("deploy/rbg/store.yaml has no preStop")


def _prestops(node: Any) -> list[Any]:
    if isinstance(node, dict):
        own = [node["preStop"]] if "preStop" in node else []
        return own + [found for value in node.values() for found in _prestops(value)]
    if isinstance(node, list):
        return [found for value in node for found in _prestops(value)]
    return []


def ready(http_port: int) -> bool:
    """What a readiness probe says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass
class Upgrade:
    """Upgrades the nodes of a cluster one after the other, in a thread."""

    cluster: Cluster
    package: Path | None
    loses_memory: bool = False
    after_s: float = 0.0
    outages: list[dict[str, Any]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def start(self) -> Callable[[], None]:
        """Begin; the returned function waits for the end."""
        thread = threading.Thread(target=self._run)
        thread.start()

        def join() -> None:
            thread.join()
            if self.errors:
                raise self.errors[0]

        return join

    def _run(self) -> None:
        try:
            time.sleep(self.after_s)
            for name in NODES:
                self.outages.append(self._one(name))
                time.sleep(PAUSE_S)
        except BaseException as error:
            self.errors.append(error)

    def _one(self, name: str) -> dict[str, Any]:
        node = self.cluster.nodes[name]
        ports = {"port": node.ports["port"], "http_port": node.ports["http_port"]}
        time.sleep(prestop_s())
        begun = time.monotonic()
        assert node.terminate() == 0
        ended = time.monotonic()
        if self.loses_memory:
            shutil.rmtree(self.cluster.segment_dirs[name])
        config = {**self.cluster.configs[name], **ports}
        again = self.cluster.start_node(name, wait=False, package=self.package, **config)
        wait_for(lambda: ready(ports["http_port"]), f"{name} to be ready", 60, poll_s=0.005)
        took_s = time.monotonic() - begun
        again.wait_started()
        return {
            "node": name,
            "begun": begun,
            "exit_s": round(ended - begun, 2),
            "outage_s": round(took_s, 2),
        }


def measure(
    requests: Sequence[Request],
    segment: int,
    rate: float,
    replay: Callable[..., Any],
    other_version: Callable[[Path], Path],
    cases: Sequence[str] = CASES,
) -> dict[str, Any]:
    """Replay once for each case.

    Args:
        requests: of the trace.
        segment: size of each node's memory for them, in bytes.
        rate: requests a second.
        replay: tests.fault.replay_restart.replay.
        other_version: tests.fault.replay_restart.other_version.
        cases: of CASES.
    """
    blocks = sum(len(request.hash_ids) for request in requests)
    return {"nodes": len(NODES), "segment_bytes": segment, "requests_a_second": rate} | {
        case: _case(case, requests, segment, rate, replay, other_version) | {"blocks": blocks}
        for case in cases
    }


def _case(
    case: str,
    requests: Sequence[Request],
    segment: int,
    rate: float,
    replay: Callable[..., Any],
    other_version: Callable[[Path], Path],
) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="kvstore-rolling-"))
    cluster = Cluster(folder)
    try:
        package = None
        if case != "no_upgrade":
            package = other_version(folder)
            compileall.compile_dir(package, quiet=1)  # as an image's are
        for name in NODES:
            # One label: as the pods of one machine, whose memory its engines map.
            cluster.start_node(name, segment_size=segment + PACED_BYTES, labels={"host": "one"})
        upgrade = Upgrade(cluster, package, case == "cache_lost", len(requests) / rate / 4)
        with paced(cluster.address, ("auto", "tcp"), PACED_RATE) as clients:
            join = upgrade.start() if case != "no_upgrade" else lambda: None
            run = replay(cluster.connect(timeout_ms=2000), requests, rate)
            join()
            seen = {one.transport: one.stop() for one in clients}
    finally:
        cluster.close()
        shutil.rmtree(folder)
    return summary(requests, run, upgrade.outages, seen)


def summary(
    requests: Sequence[Request],
    run: Any,
    outages: list[dict[str, Any]],
    seen: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Add up what a case has shown."""
    for one in seen.values():
        begin = one.pop("begin")
        one["upgrades_at_s"] = [round(outage["begun"] - begin, 2) for outage in outages]
    blocks = sum(len(request.hash_ids) for request in requests)
    return {
        "hit_rate": round(sum(run.hits) / blocks, 4),
        "outages": [{k: v for k, v in one.items() if k != "begun"} for one in outages],
        "worst_get_ms": max(run.worst_get_ms, *(one["worst_get_ms"] for one in seen.values())),
        "failed_puts": run.failed_puts + sum(one["failed_puts"] for one in seen.values()),
        "wrong_bytes": run.wrong_bytes + sum(one["wrong_bytes"] for one in seen.values()),
        "replay": {
            "worst_get_ms": run.worst_get_ms,
            "worst_put_ms": run.worst_put_ms,
            "put_statuses": run.put_statuses,
        },
        "paced": seen,
    }
