"""Tensors as objects: a small header with dtype, shape and strides, then the elements.

The header is little-endian and a multiple of 64 bytes long: the magic (8 bytes), format, dtype,
kind, number of dimensions (a byte each), the header's length (4 bytes), then shape and strides (8
bytes per dimension each; strides in elements). Elements lie as in memory, without gaps.

Neither NumPy nor PyTorch is needed until one of their tensors is written or read.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from kvstore.errors import InvalidArgumentError

TensorKind = Literal["numpy", "torch"]

_MAGIC = b"KVTENSOR"
_FORMAT = 1
_FIXED = struct.Struct("<8sBBBBI")
_ALIGN = 64
_MAX_DIMS = 64
_KINDS: tuple[TensorKind, ...] = ("numpy", "torch")


class _DType(NamedTuple):
    name: str  # PyTorch's, NumPy's and that of ml_dtypes
    size_bytes: int


# A dtype's number is its place here, so only the end may grow.
_DTYPES = (
    _DType("bool", 1),
    _DType("uint8", 1),
    _DType("int8", 1),
    _DType("int16", 2),
    _DType("int32", 4),
    _DType("int64", 8),
    _DType("uint16", 2),
    _DType("uint32", 4),
    _DType("uint64", 8),
    _DType("float16", 2),
    _DType("bfloat16", 2),
    _DType("float32", 4),
    _DType("float64", 8),
    _DType("complex64", 8),
    _DType("complex128", 16),
    _DType("float8_e4m3fn", 1),
    _DType("float8_e5m2", 1),
    _DType("float8_e4m3fnuz", 1),
    _DType("float8_e5m2fnuz", 1),
    _DType("float8_e8m0fnu", 1),
)
_CODE_OF = {dtype.name: code for code, dtype in enumerate(_DTYPES)}
_NOT_NUMPYS = frozenset(name for name in _CODE_OF if name.startswith(("bfloat", "float8")))


@dataclass(frozen=True)
class Layout:
    """Contents of a tensor's header."""

    dtype: str
    kind: TensorKind
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * _DTYPES[_CODE_OF[self.dtype]].size_bytes

    def elements(self) -> tuple[object, ...]:
        """Return the placement of the elements: a dimension of 1 may have any stride."""
        strides = [
            0 if extent == 1 else stride
            for extent, stride in zip(self.shape, self.strides, strict=True)
        ]
        return self.dtype, self.shape, self.size_bytes and strides

    def header(self) -> bytearray:
        """Encode the header."""
        dims = len(self.shape)
        length = header_bytes(dims)
        fixed = _FIXED.pack(
            _MAGIC, _FORMAT, _CODE_OF[self.dtype], _KINDS.index(self.kind), dims, length
        )
        numbers = struct.pack(f"<{2 * dims}q", *self.shape, *self.strides)
        return bytearray(fixed + numbers).ljust(length, b"\0")


@dataclass(frozen=True)
class Memory:
    """A tensor's elements without gaps, in host memory (or on a GPU: device_tensors.py)."""

    layout: Layout
    pointer: int
    owner: object  # keeps the memory alive
    is_own: bool  # the tensor's own elements, and writable; else a copy of them


def header_bytes(dims: int) -> int:
    """Return the length of the header of a tensor with `dims` dimensions."""
    return -(-(_FIXED.size + 16 * dims) // _ALIGN) * _ALIGN


MAX_HEADER_BYTES = header_bytes(_MAX_DIMS)


def parse_header(data: Any) -> tuple[Layout, int] | None:
    """Decode the header at the start of a buffer.

    Returns:
        The layout and the header's length; None unless the header is well-formed.
    """
    view = memoryview(data)
    if len(view) < _FIXED.size:
        return None
    magic, version, code, kind, dims, length = _FIXED.unpack_from(view)
    if (magic, version) != (_MAGIC, _FORMAT) or code >= len(_DTYPES) or kind >= len(_KINDS):
        return None
    if dims > _MAX_DIMS or length != header_bytes(dims) or length > len(view):
        return None
    numbers = struct.unpack_from(f"<{2 * dims}q", view, _FIXED.size)
    layout = Layout(_DTYPES[code].name, _KINDS[kind], numbers[:dims], numbers[dims:])
    if min(layout.shape, default=0) < 0 or not is_dense(layout.shape, layout.strides):
        return None
    return layout, length


def layout_in(beginning: Any, size: int) -> tuple[Layout, int]:
    """Decode the header of an object of this size, of which at least the header is given.

    Returns:
        The layout and where the elements begin.

    Raises:
        InvalidArgumentError: It is not a tensor.
    """
    found = parse_header(beginning)
    if found is None or found[1] + found[0].size_bytes != size:
        raise InvalidArgumentError("the object is not a tensor: it was not written by put_tensor")
    return found


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether every element between the first and the last belongs to the tensor, once."""
    if 0 in shape:
        return True
    expected = 1
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent == 1:
            continue
        if stride != expected:
            return False
        expected *= extent
    return True


# ---- from a tensor to memory ------------------------------------------------------------------


def memory_of(tensor: Any) -> Memory:
    """Find a tensor's elements in host memory; they are copied only unless they are dense there.

    Args:
        tensor: a torch.Tensor or NumPy array, or anything with ``__cuda_array_interface__`` or
            ``__dlpack__``.

    Raises:
        InvalidArgumentError: It is none of these, has an unknown dtype, or the library that reads
            it is not installed.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _torch_memory(tensor)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(tensor, (numpy.ndarray, numpy.generic)):
        return _numpy_memory(numpy.asarray(tensor))
    if hasattr(tensor, "__cuda_array_interface__"):
        return _cuda_memory(tensor)
    if hasattr(tensor, "__dlpack__"):
        if torch is not None:
            return _torch_memory(torch.from_dlpack(tensor))
        return _numpy_memory(_module("numpy", "DLPack's tensors").from_dlpack(tensor))
    raise InvalidArgumentError(
        f"{type(tensor).__name__} is not a tensor: need torch.Tensor, numpy.ndarray, "
        "__cuda_array_interface__ or __dlpack__"
    )


def torch_dtype(tensor: Any) -> str:
    """Return the name of a torch.Tensor's dtype; raise InvalidArgumentError if unsupported."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _CODE_OF or tensor.layout != sys.modules["torch"].strided:
        raise InvalidArgumentError(f"tensors of {tensor.dtype}, {tensor.layout} are not supported")
    return dtype


def is_known(dtype: str) -> bool:
    """Whether tensors of a dtype can be stored."""
    return dtype in _CODE_OF


def _torch_memory(tensor: Any) -> Memory:
    dtype = torch_dtype(tensor)
    there = tensor.data_ptr()
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    if not is_dense(tensor.shape, tensor.stride()):
        tensor = tensor.contiguous()
    layout = Layout(dtype, "torch", tuple(tensor.shape), tuple(tensor.stride()))
    return Memory(layout, tensor.data_ptr(), tensor, tensor.data_ptr() == there)


def _numpy_memory(array: Any) -> Memory:
    dtype = array.dtype.name
    if dtype not in _CODE_OF:
        raise InvalidArgumentError(f"arrays of dtype {dtype!r} are not supported")
    there, is_writable, itemsize = array.ctypes.data, array.flags.writeable, array.itemsize
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    strides = tuple(stride // itemsize for stride in array.strides)
    if any(stride % itemsize for stride in array.strides) or not is_dense(array.shape, strides):
        array = array.copy(order="C")
        strides = tuple(stride // itemsize for stride in array.strides)
    layout = Layout(dtype, "numpy", array.shape, strides)
    return Memory(layout, array.ctypes.data, array, is_writable and array.ctypes.data == there)


def _cuda_memory(tensor: Any) -> Memory:
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        return _numpy_memory(cupy.asnumpy(tensor))
    torch = _module("torch", "__cuda_array_interface__ without cupy")
    return _torch_memory(torch.as_tensor(tensor, device="cuda"))


def _module(name: str, what: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise InvalidArgumentError(f"{what} needs {name}: pip install {name}") from None


# ---- from memory to a tensor ------------------------------------------------------------------


def tensor_in(stored: bytearray | memoryview, kind: TensorKind | None) -> Any:
    """Make a tensor over a stored object; it keeps the memory alive, and nothing is copied.

    Args:
        stored: a whole object.
        kind: of the tensor; None: as it was written.

    Raises:
        InvalidArgumentError: The object is not a tensor, or its library is not installed.
    """
    layout, start = layout_in(stored, len(stored))
    make = _numpy_in if (kind or layout.kind) == "numpy" else _torch_in
    try:
        return make(stored, layout, start)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        # A well-formed header may still describe a tensor that the library cannot make.
        raise InvalidArgumentError(f"cannot make the object's tensor: {error}") from error


def _torch_in(stored: bytearray | memoryview, layout: Layout, start: int) -> Any:
    torch = _module("torch", "a torch.Tensor")
    dtype = getattr(torch, layout.dtype, None)
    if dtype is None:
        raise InvalidArgumentError(f"this torch has no {layout.dtype}")
    if layout.size_bytes == 0:
        return torch.empty(layout.shape, dtype=dtype)
    flat = torch.frombuffer(stored, dtype=dtype, offset=start)
    return flat.as_strided(layout.shape, layout.strides)


def _numpy_in(stored: bytearray | memoryview, layout: Layout, start: int) -> Any:
    numpy = _module("numpy", "a NumPy array")
    if layout.dtype in _NOT_NUMPYS:
        found = getattr(_module("ml_dtypes", f"NumPy's {layout.dtype}"), layout.dtype, None)
        if found is None:
            raise InvalidArgumentError(f"this ml_dtypes has no {layout.dtype}")
        dtype = numpy.dtype(found)
    else:
        dtype = numpy.dtype(layout.dtype)
    if layout.size_bytes == 0:
        return numpy.empty(layout.shape, dtype)
    strides = tuple(stride * dtype.itemsize for stride in layout.strides)
    return numpy.ndarray(layout.shape, dtype, stored, start, strides)
