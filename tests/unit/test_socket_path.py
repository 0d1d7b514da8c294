"""The folder of a node's Unix socket, and who may enter it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from kvstore.config import NodeConfig, load
from kvstore.errors import InvalidArgumentError, IoError
from kvstore.node import socket_path


def config(folder: Path, **keys: Any) -> NodeConfig:
    return NodeConfig(node_id="a", socket_dir=str(folder), **keys)


def bits(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_socket_lies_in_a_folder_of_its_node(tmp_path: Path) -> None:
    plain = config(tmp_path)
    assert socket_path.endpoint(plain) == f"unix://{tmp_path}/a/node.sock"
    for name, component in (("x/../y", "x_.._y"), ("..", "_.."), (".", "_.")):
        named = NodeConfig(node_id=name, socket_dir="/run/kv")
        assert socket_path.endpoint(named) == f"unix:///run/kv/{component}/node.sock"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_those_who_may_connect_may_enter(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = tmp_path / "sockets"
        assert socket_path.prepare(config(folder)) == (0o600, -1)
        assert (bits(folder), bits(folder / "a")) == (0o755, 0o700)
        own = str(os.getegid())
        assert socket_path.prepare(config(folder, socket_group=own)) == (0o660, os.getegid())
        assert bits(folder / "a") == 0o750
        anybody = config(folder, socket_mode="666", auth_token_file="/tokens")
        assert socket_path.prepare(anybody) == (0o666, -1)
        assert bits(folder / "a") == 0o755
        socket_path.remove_folder(anybody)
        assert (folder / "a").is_dir(), "a container may have mounted it"
        socket_path.remove_folder(config(folder, keep_segment=False))
        assert not (folder / "a").exists() and folder.is_dir()
    finally:
        os.umask(before)


def test_the_group_of_a_volume_is_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    socket_path.prepare(config(tmp_path, socket_mode="0660"))
    assert bits(tmp_path / "a") == 0o2750


def test_without_a_folder_of_its_own_nothing_is_touched(tmp_path: Path) -> None:
    assert socket_path.prepare(NodeConfig(segment_dir=str(tmp_path))) == (0o600, -1)
    socket_path.remove_folder(NodeConfig(segment_dir=str(tmp_path), keep_segment=False))
    assert list(tmp_path.iterdir()) == []


def test_what_another_could_have_put_there_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "a").symlink_to(elsewhere)
    with pytest.raises(IoError, match="socket_dir"):
        socket_path.prepare(config(tmp_path, socket_group=str(os.getegid())))
    assert bits(elsewhere) == 0o700
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("a file")
    with pytest.raises(IoError, match="socket_dir"):
        socket_path.prepare(config(tmp_path))
    with pytest.raises(IoError, match="socket_dir"):
        socket_path.prepare(config(tmp_path / "missing" / "deeper"))
    assert not (tmp_path / "missing").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a folder of another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.chown(tmp_path / "a", 7, -1)
    with pytest.raises(IoError, match="belongs to uid 7"):
        socket_path.prepare(config(tmp_path))


def test_a_group_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="socket_group no-such-group"):
        socket_path.prepare(NodeConfig(socket_dir="/run/kv", socket_group="no-such-group"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"socket_mode": "0666", "socket_dir": "/run/kv"}, "auth_token_file"),
        ({"socket_mode": "0060", "socket_dir": "/run/kv"}, "0600, 0660 or 0666"),
        ({"socket_mode": "0770", "socket_dir": "/run/kv"}, "0600, 0660 or 0666"),
        ({"socket_mode": "rw-rw----", "socket_dir": "/run/kv"}, "socket_mode"),
        ({"socket_mode": 660, "socket_dir": "/run/kv"}, "socket_mode"),
        ({"socket_mode": "0660"}, "socket_dir"),
        ({"socket_group": "kv"}, "socket_dir"),
        ({"socket_dir": "run/kv"}, "absolute"),
        ({"socket_dir": "/run/" + "x" * 100, "node_id": "a"}, "107 bytes"),
        ({"socket_dir": "/run/kv", "node_id": "n" * 100}, "node_id"),
    ],
)
def test_a_socket_that_serves_nobody_or_everybody_is_refused(
    keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        load(NodeConfig, None, keys)
