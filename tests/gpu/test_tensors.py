"""Tensors on a GPU keep dtype, shape and strides; the header never goes through the device."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

import kvstore
from kvstore import Status
from tests.gpu.fake_cuda import DeviceArray, FakeCuda


def on_gpu(cuda: FakeCuda, array: Any) -> DeviceArray:
    out = cuda.array(
        array.nbytes,
        dtype=array.dtype.str,
        shape=array.shape,
        strides=None if array.flags.c_contiguous else array.strides,
    )
    return out.write(array.tobytes(order="A"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", "complex64"])
def test_both_ways(store: kvstore.Store, cuda: FakeCuda, dtype: str) -> None:
    array = (numpy.arange(600) % 7).reshape(2, 20, 15).astype(dtype)
    source = on_gpu(cuda, array)
    assert store.put_tensor("t", source) is Status.Ok
    host = store.get_tensor("t")
    assert host.dtype == array.dtype
    assert (host == array).all()
    out = on_gpu(cuda, numpy.zeros_like(array))
    assert store.get_tensor_into("t", out)
    assert out.content() == array.tobytes()
    assert cuda.count("bounced_bytes") == 0


def test_columns_first(store: kvstore.Store, cuda: FakeCuda) -> None:
    array = numpy.asfortranarray(numpy.arange(12, dtype="int32").reshape(3, 4))
    assert store.put_tensor("t", on_gpu(cuda, array)) is Status.Ok
    host = store.get_tensor("t")
    assert (host == array).all()
    assert host.strides == array.strides
    with pytest.raises(kvstore.InvalidArgumentError, match="strides"):
        store.get_tensor_into("t", on_gpu(cuda, numpy.zeros((3, 4), "int32")))


def test_batches_and_misses(store: kvstore.Store, cuda: FakeCuda) -> None:
    arrays = [numpy.full((10, i + 1), i, "float32") for i in range(20)]
    keys = [f"t{i}" for i in range(20)]
    sources = [on_gpu(cuda, array) for array in arrays]
    assert store.batch_put_tensor(keys, sources, parent="root") == [Status.Ok] * 20
    outs = [on_gpu(cuda, numpy.zeros_like(array)) for array in arrays]
    found = store.batch_get_tensor_into([*keys[:10], "nobody", *keys[11:]], outs)
    assert found == [i != 10 for i in range(20)]
    for i, (out, array) in enumerate(zip(outs, arrays, strict=True)):
        assert out.content() == (bytes(array.nbytes) if i == 10 else array.tobytes())


def test_tensors_that_do_not_fit(store: kvstore.Store, cuda: FakeCuda) -> None:
    store.put_tensor("t", on_gpu(cuda, numpy.zeros((4, 4), "float32")))
    with pytest.raises(kvstore.InvalidArgumentError, match="smaller"):
        store.get_tensor_into("t", on_gpu(cuda, numpy.zeros(4, "float32")))
    with pytest.raises(kvstore.InvalidArgumentError, match="int32"):
        store.get_tensor_into("t", on_gpu(cuda, numpy.zeros((4, 4), "int32")))
    with pytest.raises(kvstore.InvalidArgumentError, match="writable"):
        out = cuda.array(64, dtype="<f4", shape=(4, 4), read_only=True)
        store.get_tensor_into("t", out)


def test_tensors_without_elements(store: kvstore.Store, cuda: FakeCuda) -> None:
    empty = cuda.array(8, dtype="<f4", shape=(0, 3))
    assert store.put_tensor("t", empty) is Status.Ok
    assert store.get_tensor("t").shape == (0, 3)
    assert store.get_tensor_into("t", empty)


def test_tensors_through_pinned_memory(store: kvstore.Store, cuda: FakeCuda) -> None:
    cuda.set_read_only_registration(False)
    for _ in range(2):  # both mappings
        cuda.fail("cuMemHostRegister", 1)
        array = numpy.arange(5000, dtype="float32")
        assert store.put_tensor("t", on_gpu(cuda, array), upsert=True) is Status.Ok
        out = on_gpu(cuda, numpy.zeros_like(array))
        assert store.get_tensor_into("t", out)
        assert out.content() == array.tobytes()
    assert cuda.count("bounced_bytes") > 0
