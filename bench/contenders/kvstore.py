"""kvstore as a user runs it: kvstore-master, kvstore-node, and a client process."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.contenders import StoreContender
from bench.processes import BenchError, Process, WorkerProcess

SHM_ABOUT = "client process on the node's host: mapped index and segment; checksums verified"
TCP_ABOUT = 'the same cluster, transport="tcp": lookup at the master, bytes from the node by TCP'
EMBEDDED_ABOUT = "kvstore.open(): master, node and client in one process; checksums verified"


class Cluster:
    """A master and one node, on ports that the kernel chose; the stack ends them."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        segment_bytes: int,
        poll_us: int | None = None,
        tls: dict[str, str] | None = None,
    ) -> None:
        self._stack = stack
        self._polling = {} if poll_us is None else {"poll_us": poll_us}
        servers: dict[str, Any] = {**self._polling, **({"tls": tls} if tls else {})}
        self._client = {**self._polling, **({"tls_ca": tls["ca"]} if tls else {})}
        self.pids: list[int] = []
        self._folder = folder
        self.segment_dir = Path("/dev/shm") / f"kvstore-bench-{os.getpid()}-{secrets.token_hex(4)}"
        stack.callback(shutil.rmtree, self.segment_dir, ignore_errors=True)
        data = folder / f"master-data-{secrets.token_hex(2)}"
        settings = folder / "master.json"
        settings.write_text(json.dumps({"data_dir": str(data), **servers}))
        ports = self._serve(
            "kvstore-master",
            ["kvstore.cli.master", "--config", str(settings), "--port", "0", "--grpc-port", "0"],
        )
        self.address = f"127.0.0.1:{ports['port']}"
        config = folder / "node.json"
        config.write_text(
            json.dumps(
                {
                    "master_address": self.address,
                    "node_id": "bench",
                    "segment_size": segment_bytes,
                    "segment_dir": str(self.segment_dir),
                    **servers,
                }
            )
        )
        self._serve("kvstore-node", ["kvstore.cli.node", "--config", str(config)])

    def _serve(self, name: str, arguments: list[str]) -> dict[str, Any]:
        port_file = self._folder / f"{name}.ports"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", *arguments, "--http-port", "0"]
        process = Process(name, [*command, "--port-file", str(port_file)], self._folder)
        self._stack.enter_context(process)
        self.pids.append(process.pid)
        process.wait_until(
            lambda: port_file.exists() and bool(port_file.read_text().strip()), "wrote its ports"
        )
        ports: dict[str, Any] = json.loads(port_file.read_text())
        return ports

    def worker(self, name: str, working_set: int, transport: str = "auto") -> WorkerProcess:
        """Start a client process."""
        worker = WorkerProcess(
            name,
            "kvstore",
            {"address": self.address, "transport": transport, **self._client},
            self._folder,
            working_set,
        )
        self._stack.enter_context(worker)
        return worker

    def contender(self, name: str, working_set: int, transport: str = "auto") -> StoreContender:
        about = TCP_ABOUT if transport == "tcp" else SHM_ABOUT
        return StoreContender(name, about, self.worker(name, working_set, transport))

    def segment_files(self) -> list[Path]:
        # Not the index: its file is mostly holes, which a search through a mapping would fill.
        files = sorted(self.segment_dir.rglob("segment"))
        if not files:
            raise BenchError(f"no segment below {self.segment_dir}")
        return files


def embedded(stack: ExitStack, folder: Path, working_set: int) -> StoreContender:
    """A store inside the client process."""
    worker = WorkerProcess(
        "kvstore-embedded",
        "kvstore",
        {"embedded_bytes": segment_bytes(working_set, clients=1)},
        folder,
        working_set,
    )
    stack.enter_context(worker)
    return StoreContender("kvstore-embedded", EMBEDDED_ABOUT, worker)


def segment_bytes(working_set: int, clients: int) -> int:
    """Room for what each client's rounds hold at a time, so that nothing is evicted."""
    wanted = clients * 2 * working_set * 5 // 4 + (64 << 20)
    return -(-wanted // (64 << 20)) * (64 << 20)
