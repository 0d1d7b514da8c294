"""The master under load: its process, processor time, memory and log."""

from __future__ import annotations

import json
import os
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import Daemon, wait_for

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_S = 60.0


class Master:
    """A real ``kvstore-master``, without tokens; a restart keeps its ports and its folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._config = folder / "master.json"
        self._config.write_text(json.dumps(config))
        self._ports = {"port": 0, "grpc_port": 0, "http_port": 0}
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # children have it, too
        self.descriptors = hard
        self._daemon = self._start()

    def _start(self) -> Daemon:
        arguments = ["-m", "kvstore.cli.master", "--host", "127.0.0.1"]
        arguments += ["--data-dir", str(self._folder / "master")]
        arguments += ["--config", str(self._config)]
        for name, port in self._ports.items():
            arguments += [f"--{name.replace('_', '-')}", str(port)]
        daemon = Daemon("master", arguments, self._folder)
        try:
            daemon.wait_started(_START_S)
        except BaseException:
            daemon.kill()
            raise
        self._ports = {name: int(daemon.ports[name]) for name in self._ports}
        return daemon

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._daemon.pid

    @property
    def cluster_id(self) -> str:
        """Of its cluster."""
        return str(self._daemon.ports["cluster_id"])

    @property
    def address(self) -> str:
        """Of its block port."""
        return f"127.0.0.1:{self._ports['port']}"

    @property
    def grpc(self) -> str:
        """Of its control plane."""
        return f"127.0.0.1:{self._ports['grpc_port']}"

    @property
    def http(self) -> str:
        """Of its metrics."""
        return f"http://127.0.0.1:{self._ports['http_port']}"

    def kill(self) -> None:
        """End it without a word."""
        self._daemon.kill()

    def restart(self) -> None:
        """Start it again after kill()."""
        self._daemon = self._start()

    def stop(self) -> None:
        """End it; its log must have no error."""
        self._daemon.terminate(120)
        errors = [line for line in self.log().splitlines() if " ERROR " in line]
        assert not errors, "\n".join(errors)

    def log(self) -> str:
        """What it has logged."""
        return self._daemon.log.read_text(errors="replace")

    def wait_logged(self, event: str, count: int, timeout_s: float) -> None:
        """Wait until an event was logged so often, all its lives together."""
        wait_for(
            lambda: len(re.findall(rf"\b{event}\b", self.log())) >= count,
            f"the master to log {event} {count} times",
            timeout_s,
            poll_s=0.05,
        )

    def rss_bytes(self) -> int:
        """Memory that is resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def cpu_s(self) -> dict[str, float]:
        """Processor time of the block port's threads, of all others, and of the process."""
        found: dict[str, float] = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                name = (task / "comm").read_text().strip()
                fields = (task / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # the thread has ended
                continue
            seconds = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
            kind = "block port" if name.startswith("kv-loop") else "control plane"
            found[kind] = found.get(kind, 0.0) + seconds
        found["process"] = _process_cpu_s(self.pid)
        return found


def _process_cpu_s(pid: int) -> float:
    """Processor time of a process, threads that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


class CpuMeter:
    """Shares of one core that the master uses between two looks."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._at = time.monotonic()
        self._before = master.cpu_s()

    def shares(self) -> dict[str, float]:
        """By thread name, since the beginning; 1 is one core."""
        seconds = time.monotonic() - self._at
        now = self._master.cpu_s()
        return {
            name: round((spent - self._before.get(name, 0.0)) / seconds, 4)
            for name, spent in sorted(now.items())
        }
