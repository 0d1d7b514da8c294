"""Enables the drop-in for this process and every Python process that it starts."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from kvstore.compat.mooncake import finder
from kvstore.errors import UnsupportedError

SWITCH = "KVSTORE_COMPAT_MOONCAKE"
_SITE = str(Path(__file__).with_name("site"))


def installed() -> bool:
    """Say whether `import mooncake.store` imports the drop-in in this process."""
    module = sys.modules.get("mooncake.store")
    return (
        module is not None and getattr(module.__spec__, "origin", "") == "kvstore.compat.mooncake"
    )


def install(children: bool = True) -> None:
    """Make `import mooncake` import the drop-in from now on.

    Modules that it lacks (`mooncake.engine`, …) come from an installed Mooncake, if any.

    Args:
        children: also in child processes (fork, spawn, exec of any program that runs Python): a
            folder is put first on PYTHONPATH. Interpreters started with -S, -E or -I ignore it.

    Raises:
        UnsupportedError: The real Mooncake is already imported; install before the engine.
    """
    if not installed():
        there = [name for name in finder.MODULES if name in sys.modules]
        if there:
            raise UnsupportedError(f"{there[0]} is already imported: install the drop-in before it")
    finder.insert()
    if children:
        os.environ.update(environment(os.environ.get("PYTHONPATH", "")))
    for name in finder.MODULES:
        importlib.import_module(name)


def environment(python_path: str) -> dict[str, str]:
    """Return the environment variables that enable the drop-in in a child.

    Args:
        python_path: current PYTHONPATH.
    """
    folders = [one for one in python_path.split(os.pathsep) if one and one != _SITE]
    return {SWITCH: "1", "PYTHONPATH": os.pathsep.join([_SITE, *folders])}
