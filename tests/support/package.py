"""Another installation of the package in a folder, for processes that are to run that one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# An editable installation finds the package before PYTHONPATH is looked at.
_NOT_EDITABLE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
"""


def copy_package(folder: Path, extension: Path) -> None:
    """Copy the package, with the given extension inside.

    Processes run it that have the folder as PYTHONPATH (tests.support.processes.Daemon: `package`).
    """
    source = ROOT / "kvstore"
    shutil.copytree(source, folder / "kvstore", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(extension, folder / "kvstore" / extension.name)
    (folder / "sitecustomize.py").write_text(_NOT_EDITABLE)
    ran = subprocess.run(
        [sys.executable, "-c", "import kvstore._native as n; print(n.__file__)"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith(str(folder)), f"processes still run {ran.stdout}"
