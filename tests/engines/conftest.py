"""Tests inside engines' environments. They run with --engines only, where these are built."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import _native
from tests.engines.environments import python_of
from tests.support.cluster import Cluster
from tests.support.package import copy_package
from tests.support.transports import AT_CLIENT


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--engines"):
        return
    later = pytest.mark.skip(reason="needs environments of several GB: make test-engines")
    for item in items:
        if item.get_closest_marker("engines"):
            item.add_marker(later)


@pytest.fixture
def cluster_folder(tmp_path: Path) -> Path:
    """Folder of the cluster's logs; an ERROR line of an engine's log in it fails the test, too."""
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def transport(pytestconfig: pytest.Config) -> str:
    """By which the engines reach their nodes; UCX is set up by the engines' environment."""
    chosen: str = pytestconfig.getoption("--transport")
    os.environ["KVSTORE_TRANSPORT"] = chosen
    for name, value in AT_CLIENT.items() if chosen == "ucx" else ():
        os.environ[f"UCX_{name.removeprefix('UCX_')}"] = value
    return chosen


@pytest.fixture
def cluster(cluster_folder: Path, transport: str) -> Iterator[Cluster]:
    """A cluster with the node "a"."""
    cluster = Cluster(cluster_folder, transport=transport)
    try:
        cluster.start_node("a")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree's package, for the engines' PYTHONPATH."""
    folder = tmp_path_factory.mktemp("package")
    extension = Path(str(_native.__file__))
    assert extension.name.endswith(str(sysconfig.get_config_var("EXT_SUFFIX")))
    copy_package(folder, extension)
    return folder


def environment(name: str) -> Path:
    """Return the interpreter of an environment; skips the test where it is not built."""
    python = python_of(name)
    if python is None:
        pytest.skip(f"the environment {name!r} is not built: make test-engines")
    return python
