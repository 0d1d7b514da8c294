"""The UCX inside a wheel of nixl, on a host that has no other: found, and as good as Debian's."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.suite import run_by_ucx
from tests.support.transports import TRAFFIC_VARIABLE

pytestmark = pytest.mark.cluster

WHEEL_VARIABLE = "KVSTORE_NIXL_WHEEL"
FIND = "from kvstore import ucx; print(ucx.libraries())"


@pytest.fixture(scope="module")
def wheel() -> Path:
    named = os.environ.get(WHEEL_VARIABLE)
    if not named:
        pytest.skip(f"{WHEEL_VARIABLE} names no wheel of nixl-cu12 (make test-ucx-wheel sets it)")
    return Path(named)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An interpreter that has the wheel, and what this one has."""
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python3*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    here = [str(Path(__file__).resolve().parents[2]), sysconfig.get_paths()["platlib"]]
    (packages / "here.pth").write_text(
        "".join(f"import site; site.addsitedir({one!r})\n" for one in here)
    )
    yield str(folder / "bin" / "python")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def without_another(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What runs a command where the system's UCX is not to be seen: a mount namespace."""
    cache = tmp_path_factory.mktemp("ld") / "ld.so.cache"
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True)
    found = {line.split()[-1] for line in known.stdout.splitlines() if "libucp.so" in line}
    hide = [
        *(f"mount --bind /dev/null {shlex.quote(os.path.realpath(one))}" for one in found),
        f"/sbin/ldconfig -X -C {shlex.quote(str(cache))} 2>/dev/null",
        f"mount --bind {shlex.quote(str(cache))} /etc/ld.so.cache",
    ]
    command = ["unshare", "--mount", "sh", "-c", " && ".join([*hide, 'exec "$@"']), "sh"]
    if os.geteuid() != 0 or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("to hide the system's UCX takes root, and a container that may mount")
    return command


def test_it_is_found_by_itself_and_the_suite_passes(
    python: str, without_another: list[str], tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if "UCX" not in name}
    found = subprocess.run(
        [*without_another, python, "-c", FIND], env=environment, capture_output=True, text=True
    )
    assert "nixl_cu12.libs/libucp-" in found.stdout, found.stdout + found.stderr
    environment[TRAFFIC_VARIABLE] = str(tmp_path / "traffic")
    assert run_by_ucx(["tests/contract"], environment, without_another, python) > 70
    assert sys.executable != python and (tmp_path / "traffic").read_text()
