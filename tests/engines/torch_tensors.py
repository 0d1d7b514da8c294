"""Run inside an engine's environment with a master's address: PyTorch's tensors come back."""

from __future__ import annotations

import sys

import numpy as np
import torch

import kvstore
from kvstore import InvalidArgumentError, Status, Store

NUMPYS = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64",
          "float16", "float32", "float64", "complex64", "complex128")  # fmt: skip
OTHERS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
          "float8_e8m0fnu")  # fmt: skip


def bits(tensor: torch.Tensor) -> bytes:
    """Every element as it lies in memory: a NaN is equal to itself."""
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def check_dtype(store: Store, name: str) -> None:
    """Write and read a permuted tensor of one dtype."""
    raw = torch.randint(0, 2, (60 * 16,), dtype=torch.uint8)
    written = raw.view(getattr(torch, name))[:60].reshape(3, 4, 5).permute(2, 0, 1)
    assert store.put_tensor(name, written) is Status.Ok
    read = store.get_tensor(name)
    assert (read.dtype, read.stride()) == (written.dtype, written.stride())
    assert bits(read) == bits(written)
    out = torch.empty_strided(written.shape, written.stride(), dtype=written.dtype)
    assert store.get_tensor_into(name, out)
    assert bits(out) == bits(written)
    if name in NUMPYS:
        assert np.array_equal(store.get_tensor(name, kind="numpy"), written.numpy())


def check_views(store: Store) -> None:
    """Write what has gaps, overlaps, gradients or lazy conjugates."""
    base = torch.arange(24.0, requires_grad=True).reshape(2, 3, 4)
    for i, tensor in enumerate((base[:, ::2], base.expand(2, 2, 3, 4), base[:0], base[1, 2, 3])):
        assert store.put_tensor(f"view/{i}", tensor) is Status.Ok
        assert torch.equal(store.get_tensor(f"view/{i}"), tensor.detach())
    assert store.put_tensor("conj", torch.tensor([1 + 2j]).conj()) is Status.Ok
    assert torch.equal(store.get_tensor("conj"), torch.tensor([1 - 2j]))
    assert store.put_tensor("from numpy", np.arange(6.0).reshape(2, 3)) is Status.Ok
    assert torch.equal(
        store.get_tensor("from numpy", kind="torch")[1],
        torch.tensor([3.0, 4, 5], dtype=torch.float64),
    )
    try:
        store.put_tensor("sparse", torch.eye(3).to_sparse())
    except InvalidArgumentError as error:
        assert "not supported" in str(error)
    else:
        raise AssertionError("a sparse tensor was taken")


with kvstore.connect(sys.argv[1]) as opened:
    for dtype in (*NUMPYS, *OTHERS):
        check_dtype(opened, dtype)
    check_views(opened)
print("ok")
