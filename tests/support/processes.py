"""Real processes under test: started, watched, and always stopped by pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

START_TIMEOUT_S = 30.0
SCALE = float(os.environ.get("RXE_VM_SCALE", "1"))
"""How many times longer everything may take: more than 1 in the machine of tests/rdma/vm.py."""


def wait_for(
    condition: Callable[[], T | None], what: str, timeout_s: float = 10.0, poll_s: float = 0.01
) -> T:
    """Return the condition's first true value; fail with `what` at the deadline."""
    timeout_s *= SCALE
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(poll_s)


def freeze(pid: int, name: str) -> None:
    """SIGSTOP, and wait until every thread has stopped: the signal alone takes its time."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_for(
        lambda: all(
            (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
            for task in tasks.iterdir()
        ),
        f"{name} to stop",
    )


class Daemon:
    """One server process with its log and the ports it printed to its port file."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        folder: Path,
        package: Path | None = None,
        environment: Mapping[str, str] | None = None,
        on: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            name: of its log.
            arguments: of the interpreter.
            folder: of its files.
            package: folder of another installation.
            environment: added to this process's.
            on: how its command begins (tests/support/network.py).
        """
        self.name = name
        self.log = folder / f"{name}.log"
        self._port_file = folder / f"{name}.ports"
        self._port_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*on, sys.executable, *arguments, "--port-file", str(self._port_file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # Found before the working folder's package, which -m would put first.
                env={
                    **os.environ,
                    **({"PYTHONPATH": str(package)} if package else {}),
                    **(environment or {}),
                },
                cwd=package,
            )
        self.ports: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_started(self, timeout_s: float = START_TIMEOUT_S) -> None:
        def ready() -> bool:
            code = self.process.poll()
            assert code is None, f"{self.name} exited with {code}:\n{self.log.read_text()}"
            return self._port_file.exists() and bool(self._port_file.read_text().strip())

        wait_for(ready, f"{self.name} to write its port file", timeout_s)
        self.ports = json.loads(self._port_file.read_text())

    def wait_started_or_refused(self, timeout_s: float = START_TIMEOUT_S) -> bool:
        """Wait until the process serves or has exited; whether it serves."""
        wait_for(
            lambda: self.process.poll() is not None or self._port_file.exists(),
            f"{self.name} to start or to exit",
            timeout_s,
        )
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def freeze(self) -> None:
        freeze(self.pid, self.name)

    def kill(self) -> None:
        """kill -9, and wait until the process is gone."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; the exit code. Kills, and fails, when the process does not end."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(timeout_s * SCALE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(
                f"{self.name} did not end on SIGTERM:\n{self.log.read_text()}"
            ) from None


@contextmanager
def python_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a process of its own, which is killed by pid when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def run_to_end(command: Sequence[str], folder: Path, timeout_s: float = 90) -> tuple[str, int]:
    """Run a program that has to succeed; what it printed, and its pid. A late one has to end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, progress = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()  # upon which it ends what it started
            raise
    assert process.returncode == 0, progress
    return out, process.pid


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line the process prints; a process that exited instead is a failure."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process exited with {process.wait()} instead of printing a line"
    return line.strip()
