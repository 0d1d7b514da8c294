"""Mapped memory under attack: files cut short and punched full of holes from outside."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.package import ROOT
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_AGAIN_S = 20.0
"""In which a node that was damaged serves again, on a busy machine."""


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def punch(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    with path.open("r+b") as file:
        whole = os.fstat(file.fileno()).st_size
        if libc.fallocate(file.fileno(), _PUNCH_HOLE, 0, whole) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")


ATTACKS: dict[str, Callable[[Path], None]] = {
    "segment cut": lambda folder: cut(folder / "segment", 4096),
    "segment emptied": lambda folder: cut(folder / "segment", 0),
    "segment punched": lambda folder: punch(folder / "segment"),
}


class Victim:
    """An engine in a process of its own (tests.attack.victim), and its last report."""

    def __init__(self, address: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in end)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.attack.victim", address],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._last: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._last = json.loads(line)

    def report(self) -> dict[str, Any]:
        assert self.process.poll() is None, self.errors()
        return self._last

    def wait_progress(self, what: str, before: Mapping[str, Any], **least: int) -> None:
        """Until it maps the memory, and each count has grown by so much.

        Each of its keys is put once, and again when it was lost: `before` has to be of a moment
        before anything that is counted.
        """

        def there() -> bool:
            now = self.report()
            return bool(now.get("attached")) and all(
                now[name] >= before.get(name, 0) + count for name, count in least.items()
            )

        wait_for(there, f"the victim {what}; it was {before}, is {self._last}", _AGAIN_S)

    def errors(self) -> str:
        """What it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def end(self) -> str:
        """Wait for its end; what it wrote to stderr."""
        self.process.wait(30)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        errors = self.errors()
        self._errors.close()
        return errors


@contextmanager
def victim_of(cluster: Cluster) -> Iterator[Victim]:
    victim = Victim(cluster.address)
    try:
        yield victim
    finally:
        if victim.process.poll() is None:
            assert victim.process.stdin is not None
            victim.process.stdin.close()
        errors = victim.end()
        assert victim.process.returncode == 0, errors


@pytest.mark.parametrize("attack", ATTACKS)
def test_damage_costs_objects_and_nothing_else(cluster: Cluster, attack: str) -> None:
    node = cluster.start_node("a", segment_size="32mb")
    cluster.expected_errors.append("segment_damaged")
    store = cluster.connect()
    value = proof("mine", 100_000)
    assert store.put("mine", value) is Status.Ok
    with victim_of(cluster) as victim:
        victim.wait_progress("works", {}, puts=200, hits=200)
        before = victim.report()
        ATTACKS[attack](cluster.segment_dirs["a"])
        wait_for(lambda: rebuilds(node) >= 1, "a new segment", _AGAIN_S)
        assert node.process.poll() is None
        victim.wait_progress("works again, in shared memory", before, puts=20, hits=200)
        assert victim.report()["wrong"] == 0
    assert store.get("mine") in (None, value)
    wait_for(lambda: store.put("mine", value) is Status.Ok or store.get("mine"), "a put", _AGAIN_S)
    assert store.get("mine") == value
    (line,) = [line for line in node.log.read_text().splitlines() if "segment_damaged" in line]
    assert f"pid {victim.process.pid}" in line


def rebuilds(node: Daemon) -> float:
    """The node's metric; 0 while it does not answer."""
    node.wait_started()  # each life has an HTTP port of its own
    address = f"http://127.0.0.1:{node.ports['http_port']}/metrics"
    try:
        with urllib.request.urlopen(address) as answer:
            text = answer.read().decode()
    except OSError:
        return 0
    name = "kvstore_segment_rebuilds_total "
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name))
