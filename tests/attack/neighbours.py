"""Floods, and a well-behaved client beside them whose calls are timed."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.processes import Daemon

_CALLS = 300
_SLACK_MS = 30.0
"""Of a machine that other tests share."""
FAIR = 3.0
"""How much longer calls may take beside a flood: the median of `--attack-rounds`."""
NODE, ENGINE, LOUD, ADMIN = (f"secret-number-{i}-of-the-test" for i in range(4))
_TOKENS = f"""a node * {NODE}
b node * {NODE}x
engine client default {ENGINE}
loud client default,noisy {LOUD}
admin operator * {ADMIN}
"""


def p99_ms(store: kvstore.Store, name: str) -> float:
    """99th percentile of a put and a get; the best of three rounds, as other tests run too."""
    return min(_p99_ms(store, f"{name}/{i}") for i in range(3))


def _p99_ms(store: kvstore.Store, name: str) -> float:
    took = []
    for i in range(_CALLS):
        key = f"{name}/{i}"
        began = time.perf_counter()
        assert store.put(key, b"x" * 1000) is Status.Ok
        assert store.get(key) == b"x" * 1000
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)[math.ceil(0.99 * _CALLS) - 1]


def assert_fair(base_ms: float, beside_ms: float, flood: str) -> None:
    """Print what a flood does to the others' calls; fail if it is out of proportion."""
    print(f"{flood}: p99 {beside_ms:.2f} ms beside it, {base_ms:.2f} ms without")
    measured[flood].append((base_ms, beside_ms))
    assert beside_ms <= 10 * base_ms + _SLACK_MS, flood


measured: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
"""99th percentiles without and beside each flood, a pair a round."""


def _ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(beside / base for base, beside in pairs)


def unfair() -> list[str]:
    """Return the floods that cost others more than FAIR."""
    return [flood for flood, pairs in measured.items() if _ratio(pairs) > FAIR]


def table() -> str:
    """Return what was measured as a Markdown table."""
    lines = [
        f"| beside | rounds | p99 without (ms) | p99 (ms) | median ratio (at most {FAIR:.0f}) |",
        "|---|---|---|---|---|",
    ]
    for flood, pairs in measured.items():
        base, beside = (statistics.median(column) for column in zip(*pairs, strict=True))
        lines.append(
            f"| {flood} | {len(pairs)} | {base:.2f} | {beside:.2f} | {_ratio(pairs):.2f} |"
        )
    return "\n".join(lines)


@contextmanager
def flood(kind: str, *arguments: object) -> Iterator[None]:
    """Run a flood of `tests.attack.floods` in a process of its own, from when it has begun."""
    command = [sys.executable, "-m", "tests.attack.floods", kind, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"begun\n", kind
            yield
            assert process.poll() is None, "the flood has ended"
        finally:
            process.stdin.close()
            process.wait(30)


def write_secret(path: Path, text: str) -> str:
    """Write a token file."""
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


class Guarded:
    """A cluster with tokens: node a, and the token file of each principal."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.tokens = write_secret(folder / "tokens", _TOKENS)
        self.files = {
            line.split()[0]: write_secret(folder / line.split()[0], line)
            for line in _TOKENS.splitlines()
        }
        path = folder / "master.json"
        path.write_text(json.dumps({"auth_token_file": self.tokens, **config}))
        self.cluster = Cluster(folder, ["--config", str(path)], self.files["admin"])

    def start_node(self, node_id: str, **config: Any) -> Daemon:
        return self.cluster.start_node(node_id, auth_token_file=self.tokens, **config)

    def connect(self, principal: str, **options: Any) -> kvstore.Store:
        """Connect as a principal; not closed with the cluster."""
        options = {"token_file": self.files[principal], **options}
        return kvstore.connect(self.cluster.address, **options)


@contextmanager
def guarded(folder: Path, **config: Any) -> Iterator[Guarded]:
    running = Guarded(folder, **config)
    try:
        yield running
    finally:
        running.cluster.close()
