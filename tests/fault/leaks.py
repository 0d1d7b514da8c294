"""Resources that a process must have released once it is idle."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tests.support.control import metric
from tests.support.processes import Daemon, wait_for

# An HTTP and a gRPC connection more or less, threads of pools that start when first needed.
_FD_SLACK = 6
_THREAD_SLACK = 8
_EXPECTED_FILES = {"clients", "cluster_id", "index", "segment", "node.sock"}
_BOOKS = (
    "kvstore_reservations",
    "kvstore_spares",
    "kvstore_quarantined_bytes",
    "kvstore_deferred_bytes",
    "kvstore_leases",
    "kvstore_leased_bytes",
    "kvstore_live_slots",
)
_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Footprint:
    """Descriptors and threads of a process."""

    fds: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        folder = Path(f"/proc/{pid}")
        return cls(len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))


def leaks_of(node: Daemon, start: Footprint, segment_dir: Path) -> list[str]:
    """Wait until a node without clients has given everything back; a sentence for what it kept."""
    found: list[str] = []

    def none() -> bool:
        now = Footprint.of(node.pid)
        books = {name: metric(node, name) for name in _BOOKS}
        found[:] = [f"{name} is {value}" for name, value in books.items() if value]
        if now.fds > start.fds + _FD_SLACK:
            found.append(f"{now.fds} descriptors, {start.fds} at the start")
        if now.threads > start.threads + _THREAD_SLACK:
            found.append(f"{now.threads} threads, {start.threads} at the start")
        strangers = {path.name for path in segment_dir.iterdir()} - _EXPECTED_FILES
        found.extend(f"{name} lies in the segment's folder" for name in sorted(strangers))
        return not found

    with contextlib.suppress(AssertionError):
        wait_for(none, "nothing to be left", _TIMEOUT_S, 0.1)
    return found
