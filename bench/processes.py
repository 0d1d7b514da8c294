"""Child processes: started with a log of their own, and ended by their pid, whatever happens."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
WORKER_SEED = 1  # which of the objects that were put are read again
_END_S = 15.0
_START_S = 60.0


class BenchError(Exception):
    """Something that the benchmark needs has failed; the message says what."""


def free_port() -> int:
    """A port that nothing listens on now, for programs that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = _START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


P = TypeVar("P", bound="Process")


class Process:
    """A running program; a context manager that ends it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        pipes: bool = False,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                cwd=ROOT if pipes else folder,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def failed(self, what: str) -> BenchError:
        tail = self.log.read_text(errors="replace")[-2000:]
        return BenchError(f"{self.name}: {what}\n{tail}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        def check() -> bool:
            if self._process.poll() is not None:
                raise self.failed(f"ended with {self._process.returncode} before {what}")
            return condition()

        try:
            wait_for(check, f"{self.name} {what}")
        except BenchError as error:
            raise self.failed(str(error)) from None

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def __enter__(self: P) -> P:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Talker(Process):
    """A program that answers each line on stdin with a line of JSON."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, command, folder, environment, pipes=True)

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failed("ended") from None

    def receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self.failed(f"ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise self.failed(answer["error"])
        return answer

    def stop(self) -> None:
        """Close its stdin, upon which it ends by itself; else end it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_END_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        super().stop()
        self._process.stdout.close()


class WorkerProcess(Talker):
    """A `bench.worker` in an environment of choice."""

    def __init__(
        self,
        name: str,
        driver: str,
        options: Mapping[str, Any],
        folder: Path,
        working_set: int,
        python: str | Path = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        given = {
            "driver": driver,
            "options": dict(options),
            "working_set": working_set,
            "seed": WORKER_SEED,
        }
        command = [python, "-m", "bench.worker", json.dumps(given)]
        super().__init__(name, command, folder, environment)
        try:
            self.receive()
        except BaseException:
            self.stop()
            raise

    def order(self, do: str, **arguments: Any) -> None:
        """Send a command whose answer is taken later, so that several workers run at a time."""
        self.send(json.dumps({"do": do, **arguments}))

    def answer(self) -> Any:
        return self.receive()["value"]

    def ask(self, do: str, **arguments: Any) -> Any:
        self.order(do, **arguments)
        return self.answer()
