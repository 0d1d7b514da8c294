"""The peers, from `make bench-peers`: Mooncake Store and Redis, in their own environment."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from bench.contenders import StoreContender
from bench.contenders.kvstore import segment_bytes
from bench.processes import ROOT, BenchError, Process, WorkerProcess, free_port, listens
from bench.sample import Sample
from bench.shapes import Shape

T = TypeVar("T")

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
_HOST = "127.0.0.1"
_MIB = 1 << 20
_MOONCAKE_ABOUT = (
    "mooncake_master, a store process and a pure client process over its tcp protocol, registered "
    "buffers; it has no shared-memory path and verifies no checksum (off by default; ours is on)"
)
_MOONCAKE_LOCAL_ABOUT = (
    "the client is also the store, so that bytes are copied inside one process; no checksum"
)
_REDIS_ABOUT = (
    "redis-server without persistence, redis-py with hiredis, one pipeline a batch over TCP; "
    "values arrive as new bytes objects and are copied into the caller's buffer; no checksum"
)


def _version(package: str) -> str | None:
    """The installed version in the peers' environment; None when it cannot be imported."""
    module = {"mooncake-transfer-engine-non-cuda": "mooncake.store"}.get(package, package)
    code = f"import {module}; from importlib.metadata import version; print(version({package!r}))"
    try:
        done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().split("\n")[-1] if done.returncode == 0 else None


class Peer(StoreContender):
    """A peer that fails in the middle of a run is left out from there on; the others go on."""

    failure: str | None = None

    def prepare(self, shape: Shape) -> None:
        self._attempt(lambda: super(Peer, self).prepare(shape), shape)

    def finish(self, shape: Shape) -> None:
        self._attempt(lambda: super(Peer, self).finish(shape), shape)

    def measure(self, operation: str, shape: Shape, number: int) -> Sample | None:
        return self._attempt(lambda: super(Peer, self).measure(operation, shape, number), shape)

    def _attempt(self, step: Callable[[], T], shape: Shape) -> T | None:
        if self.failure:
            return None
        try:
            return step()
        except BenchError as error:
            reason = str(error).split("\n")[0]
            self.failure = f"{self.name} failed at {shape} and is left out from there on: {reason}"
            return None


class Peers:
    """Starts what is installed; `notes` says what is missing."""

    def __init__(self, stack: ExitStack, folder: Path, working_set: int) -> None:
        self._stack = stack
        self._folder = folder
        self._working_set = working_set
        self.notes: list[str] = []
        self.versions: dict[str, str] = {}
        self._peers: list[Peer] = []

    def start(self) -> list[Peer]:
        self._peers = [*self._mooncake(), *self._redis()]
        return self._peers

    def failures(self) -> list[str]:
        """Return what went wrong: a sentence for each peer that was left out."""
        return [peer.failure for peer in self._peers if peer.failure]

    def _worker(self, name: str, driver: str, options: dict[str, object]) -> WorkerProcess:
        worker = WorkerProcess(
            name,
            driver,
            options,
            self._folder,
            self._working_set,
            PYTHON,
            # The transfer engine chooses its own ports; glog would write files to /tmp.
            {"MC_LOG_LEVEL": "ERROR", "GLOG_logtostderr": "1", "GLOG_minloglevel": "2"},
        )
        self._stack.enter_context(worker)
        return worker

    def _mooncake(self) -> list[Peer]:
        version = _version("mooncake-transfer-engine-non-cuda")
        if version is None:
            self.notes.append("Mooncake is not installed (make bench-peers): left out.")
            return []
        self.versions["mooncake"] = version
        try:
            over_tcp = self._mooncake_cluster("mooncake", local=False)
            local = self._mooncake_cluster("mooncake-in-process", local=True)
        except BenchError as error:
            self.notes.append(f"Mooncake did not start, and is left out: {str(error)[:300]}")
            return []
        return [
            Peer("mooncake-tcp", _MOONCAKE_ABOUT, over_tcp),
            Peer("mooncake-in-process", _MOONCAKE_LOCAL_ABOUT, local),
        ]

    def _mooncake_cluster(self, name: str, local: bool) -> WorkerProcess:
        """A master of its own, a store process unless `local`, and the client."""
        rpc, metadata, metrics = free_port(), free_port(), free_port()
        master = Process(
            f"{name}-master",
            [
                PYTHON.parent / "mooncake_master",
                f"--rpc_address={_HOST}",
                f"--rpc_port={rpc}",
                "--enable_http_metadata_server=true",
                f"--http_metadata_server_host={_HOST}",
                f"--http_metadata_server_port={metadata}",
                f"--metrics_host={_HOST}",
                f"--metrics_port={metrics}",
                "--logtostderr=true",
            ],
            self._folder,
        )
        self._stack.enter_context(master)
        master.wait_until(lambda: listens(rpc) and listens(metadata), "listens")
        options: dict[str, object] = {
            "metadata": f"http://{_HOST}:{metadata}/metadata",
            "master": f"{_HOST}:{rpc}",
        }
        size = segment_bytes(self._working_set, clients=1)
        if local:
            return self._worker(name, "mooncake", {**options, "host": _HOST, "segment_bytes": size})
        store = {**options, "host": _HOST, "segment_bytes": size}
        self._worker(f"{name}-store", "mooncake", store)
        return self._worker(f"{name}-client", "mooncake", {**options, "host": _HOST})

    def _redis(self) -> list[Peer]:
        program, version = shutil.which("redis-server"), _version("redis")
        if program is None or version is None:
            self.notes.append("Redis is not installed (make bench-peers): left out.")
            return []
        port = free_port()
        command = [program, "--bind", _HOST, "--port", str(port), "--save", "", "--appendonly"]
        server = Process("redis-server", [*command, "no"], self._folder)
        self._stack.enter_context(server)
        server.wait_until(lambda: listens(port), "listens")
        told = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        self.versions["redis"] = told.strip()
        self.versions["redis-py"] = version
        worker = self._worker("redis-client", "redis", {"host": _HOST, "port": port})
        return [Peer("redis", _REDIS_ABOUT, worker)]
