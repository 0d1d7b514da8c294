"""Runs a Python module, a script or any other program with the drop-in enabled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kvstore
from kvstore.compat.mooncake.install import environment

_USAGE = """\
usage: python -m kvstore.compat.mooncake -m MODULE [ARGUMENT …]
       python -m kvstore.compat.mooncake SCRIPT.py [ARGUMENT …]
       python -m kvstore.compat.mooncake PROGRAM [ARGUMENT …]

Runs it with `import mooncake` resolved to kvstore, in this process and those that it starts.
For example:
       python -m kvstore.compat.mooncake vllm serve MODEL --kv-transfer-config …"""


def main(arguments: list[str]) -> int:
    """Execute the program; returns only when that is not possible."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"kvstore.compat.mooncake, version {kvstore.__version__}")
        return 0
    if sys.flags.ignore_environment or sys.flags.isolated or sys.flags.no_site:
        print("kvstore.compat.mooncake: does not work with python -I, -E or -S", file=sys.stderr)
        return 2
    # The same interpreter with the same options: nothing but PYTHONPATH tells it from a plain run.
    python = [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
    first = arguments[0]
    if first in ("-m", "-c") and len(arguments) > 1:
        command = [*python, *arguments]
    elif first.startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 2
    elif Path(first).is_file() and not os.access(first, os.X_OK):
        command = [*python, *arguments]
    elif (program := shutil.which(first)) is not None:
        command = [program, *arguments[1:]]
    elif Path(first).exists():
        command = [*python, *arguments]
    else:
        print(f"kvstore.compat.mooncake: no file or program {first!r}", file=sys.stderr)
        return 127
    sys.stdout.flush()
    os.execve(command[0], command, os.environ | environment(os.environ.get("PYTHONPATH", "")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
