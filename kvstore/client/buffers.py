"""Types of the buffers that calls take; for type checkers alone."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from typing_extensions import Buffer


class ArrayInterface(Protocol):
    """A NumPy array: before Python 3.12 its types do not say that it offers the buffer protocol."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Address, shape and type."""


class CudaArrayInterface(Protocol):
    """An array in the memory of a CUDA device (CuPy, Numba, PyTorch)."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Address, shape, type and stream."""


class DLPackArray(Protocol):
    """An array of any library that speaks DLPack."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Export the array as a capsule."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Name the device that it lies on."""


BufferLike: TypeAlias = Buffer | ArrayInterface | CudaArrayInterface | DLPackArray
