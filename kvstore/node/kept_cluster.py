"""The file ``cluster_id`` in a node's folders: which cluster the objects in them belong to.

A node presents it when it registers. So a master that has lost its state is told, instead of
beginning another cluster.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from kvstore.config import NodeConfig
from kvstore.folders import replace_file
from kvstore.logging import EventLogger

_log = EventLogger("node")
NAME = "cluster_id"


def folders(config: NodeConfig, kept_segment: bool) -> list[Path]:
    """List the folders whose objects the node will not give up.

    Args:
        config: of the node.
        kept_segment: whether the segment holds anything of an earlier process.
    """
    segment = kept_segment and not config.discard_foreign_segment
    nvme = [] if config.discard_foreign_nvme else config.nvme_dirs()
    return [Path(config.directory())] * segment + [*map(Path, nvme)]


def read(directories: Iterable[Path]) -> tuple[str, str]:
    """Return the cluster that the first of the folders names, and its file; empty: none does."""
    for directory in directories:
        path = directory / NAME
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                text = os.read(descriptor, 64).decode().strip()
            finally:
                os.close(descriptor)
        except (OSError, UnicodeDecodeError):
            continue  # the files beside it have marks of their own
        if re.fullmatch("[0-9a-f]{32}", text):
            return text, str(path)
    return "", ""


def write(config: NodeConfig, cluster_id: str) -> None:
    """Note the cluster in the node's folders, which are its own now."""
    for directory in (config.directory(), *config.nvme_dirs()):
        path = Path(directory) / NAME
        try:
            replace_file(path, [f"{cluster_id}\n"], path.with_name(f".{NAME}"))
        except OSError as error:
            _log.warning("cluster_not_noted", path=str(path), error=error.strerror)


def remove(directory: str) -> None:
    """Delete the file with the segment that it stood for."""
    try:
        (Path(directory) / NAME).unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cluster_not_noted", path=directory, error=error.strerror)
