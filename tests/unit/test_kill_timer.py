"""The kernel ends a process that cannot end itself."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import os, signal, sys, time
from kvstore import clock
from kvstore.master.kill_timer import KillTimer
timer = KillTimer()
timer.set(clock.monotonic_ms() + 60_000)
timer.set(clock.monotonic_ms() + int(sys.argv[2]))
if sys.argv[1] == "closed":
    timer.close()
elif sys.argv[1] == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
elif sys.argv[1] == "waiting":
    time.sleep(60)
os._exit(7)
"""


@pytest.mark.parametrize(
    ("what", "in_ms", "code"),
    [
        ("stopped", 100, -signal.SIGKILL),
        ("waiting", 100, -signal.SIGKILL),
        ("waiting", -1000, -signal.SIGKILL),
        ("closed", 30_000, 7),
    ],
)
def test_the_process_is_killed_in_time(what: str, in_ms: int, code: int) -> None:
    command = [sys.executable, "-c", _PROGRAM, what, str(in_ms)]
    assert subprocess.run(command, timeout=30, check=False).returncode == code
