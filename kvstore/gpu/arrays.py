"""Stored tensors as new arrays of CuPy, read straight into the GPU's memory."""

from __future__ import annotations

from typing import Any

from kvstore.client.store import Store
from kvstore.client.tensor_format import MAX_HEADER_BYTES, layout_in
from kvstore.errors import InvalidArgumentError, Status, UnsupportedError


def get_array(store: Store, key: str) -> Any:
    """Read a tensor into a new array on CuPy's current device.

    The bytes go behind CuPy's current stream, and are there when this returns. To read into an
    array that you have, use `Store.get_tensor_into`.

    Args:
        store: to read from.
        key: of an object that `put_tensor` wrote, of whatever library and memory.

    Returns:
        A cupy.ndarray with the dtype, shape and strides that were written, which owns its memory;
        None on a miss.

    Raises:
        UnsupportedError: CuPy is not installed, or the CUDA driver cannot be loaded.
        InvalidArgumentError: The key is wrong, the object is not a tensor, or CuPy has no such
            dtype (bfloat16 and float8: read them into a tensor of PyTorch).
        IoError: The device failed.
        ClosedError: The store is closed, or this is a forked child.
    """
    try:
        import cupy
    except ImportError:
        raise UnsupportedError(
            "arrays on a GPU need CuPy: pip install 'kvcache-store[gpu]'"
        ) from None
    while (size := store.size(key)) is not None:
        memory = cupy.empty(max(size, 1), dtype="uint8")
        got = store.batch_get_into([key], [memory])[0]
        if got >= 0:
            return _array_in(cupy, memory, got)
        if got != Status.BufferTooSmall:  # else replaced by a larger one meanwhile
            return None
    return None


def _array_in(cupy: Any, memory: Any, size: int) -> Any:
    header = cupy.asnumpy(memory[: min(size, MAX_HEADER_BYTES)]).tobytes()
    layout, start = layout_in(header, size)
    try:
        dtype = cupy.dtype(layout.dtype)
    except TypeError:
        raise InvalidArgumentError(
            f"CuPy has no {layout.dtype}: read it by get_tensor_into into a torch.Tensor"
        ) from None
    strides = tuple(stride * dtype.itemsize for stride in layout.strides)
    # It keeps the memory alive by the pointer's owner.
    return cupy.ndarray(layout.shape, dtype, memory.data + start, strides)
