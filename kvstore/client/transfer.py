"""Transfer: a get into GPU memory whose copies are queued on a stream."""

from __future__ import annotations

from kvstore import _native
from kvstore.client.answers import REASONS
from kvstore.clock import monotonic_ms
from kvstore.errors import KvstoreError, MissReason, Status, error_for

_WAIT_PART_MS = 1000


class Transfer:
    """Copies into GPU memory that were queued on a stream; made by a get with ``stream``.

    What is queued on that stream afterwards runs after the copies, so an engine can launch its
    kernels at once. Whether an object was loaded is final only when `done`: until then its block is
    held, and afterwards its generation is read once more. The destinations must stay allocated
    until then, also if this object is dropped before.
    """

    __slots__ = ("_keep", "_native")

    def __init__(self, native: _native.Transfer, keep: object) -> None:
        """Wrap a native transfer; `keep` is what owns the destinations."""
        self._native = native
        self._keep = keep

    @property
    def done(self) -> bool:
        """Whether all copies have been made, or never will be."""
        if self._native.done():
            self._keep = None
            return True
        return False

    @property
    def queued(self) -> list[int]:
        """What is known now: for each key the size that is being copied, or a negative status.

        A miss stays one. A size is final when `done`.
        """
        return self._native.results()

    def result(self, timeout_ms: int | None = None) -> list[int]:
        """Wait until the copies have been made.

        Args:
            timeout_ms: wait at most this long; None: as long as the stream takes.

        Returns:
            For each key the size, or a negative status, as `Store.batch_get_into`; NotFound also
            for an object that was replaced or removed while it was copied, ChecksumMismatch when
            what arrived is not what was put, IoError for all when the device failed (see `error`).

        Raises:
            DeadlineExceededError: The copies have not been made in time.
        """
        until = None if timeout_ms is None else monotonic_ms() + timeout_ms
        while not self.done:
            left = _WAIT_PART_MS
            if until is not None:
                left = min(left, max(0, until - monotonic_ms()))
            if not self._native.wait(left) and until is not None and monotonic_ms() >= until:
                raise error_for(Status.DeadlineExceeded, "the stream has not made the copies yet")
        return self._native.results()

    @property
    def reasons(self) -> list[MissReason]:
        """For each key the reason of a miss; None_ for what is being copied or was."""
        return [REASONS[number] for number in self._native.reasons()]

    @property
    def error(self) -> KvstoreError | None:
        """Why the copies failed; None when they have not."""
        code, message = self._native.failure()
        return None if code == 0 else error_for(code, message)

    def __repr__(self) -> str:
        """Show the number of keys, and whether the copies have been made."""
        return f"Transfer(keys={len(self._native.results())}, done={self._native.done()})"
