"""Bounded reads of sysfs and procfs: what is missing, hostile or endless is unknown, no error."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")

_MAX_ATTRIBUTE_BYTES = 4096  # a page, as in the kernel
_MAX_ENTRIES = 4096
_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,255}")


def text(path: Path, limit: int = _MAX_ATTRIBUTE_BYTES) -> str:
    """Read an attribute, without blanks around it.

    Args:
        path: of the file.
        limit: most bytes that are read.

    Returns:
        Its text; empty when it is missing, no regular file, or not printable ASCII.
    """
    return " ".join(raw.split()) if (raw := lines(path, limit)) else ""


def lines(path: Path, limit: int = _MAX_ATTRIBUTE_BYTES) -> str:
    """Read a file of several lines; otherwise as `text`."""
    try:
        # A FIFO or a terminal in the place of a file would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        parts = []
        while limit > 0 and (part := os.read(descriptor, limit)):
            parts.append(part)
            limit -= len(part)
    except OSError:
        return ""  # as of a GID table's empty entries
    finally:
        os.close(descriptor)
    found = b"".join(parts).decode("ascii", errors="replace")
    plain = found.replace("\n", "").replace("\t", "")
    return found if plain.isascii() and (not plain or plain.isprintable()) else ""


def name(path: Path) -> str:
    """Read a device's name; empty when it could be no component of a path."""
    found = text(path)
    return found if is_name(found) else ""


def is_name(text: str) -> bool:
    """Say whether a text can be the name of a device, and so one component of a path."""
    return _NAME.fullmatch(text) is not None and text not in (".", "..")


def whole(path: Path) -> int | None:
    """Read a decimal number; None when there is none."""
    found = text(path)
    return int(found) if re.fullmatch(r"-?[0-9]{1,18}", found) else None


def names(folder: Path) -> list[str]:
    """List a folder: at most 4,096 entries, in natural order; none when it cannot be read."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    found.append(entry.name)
                if len(found) == _MAX_ENTRIES:
                    break
    except (OSError, ValueError):
        return []
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Order mlx5_10 after mlx5_9."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"([0-9]+)", name)]


def resolved(path: Path) -> Path | None:
    """Follow links to the end; None when they loop or lead nowhere."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop, before Python 3.13
        return None


def ranges(listed: str) -> list[int]:
    """Read a list such as "0-3,8"; what is not one is empty."""
    found: list[int] = []
    for part in listed.split(",") if listed else []:
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        if match is None:
            return []
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > _MAX_ENTRIES:
            return []
        found.extend(range(first, last + 1))
    return found
