"""The version is written once, in kvstore/__init__.py; what repeats it agrees."""

from __future__ import annotations

import re
from pathlib import Path

import kvstore

ROOT = Path(__file__).resolve().parents[2]
VERSION = kvstore.__version__


def test_the_package_takes_its_version_from_the_source() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^dynamic = \["version"\]', text, re.MULTILINE)
    assert 'input = "kvstore/__init__.py"' in text
    assert not re.search(r"^version\s*=", text, re.MULTILINE)
    written = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "kvstore/__init__.py").read_text(), re.M
    )
    assert written == [VERSION]


def test_the_native_build_has_no_version_of_its_own() -> None:
    (project,) = re.findall(
        r"^project\((.*?)\)", (ROOT / "native/CMakeLists.txt").read_text(), re.M
    )
    assert "VERSION" not in project


def test_the_newest_release_of_the_changelog_is_this_one() -> None:
    releases = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == VERSION


def test_the_manifest_runs_the_image_of_this_version() -> None:
    images = re.findall(r"image: kvstore:(\S+)", (ROOT / "deploy/rbg/store.yaml").read_text())
    assert images and set(images) == {VERSION}
