"""View: one object's bytes without a copy, held as long as they are in use."""

from __future__ import annotations

import contextlib
from types import TracebackType

from kvstore import _native


class View:
    """A held block as a read-only memoryview; made by Store.view. False on a miss.

    The hold starts when the view is made, so that the object cannot be evicted in between::

        with store.view("key") as block:  # a read-only memoryview of the block itself
            if block is not None:         # None: a miss
                use(block)

    The block stays unchanged until the view is released *and* every memoryview or array made from
    it is gone. An object on another host is fetched into private memory instead (see
    ``zero_copy``).
    """

    __slots__ = ("_block", "_memory")

    def __init__(self, block: _native.Block | None) -> None:
        """Wrap a held block; None for a miss."""
        self._block = block
        self._memory: memoryview | None = None

    @property
    def size(self) -> int:
        """Bytes of the object; 0 on a miss."""
        return 0 if self._block is None else self._block.size

    @property
    def zero_copy(self) -> bool:
        """Whether the bytes are the shared block itself rather than a private copy."""
        return self._block is not None and self._block.zero_copy

    def release(self) -> None:
        """End the hold as soon as no memoryview uses the bytes."""
        memory, self._memory = self._memory, None
        if memory is not None:
            # An array made from it keeps the memoryview, and the hold, until it is gone.
            with contextlib.suppress(BufferError):
                memory.release()
        if self._block is not None:
            self._block.release()

    def __bool__(self) -> bool:
        """Say whether the object was found; also after the release."""
        return self._block is not None

    def __enter__(self) -> memoryview | None:
        """Return the bytes; None on a miss.

        Raises:
            BufferError: The view has been released.
        """
        if self._memory is None and self._block is not None:
            self._memory = memoryview(self._block)  # type: ignore[arg-type]
        return self._memory

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the view."""
        self.release()

    def __repr__(self) -> str:
        """Show the size and where the bytes are."""
        if self._block is None:
            return "View(miss)"
        return f"View(size={self.size}, zero_copy={self.zero_copy})"
