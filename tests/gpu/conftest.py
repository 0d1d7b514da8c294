"""Tests of GPU memory over the fake driver; those marked `gpu` run on a real one with --gpu."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvstore
from tests.gpu.fake_cuda import FakeCuda, build, provide_kernels
from tests.support.processes import wait_for

_WITHOUT_KERNELS = {
    "test_order.py",
    "test_failures.py",
    "test_pages.py",
    "test_kernels.py",
    "test_vllm_memory.py",
}
_NOTHING_OF = ("registered", "pinned", "modules", "pending", "violations")


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Every test runs with kernels; those of what kernels change, without them, too.
    marks = metafunc.definition.iter_markers("parametrize")
    if "kernels" in metafunc.fixturenames and all(mark.args[0] != "kernels" for mark in marks):
        both = metafunc.definition.path.name in _WITHOUT_KERNELS
        turns = ["kernels", "no kernels"] if both else ["kernels"]
        metafunc.parametrize("kernels", turns, indirect=True)


@pytest.fixture
def kernels(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Whether there are kernels: CuPy is not installed, or cannot compile for this device."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    has_kernels = bool(request.param == "kernels")
    if has_kernels:
        provide_kernels()
    return has_kernels


@pytest.fixture
def cuda(loaded: FakeCuda, request: pytest.FixtureRequest, kernels: bool) -> Iterator[FakeCuda]:
    """The driver, which nothing may have misused or leaked when the test is over."""
    loaded.reset()
    yield loaded
    loaded.pause(False)
    loaded.free_all()
    request.node.funcargs.clear()  # or pytest would keep a closed store, and its mappings
    gc.collect()
    wait_for(lambda: loaded.count("events") == 0, "no event is left")
    wait_for(lambda: loaded.count("contexts") == 0, "no context is left")
    left = {what: loaded.count(what) for what in _NOTHING_OF}
    assert not any(left.values()), (left, loaded.last_violation())


@pytest.fixture
def store(cuda: FakeCuda) -> Iterator[kvstore.Store]:
    """A store in this process, closed before the driver is looked at."""
    with kvstore.open(segment_size="64mb", timeout_ms=10_000) as opened:
        yield opened
