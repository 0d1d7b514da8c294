"""Memory that a worker copies from and to: one private region, touched before any timed call."""

from __future__ import annotations

import ctypes
import hashlib
import mmap

_PAGE_BYTES = 4096
_UNIT_BYTES = 4093  # prime: no page-sized shift maps a payload onto itself
STAMP_BYTES = 32

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


def stamp(key: str) -> bytes:
    """Return the first bytes of the object under `key`: they prove whose it is."""
    return hashlib.blake2b(key.encode(), digest_size=STAMP_BYTES).digest()


def _body(place: int, size: int) -> bytes:
    unit = hashlib.shake_128(b"kvstore-bench-%d" % place).digest(min(_UNIT_BYTES, size))
    return (unit * (size // len(unit) + 1))[:size]


class Arena:
    """A region of places of one size; place `i` holds the object `i`, or takes what is read."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map[::_PAGE_BYTES] = b"\1" * len(range(0, size_bytes, _PAGE_BYTES))
        self._bytes = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def view(self, place: int, size: int) -> memoryview:
        return self._bytes[place * size : (place + 1) * size]

    def pointer(self, place: int, size: int) -> int:
        return self.address + place * size

    def fill(self, count: int, size: int) -> None:
        """Give the first `count` places bodies that differ from each other."""
        for place in range(count):
            self._bytes[place * size : (place + 1) * size] = _body(place, size)

    def sign(self, place: int, size: int, key: str) -> None:
        """Turn the content of a place into that of the object under `key`."""
        self._bytes[place * size : place * size + STAMP_BYTES] = stamp(key)

    def equal(self, place: int, size: int, other: Arena, other_slot: int) -> bool:
        difference = _memcmp(self.pointer(place, size), other.pointer(other_slot, size), size)
        return bool(difference == 0)
