"""Tensors come back as they were written: dtype, shape, strides, and every element.

Those of PyTorch: engines/test_torch_tensors.py.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import InvalidArgumentError, Status, Store
from kvstore.client.tensor_format import header_bytes, parse_header, tensor_in

DTYPES = [
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
SMALL_FLOATS = [
    "bfloat16",
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
]


def array_of(dtype: str, shape: tuple[int, ...]) -> Any:
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype in SMALL_FLOATS else dtype)
    count = int(np.prod(shape))
    raw = np.random.default_rng(3).integers(0, 256, count * kind.itemsize, np.uint8)
    if dtype == "bool":
        raw &= 1
    return raw.view(kind).reshape(shape)


def same(a: Any, b: Any) -> bool:
    """Bit for bit: a NaN is equal to itself."""
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


@pytest.mark.parametrize("dtype", [*DTYPES, *SMALL_FLOATS])
def test_every_dtype_comes_back(store: Store, dtype: str) -> None:
    written = array_of(dtype, (3, 4, 5))
    assert store.put_tensor("t", written) is Status.Ok
    read = store.get_tensor("t")
    assert same(read, written) and read.strides == written.strides
    read[...] = written[::-1]  # one's own, and writable
    assert same(store.get_tensor("t"), written)
    out = np.zeros_like(written)
    assert store.get_tensor_into("t", out)
    assert same(out, written)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.transpose(2, 0, 1),
        lambda a: a[::2],
        lambda a: a[:, ::-1],
        lambda a: a[1],
        lambda a: a[1, 2, 3],
        lambda a: a[:0],
        lambda a: a[:, None],
        lambda a: np.broadcast_to(a, (2, *a.shape)),
        lambda a: a.astype(">f4"),
        lambda a: np.asfortranarray(a),
    ],
)
def test_every_layout_comes_back(store: Store, change: Any) -> None:
    written = change(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    assert store.put_tensor("t", written) is Status.Ok
    read = store.get_tensor("t")
    assert read.shape == np.shape(written) and np.array_equal(read, written)


def test_dense_layouts_keep_their_strides(store: Store) -> None:
    written = np.arange(60, dtype=np.int16).reshape(3, 4, 5).transpose(2, 0, 1)
    store.put_tensor("t", written)
    assert store.get_tensor("t").strides == written.strides


def test_batches(store: Store) -> None:
    tensors = [np.full((i, 2), i, np.int32) for i in range(5)]
    keys = [f"t/{i}" for i in range(5)]
    assert store.batch_put_tensor(keys, tensors, parent="root") == [Status.Ok] * 5
    assert store.put_tensor("t/0", tensors[1]) is Status.AlreadyExists
    read = store.batch_get_tensor([*keys, "absent"])
    assert read[5] is None and all(map(same, read, tensors))
    outs = [np.empty_like(tensor) for tensor in tensors]
    assert store.batch_get_tensor_into([*keys[:4], "absent"], outs) == [True] * 4 + [False]
    assert all(map(same, outs[:4], tensors))


def test_what_does_not_fit_is_named(store: Store) -> None:
    store.put_tensor("t", np.zeros((2, 3), np.float32))
    store.put("bytes", bytes(200))
    store.put("cut", (store.get("t") or b"")[:-1])
    for key, out, word in (
        ("t", np.zeros((3, 2), np.float32), "strides"),
        ("t", np.zeros((2, 3), np.int32), "float32"),
        ("t", np.zeros(5, np.int8), "smaller"),
        ("t", np.zeros((4, 3), np.float32)[::2], "without gaps"),
        ("bytes", np.zeros(100, np.float32), "not a tensor"),
        ("cut", np.zeros((2, 3), np.float32), "not a tensor"),
    ):
        with pytest.raises(InvalidArgumentError, match=word):
            store.get_tensor_into(key, out)
    fixed = np.zeros((2, 3), np.float32)
    fixed.flags.writeable = False
    with pytest.raises(InvalidArgumentError, match="writable"):
        store.get_tensor_into("t", fixed)
    with pytest.raises(InvalidArgumentError, match="not a tensor"):
        store.get_tensor("bytes")
    with pytest.raises(InvalidArgumentError, match="kind"):
        store.get_tensor("t", kind="cupy")  # type: ignore[arg-type]
    for thing in ([1, 2], np.array(["text"]), np.array([object()])):
        with pytest.raises(InvalidArgumentError, match=r"tensor|supported"):
            store.put_tensor("x", thing)
    assert not store.exists("x")


def test_a_dimension_of_one_may_have_any_stride(store: Store) -> None:
    store.put_tensor("t", np.arange(6.0).reshape(1, 6))
    out = np.zeros((6, 1)).transpose()
    assert out.strides[0] != np.zeros((1, 6)).strides[0]
    assert store.get_tensor_into("t", out) and out[0, 5] == 5


def test_an_upsert_is_a_new_version(store: Store) -> None:
    assert store.put_tensor("t", np.zeros(3)) is Status.Ok
    assert store.put_tensor("t", np.ones(4), upsert=True) is Status.Ok
    assert same(store.get_tensor("t"), np.ones(4))


class Exporter:
    """DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **how: Any) -> Any:
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.array.__dlpack_device__()
        return device


def test_dlpack_is_taken(store: Store) -> None:
    written = np.arange(6, dtype=np.float64).reshape(2, 3)
    assert store.put_tensor("t", Exporter(written)) is Status.Ok
    assert np.array_equal(store.get_tensor("t", kind="numpy"), written)


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_hostile_headers_are_refused(junk: bytes, where: int, value: int) -> None:
    """Whatever the header claims, nothing is believed that the object's length does not bear."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    good = bytearray(struct.pack("<8sBBBBI", b"KVTENSOR", 1, 11, 0, 2, header_bytes(2)))
    good += struct.pack("<4q", 2, 3, 3, 1)
    good = good.ljust(header_bytes(2), b"\0") + array.tobytes()
    assert parse_header(good) is not None
    good[where % len(good)] = value
    for stored in (good, bytearray(junk), good + bytearray(junk), good[: len(junk)]):
        try:
            tensor = tensor_in(stored, "numpy")
        except InvalidArgumentError:
            continue
        assert tensor.nbytes <= len(stored)
        tensor.tobytes()  # nothing outside is touched


def test_the_client_imports_neither_library() -> None:
    code = "import sys, kvstore; print('numpy' in sys.modules or 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
