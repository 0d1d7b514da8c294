"""A vLLM engine as a process of its environment, asked through its driver."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.processes import wait_for

DRIVER = Path(__file__).with_name("vllm_driver.py")
HOOKS = Path(__file__).with_name("hooks")  # what only tests plug into engines
SHM = Path("/dev/shm")
OF_VLLM = ("vllm_", "psm_", "sem.mp-")  # its own and Python's, not a node's
START_S = 300.0
ANSWER_S = 120.0


def prompt(length: int, seed: int = 1) -> list[int]:
    """Return token numbers that are the same in every process."""
    draw = random.Random(f"{seed}/{length}")
    return [draw.randrange(3, 1000) for _ in range(length)]


@dataclass(frozen=True)
class Generated:
    """What an engine made of a prompt."""

    tokens: list[int]
    cached: int
    """Of the prompt's tokens, how many were not computed."""


class Engine:
    """Started by the constructor; stopped, with all of its children, when the block ends."""

    def __init__(
        self,
        name: str,
        python: Path,
        package: Path,
        model: Path,
        folder: Path,
        transfer: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        **engine: Any,
    ) -> None:
        self.log = folder / f"{name}.log"
        self._answers = folder / f"{name}.answers"
        self._answers.unlink(missing_ok=True)
        self._read = 0
        self._shared: set[Path] = set()
        # vLLM leaves its sockets behind, and their paths have to be short.
        self._sockets = tempfile.mkdtemp(prefix="kvstore-vllm-")
        arguments = json.dumps({**engine, "transfer": transfer})
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [python, str(DRIVER), str(model), str(self._answers), arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=folder,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{package}{os.pathsep}{HOOKS}",
                    "VLLM_HOST_IP": "127.0.0.1",
                    "VLLM_RPC_BASE_PATH": self._sockets,
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    "VLLM_CACHE_ROOT": str(folder / "cache"),
                    "DO_NOT_TRACK": "1",
                    "HF_HUB_OFFLINE": "1",
                    "HF_HOME": str(folder / "hf"),
                    **(environment or {}),
                },
            )

    def wait_started(self) -> None:
        assert self._answer(START_S) == {"ready": True}

    def generate(self, tokens: list[int], max_tokens: int = 24) -> Generated:
        """Continue a prompt greedily."""
        return self.generate_together([tokens], max_tokens)[0]

    def generate_together(
        self, prompts: Sequence[list[int]], max_tokens: int = 24
    ) -> list[Generated]:
        """Continue several prompts at once."""
        self._order(prompts=prompts, max_tokens=max_tokens)
        answer = self._answer(ANSWER_S)
        return [Generated(*one) for one in zip(answer["tokens"], answer["cached"], strict=True)]

    def forget(self) -> None:
        """Empty the engine's own prefix cache."""
        wait_for(self._forgets, "the engine to forget: no block may be in use", poll_s=0.1)

    def count(self, name: str) -> dict[str, float]:
        """Return a counter of vLLM's metrics, by its label "what"."""
        self._order(count=name)
        counted: dict[str, float] = self._answer(ANSWER_S)["counted"]
        return counted

    def _forgets(self) -> bool:
        self._order(forget=True)
        return bool(self._answer(ANSWER_S)["forgotten"])

    def _order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _answer(self, timeout_s: float) -> Any:
        def next_line() -> str | None:
            code = self.process.poll()
            assert code is None, f"the engine ended with {code}:\n{self.tail()}"
            lines = self._answers.read_text().splitlines() if self._answers.exists() else []
            return lines[self._read] if len(lines) > self._read else None

        line = wait_for(next_line, f"an answer\n{self.tail()}", timeout_s, poll_s=0.05)
        self._read += 1
        return json.loads(line)

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])

    def end(self, timeout_s: float = 60.0) -> None:
        """End the engine as its user would; it must succeed."""
        self._shared |= self._shared_memory()
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(timeout_s)
        assert code == 0, f"the engine ended with {code}:\n{self.tail()}"

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shared |= self._shared_memory()
        # A session of its own: its engine core and workers end with it, by their group. Once it has
        # ended by itself, Python's resource tracker still cleans up behind it.
        if self.process.poll() is not None:
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not self._group_lives(), "the engine's processes to end")
        if self.process.poll() is None or self._group_lives():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for path in self._shared:
            path.unlink(missing_ok=True)
        shutil.rmtree(self._sockets, ignore_errors=True)
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _shared_memory(self) -> set[Path]:
        """Return the files of vLLM's shared memory: with several ranks, it leaves them behind."""
        found: set[Path] = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(process.name)) != self.process.pid:
                    continue
                for line in (process / "maps").read_text().splitlines():
                    path = Path(line.rpartition(" ")[2])
                    if path.parent == SHM and path.name.startswith(OF_VLLM):
                        found.add(path)
        return found

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True
