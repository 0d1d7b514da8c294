"""A driver program in an engine's environment: JSON commands in, JSON answers out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class EngineProcess:
    """Starts a driver on request, answers line by line, and always ends by pid."""

    def __init__(
        self,
        python: Path,
        package: Path,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it: `package` is the copy of kvstore that it runs, `arguments` its Python's."""
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [python, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                # The copy comes before the source tree, which has no extension module inside.
                cwd=package,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{package}{os.pathsep}{ROOT}",
                    **(environment or {}),
                },
            )
        self.about: dict[str, Any] = {}

    def receive(self) -> dict[str, Any]:
        """Return the next answer; a driver that exited instead is a failure."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise AssertionError(f"the driver exited with {code}:\n{self.log.read_text()[-8000:]}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def send(self, do: str, **command: Any) -> None:
        """Give a command; `receive` waits for its answer."""
        assert self.process.stdin is not None
        print(json.dumps({"do": do, **command}), file=self.process.stdin, flush=True)

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Give a command and return its answer."""
        self.send(do, **command)
        return self.receive()

    def end(self, timeout_s: float = 60) -> None:
        """Close stdin, and wait until the driver has exited by itself, without an error."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = self.process.wait(timeout_s)
        finally:
            self.kill()
        assert code == 0, f"the driver exited with {code}:\n{self.log.read_text()[-8000:]}"

    def kill(self) -> None:
        """Kill it; does nothing when it has exited."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()


@contextmanager
def two_processes(
    python: Path, package: Path, driver: str, logs: Path
) -> Iterator[list[EngineProcess]]:
    """Two processes that have imported an engine, which takes long; killed when the block ends."""
    started: list[EngineProcess] = []
    try:
        for name in ("first", "second"):
            started.append(EngineProcess(python, package, ["-m", driver], logs / f"{name}.log"))
        for process in started:
            assert process.receive() == {"ready": True}
        yield started
        for process in started:
            process.end()
    finally:
        for process in started:
            process.kill()
