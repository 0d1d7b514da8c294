"""Result of lookup(): the length of the prefix, and the leases that protect it."""

from __future__ import annotations

from types import TracebackType

from kvstore import _native
from kvstore.client.answers import REASONS
from kvstore.errors import MissReason


class Lookup:
    """The present prefix of a list of keys; a context manager that releases its leases.

    Leases are renewed by a native thread until they are released, the store is closed or this
    process ends. Dropping the object releases them too.
    """

    __slots__ = ("_leases", "_length", "_reason")

    def __init__(self, length: int, reason: int, leases: _native.Leases | None = None) -> None:
        """Wrap a result; made by Store.lookup."""
        self._length = length
        self._reason = REASONS[reason]
        self._leases = leases

    @property
    def length(self) -> int:
        """Leading keys that are present (and leased, when leases were asked for)."""
        return self._length

    @property
    def reason(self) -> MissReason:
        """Why the prefix ends where it does; None_ when it is the whole list.

        Unavailable also when an object is present but could not be leased.
        """
        return self._reason

    @property
    def alive(self) -> bool:
        """Whether every lease is still valid; False without leases.

        A lease ends with its node, or when the node could not be reached in time to renew it. Its
        objects may then be evicted like any other.
        """
        return self._leases is not None and self._leases.alive()

    def release(self) -> None:
        """Give the leases back; does nothing the second time."""
        leases, self._leases = self._leases, None
        if leases is not None:
            leases.release()

    def __enter__(self) -> Lookup:
        """Return the lookup itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the leases."""
        self.release()

    def __len__(self) -> int:
        """Return the length of the prefix."""
        return self._length

    def __repr__(self) -> str:
        """Show the length, why the prefix ends there, and whether there are leases."""
        return (
            f"Lookup(length={self._length}, reason={self._reason.value}, "
            f"leased={self._leases is not None})"
        )
