"""The tests of the API by UCX as a run of their own: on other devices, or with another UCX."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import SCALE

_ROOT = Path(__file__).resolve().parents[2]


def run_by_ucx(
    tests: Sequence[str],
    environment: Mapping[str, str],
    before: Sequence[str] = (),
    python: str = sys.executable,
) -> int:
    """Run those of the tests that take UCX; fail where one fails or is skipped.

    Args:
        tests: files or folders.
        environment: of the run.
        before: put before the command.
        python: the interpreter.

    Returns:
        How many passed.
    """
    options = ["-q", "-k", "ucx", "-p", "no:cacheprovider", "-o", f"timeout={int(120 * SCALE)}"]
    done = subprocess.run(
        [*before, python, "-m", "pytest", *options, *tests],
        cwd=_ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    return int(passed[1])
