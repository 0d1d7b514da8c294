"""Memory that an engine registers once, so that bytes move to and from it without a copy."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from kvstore import _native


class Registration:
    """Memory that a store has registered; made by `Store.register`.

    It ends with `release`, the end of a ``with`` block, or the store. The memory has to stay where
    it is until then, and no call may use it while it is released. Registering the same memory
    again gives a registration of its own: the memory is registered until the last one ends.
    """

    def __init__(
        self,
        client: _native.Client,
        address: int,
        size: int,
        memory: object = None,
        on_release: Callable[[Registration], object] | None = None,
    ) -> None:
        """Take over what the native client has registered.

        Args:
            client: that has registered it.
            address: of its first byte.
            size: in bytes.
            memory: kept alive meanwhile.
            on_release: called once, when it ends.
        """
        self._client = client
        self._memory = memory
        self._on_release = on_release
        self._released = False
        self.address = address
        """Of its first byte."""
        self.size = size
        """In bytes."""

    def release(self) -> None:
        """End it; idempotent."""
        if not self._released:
            self._released = True
            self._client.forget_memory(self.address)
            self._memory = None
            if self._on_release is not None:
                self._on_release(self)

    def __enter__(self) -> Registration:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        self.release()

    def __repr__(self) -> str:
        """Show address and size."""
        state = ", released" if self._released else ""
        return f"<Registration of {self.size} bytes at {self.address:#x}{state}>"
