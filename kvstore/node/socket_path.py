"""The node's Unix socket: its path, its folder, and which users may connect to it."""

from __future__ import annotations

import grp
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kvstore import folders
from kvstore.config import NodeConfig
from kvstore.errors import InvalidArgumentError, IoError
from kvstore.limits import MAX_SOCKET_PATH_BYTES

_SOCKET = "node.sock"


class Access(NamedTuple):
    """Permission bits and group of the socket's path."""

    mode: int
    gid: int
    """-1: the process's own, or that of a set-group-ID folder."""


def endpoint(config: NodeConfig) -> str:
    """Return the node's Unix endpoint.

    It lies in a folder of its own in `socket_dir`, else in `segment_dir`: there it is abstract when
    the path is too long.
    """
    path = str(_folder(config) / _SOCKET)
    if config.socket_dir or len(path.encode()) <= MAX_SOCKET_PATH_BYTES:
        return f"unix://{path}"
    return f"unix:@kvstore-{config.name()[:64]}-{os.getpid()}"


def prepare(config: NodeConfig) -> Access:
    """Create the socket's folder in `socket_dir`, for those who may connect.

    Args:
        config: of the node.

    Returns:
        What the socket itself gets.

    Raises:
        InvalidArgumentError: There is no such `socket_group`.
        IoError: The folder cannot be created, or is another user's.
    """
    access = Access(config.socket_permissions(), _group(config.socket_group))
    if not config.socket_dir or "shm" not in config.transports:
        return access
    folder = _folder(config)
    existed = folder.parent.exists()
    folders.make("socket_dir", config.socket_dir)
    try:
        if not existed:
            folder.parent.chmod(0o755)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _open_up(folder, access)
    except IoError:
        raise
    except OSError as error:
        at = error.filename or str(folder)
        raise IoError(f"socket_dir {config.socket_dir}: {at}: {error.strerror}") from error
    return access


def remove_folder(config: NodeConfig) -> None:
    """Remove the folder in `socket_dir` once the socket is gone.

    Not that of a node which comes back: a container that mounts the folder would keep the old one.
    """
    if config.socket_dir and not config.keep_segment:
        with suppress(OSError):
            _folder(config).rmdir()


def _folder(config: NodeConfig) -> Path:
    if not config.socket_dir:
        return Path(config.directory())
    return Path(config.socket_dir) / config.file_name()


def _open_up(folder: Path, access: Access) -> None:
    """Let those into the folder who may connect to the socket in it."""
    # Through a descriptor: the folder may be in one that others write to, as /tmp is.
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise IoError(
                f"socket_dir {folder.parent}: {folder} belongs to uid {found.st_uid}, not to this "
                f"node's uid {os.geteuid()}: remove it"
            )
        if access.gid not in (-1, found.st_gid):
            try:
                os.fchown(fd, -1, access.gid)
            except PermissionError:
                raise IoError(
                    f"socket_group {access.gid}: this node's uid {os.geteuid()} must be a member "
                    f"of it to give it {folder}"
                ) from None
        mode = 0o700 | (0o050 if access.mode & 0o020 else 0) | (0o005 if access.mode & 0o002 else 0)
        # Kept: the socket inherits the group of a volume by it.
        os.fchmod(fd, mode | (found.st_mode & stat.S_ISGID))
    finally:
        os.close(fd)


def _group(name: str) -> int:
    if not name:
        return -1
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgumentError(
            f"socket_group {name}: this host has no such group; a number is taken, too"
        ) from None
