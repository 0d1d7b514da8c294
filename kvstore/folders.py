"""Folders that the configuration names: creating them, and the file system they are on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
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


def check_safe(setting: str, path: str) -> None:
    """Refuse a folder in which another user could put files of their own in place of ours.

    A mounted volume may let everybody write, as those of containers do: who sees it is decided
    where it is mounted.

    Args:
        setting: name of the configuration's key, for the message.
        path: of the folder.

    Raises:
        IoError: It is a symbolic link, another user's, or everybody may write to it.
    """
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise IoError(f"{setting} {path} is a symbolic link: name the folder itself")
    if not stat.S_ISDIR(found.st_mode):
        raise IoError(f"{setting} {path} is not a folder")
    if found.st_uid not in (0, os.geteuid()):
        raise IoError(
            f"{setting} {path} belongs to uid {found.st_uid}, not to this process's uid "
            f"{os.geteuid()}: choose another folder, or chown it"
        )
    is_open = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    if is_open and not os.path.ismount(path):
        raise IoError(
            f"{setting} {path} lets every user write: chmod o-w, or choose another folder"
        )


def replace_file(path: Path, lines: Iterable[str], temporary: Path) -> None:
    """Give `path` new contents, durably and at once; the old ones stay if that fails.

    Args:
        path: of the file, which gets mode 0600.
        lines: of text.
        temporary: a name beside it. What an earlier process left there is removed.

    Raises:
        OSError: The operating system refused.
    """
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise


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
