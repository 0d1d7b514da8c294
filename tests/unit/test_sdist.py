"""The source distribution holds what its build needs, and the wheel what an engine needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.wheel import run, run_api_tests

ROOT = Path(__file__).resolve().parents[2]
BUILD_SDIST = "from scikit_build_core.build import build_sdist; build_sdist({folder!r})"
LEFT_OUT = {"tests", "bench", "deploy", ".ci"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [sys.executable, "-c", BUILD_SDIST.format(folder=str(folder))],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    return source


def tracked() -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return {name for name in names if (ROOT / name).exists()}


def test_every_file_outside_the_folders_left_out_is_there(unpacked: Path) -> None:
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    wanted = {name for name in tracked() if name.split("/")[0] not in LEFT_OUT}
    assert wanted - there == set()
    assert not any((unpacked / name).exists() for name in LEFT_OUT)


def test_its_build_can_be_configured(unpacked: Path, tmp_path: Path) -> None:
    """All targets, as a wheel's build configures them: CMake names every source that it lacks."""
    command = [
        *("cmake", "-S", str(unpacked / "native"), "-B", str(tmp_path), "-G", "Ninja"),
        *("-DKVSTORE_TESTS=OFF", f"-DPython_EXECUTABLE={sys.executable}"),
        f"-Dnanobind_DIR={nanobind_folder()}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=with_scripts())
    assert done.returncode == 0, done.stdout + done.stderr


def nanobind_folder() -> str:
    command = [sys.executable, "-m", "nanobind", "--cmake_dir"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def with_scripts() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.timeout(900)
def test_the_api_works_in_an_environment_with_the_wheel_alone(
    unpacked: Path, tmp_path: Path
) -> None:
    build = ("wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(unpacked))
    run(sys.executable, "-m", "pip", *build, env=with_scripts())
    (wheel,) = tmp_path.glob("*.whl")
    run_api_tests(wheel, tmp_path)
