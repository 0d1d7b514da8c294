"""Which UCX a process takes, with which devices and settings."""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path

import pytest

from kvstore import ucx
from kvstore.errors import InvalidArgumentError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ucx.LIBRARY_VARIABLE, "UCX_MODULE_DIR", "UCX_NET_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def wheel(folder: Path, name: str) -> Path:
    library = folder / name / "libucp-b39b3ed9.so.0.0.0"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")
    return library


def test_the_system_comes_before_a_wheel_and_a_name_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = wheel(tmp_path, "nixl_cu13.libs")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    assert ucx.libraries(tmp_path) == [str(found)]
    assert os.environ["UCX_MODULE_DIR"] == str(found.parent / "ucx")
    first = wheel(tmp_path, "nixl_cu12.libs")
    assert ucx.libraries(tmp_path) == [str(first)]
    assert ucx.libraries(tmp_path / "nothing") == []
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.0")
    assert ucx.libraries(tmp_path) == [ucx.SYSTEM]
    monkeypatch.setenv(ucx.LIBRARY_VARIABLE, "/opt/ucx/libucp.so.0")
    assert ucx.libraries(tmp_path) == ["/opt/ucx/libucp.so.0"]


def test_whoever_names_devices_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ucx.names_devices(["TLS", "LOG_LEVEL"])
    assert ucx.names_devices(["TLS", "NET_DEVICES"]) and ucx.names_devices(["UCX_NET_DEVICES"])
    monkeypatch.setenv("UCX_NET_DEVICES", "mlx5_1:1")
    assert ucx.names_devices([])


def test_settings_are_names_and_strings() -> None:
    assert ucx.settings({"UCX_TLS": "rc", "LOG_LEVEL": "fatal"}, ["mlx5_0", "mlx5_1:2"]) == [
        ("NET_DEVICES", "mlx5_0:1,mlx5_1:2"),
        ("TLS", "rc"),
        ("LOG_LEVEL", "fatal"),
    ]
    for bad in ({"tls": "rc"}, {"": "x"}, {"TLS": 1}, {"TLS": "a\nb"}, {"T L S": "rc"}):
        with pytest.raises(InvalidArgumentError, match="ucx"):
            ucx.settings(bad)  # type: ignore[arg-type]
