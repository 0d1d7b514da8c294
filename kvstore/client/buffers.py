"""Types of the buffers that calls take; for type checkers alone."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from typing_extensions import Buffer


class ArrayInterface(Protocol):
    """A NumPy array: before Python 3.12 its types do not say that it offers the buffer protocol."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Address, shape and type."""


BufferLike: TypeAlias = Buffer | ArrayInterface
