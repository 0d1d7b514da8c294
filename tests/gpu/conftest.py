"""Tests of GPU memory over the fake driver; those marked `gpu` run on a real one with --gpu."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvstore
from tests.gpu.fake_cuda import FakeCuda, build
from tests.support.processes import wait_for


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A process loads one driver: with the real one, nothing of the fake one can run.
    on_gpu = config.getoption("--gpu")
    wrong = pytest.mark.skip(
        reason="runs on the fake driver: without --gpu"
        if on_gpu
        else "needs an NVIDIA GPU and its driver: make test-gpu"
    )
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and bool(item.get_closest_marker("gpu")) != on_gpu:
            item.add_marker(wrong)


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fake-cuda"))


@pytest.fixture(scope="session")
def loaded(fake_library: Path) -> FakeCuda:
    """The driver of this process from now on."""
    os.environ["KVSTORE_CUDA_LIB"] = str(fake_library)
    return FakeCuda(fake_library)


@pytest.fixture
def cuda(loaded: FakeCuda, request: pytest.FixtureRequest) -> Iterator[FakeCuda]:
    """The driver, which nothing may have misused or leaked when the test is over."""
    loaded.reset()
    yield loaded
    loaded.pause(False)
    loaded.free_all()
    request.node.funcargs.clear()  # or pytest would keep a closed store, and its mappings
    gc.collect()
    wait_for(lambda: loaded.count("events") == 0, "no event is left")
    wait_for(lambda: loaded.count("contexts") == 0, "no context is left")
    left = {what: loaded.count(what) for what in ("registered", "pinned", "pending", "violations")}
    assert not any(left.values()), (left, loaded.last_violation())


@pytest.fixture
def store(cuda: FakeCuda) -> Iterator[kvstore.Store]:
    """A store in this process, closed before the driver is looked at."""
    with kvstore.open(segment_size="64mb", timeout_ms=10_000) as opened:
        yield opened
