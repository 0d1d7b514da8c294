"""How the drop-in lays a tensor out: a header that says what it is, then its bytes.

The bytes are those of Mooncake's own idea, [metadata][data], in a layout of this project::

    0   u32  magic 0x4E54564B ("KVTN")      8   u32  header bytes, HEADER_BYTES
    4   u16  version 1                      12  u64  data bytes
    6   u16  dtype (DTYPES)                 20  u16  dimensions, 0 to MAX_DIMENSIONS
    22  u16  zero                           24  u64  size of each dimension, the rest zero

Everything is little-endian and has a fixed size, so that a buffer for a tensor can be made before
the tensor is known. Elements lie in C order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

MAGIC = 0x4E54564B
VERSION = 1
MAX_DIMENSIONS = 8
_HEADER = struct.Struct("<IHHIQHH8Q")
HEADER_BYTES = _HEADER.size
"""Bytes before a tensor's own."""

# Number in the header → name, bytes of an element, a NumPy type of the same size that always
# exists. Numbers are never given to another type.
DTYPES: dict[int, tuple[str, int, str]] = {
    0: ("float32", 4, "float32"),
    1: ("float64", 8, "float64"),
    2: ("int8", 1, "int8"),
    3: ("uint8", 1, "uint8"),
    4: ("int16", 2, "int16"),
    5: ("uint16", 2, "uint16"),
    6: ("int32", 4, "int32"),
    7: ("uint32", 4, "uint32"),
    8: ("int64", 8, "int64"),
    9: ("uint64", 8, "uint64"),
    10: ("bool", 1, "bool"),
    11: ("float16", 2, "float16"),
    12: ("bfloat16", 2, "uint16"),
    13: ("float8_e4m3fn", 1, "uint8"),
    14: ("float8_e5m2", 1, "uint8"),
    15: ("complex64", 8, "complex64"),
    16: ("complex128", 16, "complex128"),
    17: ("float8_e4m3fnuz", 1, "uint8"),
    18: ("float8_e5m2fnuz", 1, "uint8"),
}
_NUMBERS = {name: number for number, (name, _, _) in DTYPES.items()}


@dataclass(frozen=True)
class Layout:
    """What a tensor is."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return DTYPES[_NUMBERS[self.dtype]][1]

    @property
    def data_bytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.item_bytes

    def header(self) -> bytes:
        """Write the header.

        Raises:
            ValueError: More dimensions than the header has room for, or a type that it cannot name.
        """
        if self.dtype not in _NUMBERS:
            raise ValueError(f"no tensors of {self.dtype} can be stored")
        if len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"{len(self.shape)} dimensions; {MAX_DIMENSIONS} at most")
        sizes = [*self.shape, *[0] * (MAX_DIMENSIONS - len(self.shape))]
        return _HEADER.pack(
            MAGIC,
            VERSION,
            _NUMBERS[self.dtype],
            HEADER_BYTES,
            self.data_bytes,
            len(self.shape),
            0,
            *sizes,
        )


def read_header(stored: Any, stored_bytes: int) -> Layout:
    """Read the header of a stored tensor.

    Args:
        stored: a buffer that starts with it.
        stored_bytes: bytes of the whole object.

    Returns:
        What follows it.

    Raises:
        ValueError: It is no tensor, or not a whole one.
    """
    if stored_bytes < HEADER_BYTES:
        raise ValueError("the object is no tensor: too short")
    magic, version, number, header, data, dimensions, zero, *sizes = _HEADER.unpack_from(stored)
    if magic != MAGIC or version != VERSION or header != HEADER_BYTES or zero:
        raise ValueError("the object is no tensor that this version can read")
    if number not in DTYPES or dimensions > MAX_DIMENSIONS:
        raise ValueError("the object's header is wrong")
    layout = Layout(DTYPES[number][0], tuple(sizes[:dimensions]))
    if layout.data_bytes != data or stored_bytes < HEADER_BYTES + data:
        raise ValueError("the object is not a whole tensor")
    return layout
