"""torch's tensors, or NumPy's arrays where there is no torch, as bytes and back.

Neither is a dependency: whichever is there when the first tensor is handed in or asked for is used.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from kvstore.compat.mooncake.tensor_format import DTYPES, Layout

_NUMPY_TWIN = {name: twin for name, _, twin in DTYPES.values()}


def _torch() -> Any:
    """Return torch, or None where it is not installed."""
    if "torch" in sys.modules:
        return sys.modules["torch"]
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def is_torch(tensor: Any) -> bool:
    """Whether this is a tensor of torch's."""
    return type(tensor).__module__.partition(".")[0] == "torch"


class Flat:
    """A tensor as C-contiguous bytes in host memory: its layout, address and owner."""

    def __init__(self, tensor: Any) -> None:
        """Take a tensor or an array; it is copied if it is not contiguous, or not in host memory.

        Raises:
            TypeError: It is neither.
            ValueError: Its elements have a type that cannot be stored.
        """
        if is_torch(tensor):
            self.owner = tensor.detach().cpu().contiguous()
            dtype = str(self.owner.dtype).removeprefix("torch.")
            self.pointer = int(self.owner.data_ptr())
        elif hasattr(tensor, "__array_interface__"):
            self.owner = importlib.import_module("numpy").ascontiguousarray(tensor)
            dtype = str(self.owner.dtype)
            self.pointer = int(self.owner.ctypes.data)
        else:
            raise TypeError(f"neither a tensor of torch nor an array of NumPy: {type(tensor)}")
        self.layout = Layout(dtype, tuple(int(size) for size in tensor.shape))
        self.header = self.layout.header()


def tensor_at(layout: Layout, memory: Any) -> Any:
    """Make a tensor over memory, without a copy.

    Args:
        layout: of the tensor.
        memory: a writable buffer of exactly its bytes; the tensor keeps it alive.

    Returns:
        A torch tensor; without torch a NumPy array (bf16 and fp8 as unsigned numbers then).

    Raises:
        ImportError: There is neither torch nor NumPy.
        ValueError: This torch does not know the type.
    """
    torch = _torch()
    if torch is None:
        numpy = importlib.import_module("numpy")
        flat = numpy.frombuffer(memory, dtype=_NUMPY_TWIN[layout.dtype])
        return flat.reshape(layout.shape)
    dtype = getattr(torch, layout.dtype, None)
    if dtype is None:
        raise ValueError(f"this torch has no {layout.dtype}")
    if layout.data_bytes == 0:
        return torch.empty(layout.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).reshape(layout.shape)


def split(tensor: Any, parts: int, dimension: int) -> list[Any]:
    """Split a tensor as torch.chunk does, but into exactly `parts`.

    Raises:
        ValueError: There is no such dimension, or it does not divide evenly.
    """
    shape = tensor.shape
    if parts < 1 or not -len(shape) <= dimension < len(shape):
        raise ValueError(f"no {parts} parts along dimension {dimension} of {tuple(shape)}")
    size = int(shape[dimension])
    if size % parts:
        raise ValueError(f"dimension {dimension} of {tuple(shape)} is no multiple of {parts}")
    step = size // parts
    shards = []
    for start in range(0, size, step) if step else [0] * parts:
        index = [slice(None)] * len(shape)
        index[dimension] = slice(start, start + step)
        shards.append(tensor[tuple(index)])
    return shards
