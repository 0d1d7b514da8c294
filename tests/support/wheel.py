"""A wheel, tried as an engine has it: in an environment that has nothing else of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.package import ROOT

# What an engine calls; the other modules of the folder need the servers' packages or type checkers.
API_TESTS = {
    "embedded": ("async_store", "library_edges", "lifecycle", "miss_reasons"),
    "contract": ("store_api", "tensors"),
}
# Nodes that are processes of their own need the servers' packages.
SELECTED = {"embedded": "test", "contract": "shm"}


def run_api_tests(wheel: Path, folder: Path) -> None:
    """Install the wheel in a new environment in `folder`, and run the tests of the API there."""
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = str(folder / "venv" / "bin" / "python")
    tools = ("pytest", "pytest-timeout", "hypothesis", "numpy", "ml-dtypes")
    run(python, "-m", "pip", "install", "--quiet", str(wheel), *tools)
    # Away from the sources, which would be imported instead.
    for part in ("conftest.py", "__init__.py", "embedded", "contract", "support"):
        source, copy = ROOT / "tests" / part, folder / "run" / "tests" / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    options = ("-q", "-p", "no:cacheprovider", "--confcutdir=tests", "--rootdir=.")
    for part, names in API_TESTS.items():
        modules = [str(Path("tests", part, f"test_{name}.py")) for name in names]
        command = (python, "-m", "pytest", *options, "-k", SELECTED[part], *modules)
        done = run(*command, cwd=folder / "run", env={**os.environ, "PYTHONPATH": ""})
        assert " passed" in done and " skipped" not in done, done
    where = run(python, "-c", "import kvstore._native as n; print(n.__file__)", cwd=folder)
    assert where.startswith(str(folder / "venv"))


def run(*command: str, **options: Any) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)
