"""The operator's tool as a process, with and without a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from typing import NamedTuple

PROGRAM = [sys.executable, "-m", "kvstore.cli.operator"]
_TIMEOUT_S = 60


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def run(*arguments: str, input: bytes = b"", **environment: str) -> Ran:
    """Run the tool with pipes."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        input=input,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
        env={**os.environ, **environment},
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_on_terminal(*arguments: str, answer: str = "", columns: int = 40) -> Ran:
    """Run the tool on a terminal, typing an answer; `out` is all that the terminal shows."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(slave)
    os.write(master, answer.encode())
    shown = bytearray()
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.2)[0]:
                continue
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
        return Ran(process.wait(_TIMEOUT_S), shown.decode(errors="replace"), "")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
