"""Folders that the configuration names: creating them, and the file system they are on."""

from __future__ import annotations

import os
from pathlib import Path

from kvstore.errors import IoError

_IN_MEMORY = frozenset({"tmpfs", "hugetlbfs", "ramfs"})


def make(setting: str, path: str) -> None:
    """Create a folder if it is missing, with mode 0700.

    Only the last component is created: a misspelt path, or a volume that is not mounted, must not
    become a folder on the root disk.

    Args:
        setting: name of the configuration's key, for the message.
        path: of the folder.

    Raises:
        IoError: It cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        raise IoError(
            f"{setting} {path}: {folder.parent} does not exist, and only the last component is "
            "created"
        ) from None
    except OSError as error:
        raise IoError(f"{setting} {path}: {error.strerror}") from error


def file_system(path: str) -> str:
    """Return the type of the file system that a folder is on; empty if it cannot be told."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    for line in mounts.splitlines():
        about, _, kind = line.partition(" - ")
        if about.split()[2] == wanted:
            return kind.split()[0]
    return ""


def in_memory(kind: str) -> bool:
    """Whether a type of file system keeps its files in memory; an unknown one counts as such."""
    return not kind or kind in _IN_MEMORY
