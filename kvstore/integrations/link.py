"""Link: a store behind a guard that connects when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from kvstore.client.store import Store
from kvstore.errors import ClosedError
from kvstore.integrations.guard import Guard

_T = TypeVar("_T")


class Link:
    """A store of one namespace; thread-safe. An engine starts even without its store."""

    def __init__(self, guard: Guard, open_store: Callable[[], Store]) -> None:
        """Use `open_store` to connect."""
        self._guard = guard
        self._open = open_store
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._closed = False

    def call(
        self,
        what: str,
        function: Callable[[Store], _T],
        fallback: _T,
        is_failure: Callable[[_T], bool] | None = None,
    ) -> _T:
        """Run a call of the store as `Guard.call` does, connecting first if necessary."""
        if self._closed:
            return fallback
        return self._guard.call(what, lambda: function(self._connected()), fallback, is_failure)

    def close(self) -> None:
        """Close the store; from then on calls return their fallback."""
        with self._lock:
            self._closed = True
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def _connected(self) -> Store:
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is shutting down")
            if self._store is None:
                self._store = self._open()
            return self._store
