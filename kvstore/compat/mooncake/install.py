"""Switching the drop-in on: for this process, and for every Python that it starts."""

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
    """Say whether `import mooncake.store` gives the drop-in in this process."""
    module = sys.modules.get("mooncake.store")
    return (
        module is not None and getattr(module.__spec__, "origin", "") == "kvstore.compat.mooncake"
    )


def install(children: bool = True) -> None:
    """Make `import mooncake` give the drop-in, from now on.

    Modules that it does not have (`mooncake.engine`, …) come from an installed Mooncake, if any.

    Args:
        children: also in processes that this one starts, however it does (fork, spawn, exec of any
            program that runs Python): a folder is put first on PYTHONPATH. Interpreters started
            with -S, -E or -I do not look there.

    Raises:
        UnsupportedError: A real Mooncake was imported already; install before the engine.
    """
    if not installed():
        there = [name for name in finder.MODULES if name in sys.modules]
        if there:
            raise UnsupportedError(f"{there[0]} is imported already: install the drop-in before it")
    finder.insert()
    if children:
        os.environ.update(environment(os.environ.get("PYTHONPATH", "")))
    for name in finder.MODULES:
        importlib.import_module(name)


def environment(python_path: str) -> dict[str, str]:
    """Return what switches the drop-in on in a child's environment.

    Args:
        python_path: PYTHONPATH so far.
    """
    folders = [one for one in python_path.split(os.pathsep) if one and one != _SITE]
    return {SWITCH: "1", "PYTHONPATH": os.pathsep.join([_SITE, *folders])}
