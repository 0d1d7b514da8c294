"""The systemd units: systemd itself finds nothing wrong, and no segment ends with its process."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
NAMES = ("kvstore-master", "kvstore-node")
INSTALLED = "/opt/kvstore/bin/"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="apt-get install systemd"
)


def service(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / f"{name}.service")
    return parser["Service"]


def verify(folder: Path, edit: tuple[str, str] = ("", "")) -> str:
    """What systemd-analyze says of both units, their programs replaced by one that is there."""
    for name in NAMES:
        text = (UNITS / f"{name}.service").read_text().replace(*edit)
        assert text.count(INSTALLED) == 1
        before, _, after = text.partition(INSTALLED)
        (folder / f"{name}.service").write_text(before + "/bin/true" + after[after.index(" ") :])
    files = [str(folder / f"{name}.service") for name in NAMES]
    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=60
    )
    return done.stderr + done.stdout


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    assert verify(tmp_path) == ""


@needs_systemd
def test_systemd_would_find_something_wrong(tmp_path: Path) -> None:
    assert "perhaps" in verify(tmp_path, ("RemoveIPC=no", "RemoveIPC=perhaps"))
    assert "Protectsystem" in verify(tmp_path, ("ProtectSystem=", "Protectsystem="))


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_hardened_and_reloads(name: str) -> None:
    unit = service(name)
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    wanted = {
        "KillSignal": "SIGTERM",
        "Restart": "on-failure",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "CapabilityBoundingSet": "",
        "StateDirectory": name,
    }
    assert {key: unit[key] for key in wanted} == wanted
    assert "DynamicUser" in unit or unit["User"] == "kvstore"


def test_nothing_takes_a_nodes_segments_away() -> None:
    unit = service("kvstore-node")
    # A dynamic user implies RemoveIPC=yes: its files in /dev/shm go when the unit stops.
    assert "DynamicUser" not in unit
    for key in ("RemoveIPC", "PrivateIPC", "PrivateDevices"):
        assert unit[key] == "no", key
    assert unit["LimitMEMLOCK"] == "infinity"
