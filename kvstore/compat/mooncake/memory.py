"""Memory by address: buffers locked during a call, and the engines' allocator."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SIMPLE = 0  # PyBUF_SIMPLE: contiguous bytes, read-only ones too


class _PyBuffer(ctypes.Structure):
    """Py_buffer of the interpreter's stable ABI. Source: PEP 3118, Include/pybuffer.h."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None


class Addresses:
    """Addresses of buffers, which are locked until the block ends."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        """Lock the buffers.

        Raises:
            TypeError: One does not support the buffer protocol.
            BufferError: One is not contiguous.
        """
        self._views: list[_PyBuffer] = []
        try:
            for buffer in buffers:
                view = _PyBuffer()
                _get_buffer(buffer, ctypes.byref(view), _SIMPLE)
                self._views.append(view)
        except BaseException:
            self.release()
            raise

    @property
    def pointers(self) -> list[int]:
        """Address of each buffer."""
        return [view.buf or 0 for view in self._views]

    @property
    def sizes(self) -> list[int]:
        """Size of each buffer in bytes."""
        return [view.len for view in self._views]

    def release(self) -> None:
        """Unlock them."""
        views, self._views = self._views, []
        for view in views:
            _release_buffer(ctypes.byref(view))

    def __enter__(self) -> Addresses:
        """Return the addresses."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Unlock the buffers."""
        self.release()


class BufferHandle(bytearray):
    """An object's bytes in private memory, with Mooncake's `ptr()` and `size()`.

    Supports the buffer protocol, so that memoryview, NumPy and torch read it without a copy.
    """

    def ptr(self) -> int:
        """Return the address; 0 for an empty object."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self)) if self else 0

    def size(self) -> int:
        """Return its bytes."""
        return len(self)

    def __repr__(self) -> str:
        """Show the size only."""
        return f"BufferHandle(size={len(self)})"


def bytes_at(pointer: int, size: int) -> memoryview:
    """Return a writable view of memory that the caller keeps alive."""
    return memoryview((ctypes.c_ubyte * size).from_address(pointer)).cast("B")


_lock = threading.Lock()
_maps: dict[int, tuple[mmap.mmap, Any]] = {}


class MooncakeHostMemAllocator:
    """Allocates anonymous memory for an engine's host pool.

    It outlives the allocator: tensors are made from its bare address.
    """

    def alloc(self, size: int) -> int:
        """Map memory.

        Args:
            size: bytes, 1 or more.

        Returns:
            Its address, on a page boundary; 0 when there is none.
        """
        if not isinstance(size, int) or size <= 0:
            return 0
        try:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError):
            return 0
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        first = ctypes.c_char.from_buffer(pages)
        address = ctypes.addressof(first)
        with _lock:
            _maps[address] = (pages, first)
        return address

    def free(self, pointer: int) -> int:
        """Unmap memory of `alloc`; nothing may use it any more.

        Returns:
            0, or -1 for an unknown address.
        """
        with _lock:
            found = _maps.pop(pointer, None)
        if found is None:
            return -1
        pages, first = found
        del first, found  # the last export, so that it can be unmapped
        pages.close()
        return 0
