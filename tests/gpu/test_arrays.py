"""Stored tensors as arrays of CuPy; a stand-in for it, over the fake driver's memory.

tests/gpu/real_device.py does the same with CuPy itself.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy
import pytest

import kvstore
from kvstore import Status
from kvstore.gpu import get_array
from tests.gpu.fake_cuda import FakeCuda


class Array:
    """The part of cupy.ndarray that is used: memory of the fake driver, described."""

    def __init__(
        self, cuda: FakeCuda, shape: Any, dtype: Any, at: int, strides: Any = None
    ) -> None:
        self.shape, self.dtype, self.data, self.strides = shape, dtype, at, strides
        self._cuda = cuda

    def __getitem__(self, part: slice) -> Array:
        return Array(self._cuda, (len(range(*part.indices(self.shape[0]))),), self.dtype, self.data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.data, False)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "version": 3}

    def on_host(self) -> Any:
        """A NumPy array of what is there now."""
        empty = numpy.empty(self.shape, self.dtype)
        found = numpy.frombuffer(self._cuda.read(self.data, empty.nbytes), self.dtype)
        return numpy.lib.stride_tricks.as_strided(found, self.shape, self.strides)


@pytest.fixture
def cupy(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: Any = ModuleType("cupy")
    module.dtype = numpy.dtype
    module.empty = lambda size, dtype: Array(cuda, (size,), numpy.dtype(dtype), cuda.alloc(size))
    module.ndarray = lambda shape, dtype, at, strides: Array(cuda, shape, dtype, at, strides)
    module.asnumpy = lambda array: array.on_host()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module  # type: ignore[no-any-return]


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", "int64", "bool", "complex64"])
def test_what_was_put_is_there(
    store: kvstore.Store, cuda: FakeCuda, dtype: str, order: Any
) -> None:
    array = numpy.asarray((numpy.arange(600) % 7).reshape(20, 30), dtype, order=order)
    assert store.put_tensor("t", array) is Status.Ok
    found = get_array(store, "t")
    assert (found.dtype, found.strides) == (array.dtype, array.strides)
    assert (found.on_host() == array).all()
    assert cuda.count("bounced_bytes") == 0


@pytest.mark.usefixtures("cupy")
def test_a_miss_and_no_elements(store: kvstore.Store) -> None:
    assert get_array(store, "nobody") is None
    assert store.put_tensor("none", numpy.empty((0, 3), "float32")) is Status.Ok
    assert get_array(store, "none").shape == (0, 3)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("stored", [b"", b"KVTENSOR", bytes(5000)])
def test_other_objects(store: kvstore.Store, stored: bytes) -> None:
    assert store.put("bytes", stored) is Status.Ok
    with pytest.raises(kvstore.InvalidArgumentError, match="not a tensor"):
        get_array(store, "bytes")


def test_one_that_grows_meanwhile(
    store: kvstore.Store, cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is asked first: an upsert in between makes the array's memory too small."""
    small, large = (numpy.arange(count, dtype="int32") for count in (10, 10_000))
    store.put_tensor("t", small)
    allocate = cupy.empty

    def grow(size: int, dtype: str) -> Array:
        monkeypatch.setattr(cupy, "empty", allocate)
        store.put_tensor("t", large, upsert=True)
        return allocate(size, dtype)  # type: ignore[no-any-return]

    monkeypatch.setattr(cupy, "empty", grow)
    assert (get_array(store, "t").on_host() == large).all()


def test_without_cupy(store: kvstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(kvstore.UnsupportedError, match="pip install"):
        get_array(store, "t")
