"""One object's bytes without a copy, held for as long as somebody looks at them."""

from __future__ import annotations

import contextlib
from types import TracebackType

from kvstore import _native


class View:
    """A held block as a read-only memoryview; made by Store.view.

    The hold begins when the view is made, so that nothing can be evicted between the two lines::

        view = store.view("key")
        if view is not None:
            with view as block:      # a read-only memoryview of the block itself
                use(block)

    The block stays as it is until the view is released *and* every memoryview or array made from it
    is gone: what was handed out never shows other bytes. An object that is not on this host is
    fetched into private memory instead (``zero_copy`` tells).
    """

    __slots__ = ("_block", "_memory")

    def __init__(self, block: _native.Block) -> None:
        """Wrap a held block."""
        self._block = block
        self._memory: memoryview | None = None

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self._block.size

    @property
    def zero_copy(self) -> bool:
        """Whether the bytes are the shared block itself, not a private copy."""
        return self._block.zero_copy

    def release(self) -> None:
        """End the hold as soon as no memoryview shows the bytes any more."""
        memory, self._memory = self._memory, None
        if memory is not None:
            # An array that still looks at it keeps the memoryview, and the hold, until it goes.
            with contextlib.suppress(BufferError):
                memory.release()
        self._block.release()

    def __enter__(self) -> memoryview:
        """Return the bytes.

        Raises:
            BufferError: The view was released.
        """
        if self._memory is None:
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
        return f"View(size={self.size}, zero_copy={self.zero_copy})"
