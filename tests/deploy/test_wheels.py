"""`make wheels`: what it builds loads where it says, and works."""

from __future__ import annotations

import os
import re
import struct
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.package import ROOT
from tests.support.wheel import run, run_api_tests

MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of ELF


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each architecture, for the Python that runs the tests."""
    tree = tmp_path_factory.mktemp("tree")
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        copy = tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
        copy.chmod((ROOT / name).stat().st_mode)
    (tree / "dist").mkdir()
    sdist = "from scikit_build_core.build import build_sdist; build_sdist('dist')"
    run(sys.executable, "-c", sdist, cwd=tree)
    build = str(tree / "build" / "wheels")
    run("deploy/wheels.sh", build, cwd=tree, env={**os.environ, "PYTHONS": sys.executable})
    built = list((tree / "dist").glob("*.whl"))
    return {name: path for name in MACHINES for path in built if path.stem.endswith(name)}


@pytest.mark.deploy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", MACHINES)
def test_they_need_no_newer_c_library(wheels: dict[str, Path], architecture: str) -> None:
    wheel = wheels[architecture]
    # auditwheel has looked at every symbol; it names the oldest glibc that has them all.
    oldest = re.search(rf"manylinux_2_(\d+)_{architecture}\.", wheel.name)
    assert oldest is not None and int(oldest[1]) <= 28, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (extension,) = (name for name in archive.namelist() if name.endswith(".so"))
        header = archive.read(extension)[:20]
    assert struct.unpack_from("<H", header, 18)[0] == MACHINES[architecture]
    assert architecture in extension or ".abi3." in extension


@pytest.mark.deploy
@pytest.mark.timeout(1800)
def test_the_api_works_with_this_machines(wheels: dict[str, Path], tmp_path: Path) -> None:
    run_api_tests(wheels[os.uname().machine], tmp_path)
