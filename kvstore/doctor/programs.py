"""Runs what may crash or hang, foreign libraries, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_MAX_OUTPUT_BYTES = 64 << 10
_LIBRARY_S = 20.0
_MAX_DETAIL = 300


@dataclass(frozen=True)
class Answer:
    """What a program said."""

    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why it said nothing; empty: it did."""


def ask(command: Sequence[str], timeout_s: float) -> Answer:
    """Run a program that prints one JSON object in its last line.

    Args:
        command: the program and its arguments.
        timeout_s: it is killed after this time.

    Returns:
        The object; or an error in words, when the program crashed, hung or said something else.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        return Answer(error=f"{command[0]}: {error.strerror}")
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(timeout_s, stop)
    timer.start()
    try:
        assert process.stdout is not None
        output = process.stdout.read(_MAX_OUTPUT_BYTES)
        process.stdout.close()
        if len(output) == _MAX_OUTPUT_BYTES:
            process.kill()
        code = process.wait()
    finally:
        timer.cancel()
    if late.is_set():
        return Answer(error=f"no answer within {timeout_s:g} s")
    return _parse(output.decode(errors="replace"), code)


def _parse(output: str, code: int) -> Answer:
    said = output.strip().splitlines()
    try:
        values = json.loads(said[-1]) if said else None
    except (ValueError, RecursionError):
        values = None
    if code == 0 and isinstance(values, dict):
        error = values.get("error")
        return Answer(values, str(error) if error else "")
    how = f"crashed with signal {-code}" if code < 0 else f"exited with {code}"
    detail = f": {said[-1][:_MAX_DETAIL]}" if said else ""
    return Answer(error=how + detail)


def ask_library(kind: str, library: str) -> Answer:
    """Load a library in another process and ask for its version.

    Args:
        kind: "ucx" or "cuda".
        library: a path, or a name that the loader finds.
    """
    program = str(_HERE / "library_program.py")
    return ask([sys.executable, "-I", "-B", program, kind, library], _LIBRARY_S)
