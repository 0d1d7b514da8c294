"""Tests of deploy/. Those marked `deploy` take minutes: they run with --deploy only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.deploy import images

TOOLS = ("buildah", "mmdebstrap")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--deploy"):
        return
    later = pytest.mark.skip(
        reason="builds an image or wheels, which takes minutes: make test-deploy"
    )
    for item in items:
        if item.get_closest_marker("deploy"):
            item.add_marker(later)


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[images.Buildah]:
    """A buildah that holds a Debian, and the image of the servers."""
    if os.geteuid() != 0:
        pytest.skip("builds an image as root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"apt-get install {' '.join(missing)}")
    tool = images.Buildah(tmp_path_factory.mktemp("image"))
    try:
        images.build_base(tool)
        images.build(tool, images.IMAGE, "Dockerfile", BASE=images.BASE)
        yield tool
    finally:
        tool.close()
