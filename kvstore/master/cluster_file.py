"""The file ``cluster`` beside the master's state: which cluster it is, and the last epoch.

So that a state that was lost, emptied or exchanged is noticed, instead of replaced by a new one.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from kvstore import folders
from kvstore.errors import IoError
from kvstore.limits import MAX_EPOCH
from kvstore.master.records import is_cluster_id

NAME = "cluster"
_MOST_BYTES = 4096


class ClusterFile(NamedTuple):
    """Its contents."""

    cluster_id: str
    epoch: int


def read(directory: Path) -> tuple[ClusterFile | None, str]:
    """Read the file of a data directory.

    Returns:
        Its contents, or None; and why they are not usable, empty if there is no file.
    """
    path = directory / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None, f"{path} is not a regular file"
        raw = os.read(descriptor, _MOST_BYTES)
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    finally:
        os.close(descriptor)
    found = _parse(raw)
    return found, "" if found else f"{path} is damaged"


def _parse(raw: bytes) -> ClusterFile | None:
    try:
        given: Any = json.loads(raw)
        found = ClusterFile(given["cluster_id"], given["epoch"])
        whole = given["checksum"] == _checksum(found)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_epoch = isinstance(found.epoch, int) and 0 <= found.epoch <= MAX_EPOCH
    return found if whole and is_epoch and is_cluster_id(found.cluster_id) else None


def _checksum(found: ClusterFile) -> str:
    return f"{zlib.crc32(f'{found.cluster_id} {found.epoch}'.encode()):08x}"


def write(directory: Path, found: ClusterFile) -> None:
    """Replace the file, durably; the old one stays if that fails.

    Raises:
        IoError: The operating system refused.
    """
    path, temporary = directory / NAME, directory / f".{NAME}"
    text = json.dumps({**found._asdict(), "checksum": _checksum(found)}) + "\n"
    try:
        folders.replace_file(path, [text], temporary)
        sync_names(directory)
    except OSError as error:
        raise IoError(f"{path}: {error.strerror}") from error


def sync_names(directory: Path) -> None:
    """Make created, renamed and deleted names durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
