"""Link: a store that is connected when it is first needed, behind a guard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from kvstore.client.store import Store
from kvstore.errors import ClosedError
from kvstore.integrations.guard import Guard

_T = TypeVar("_T")


class Link:
    """One store of one namespace; thread-safe. An engine starts without its store, too."""

    def __init__(self, guard: Guard, open_store: Callable[[], Store]) -> None:
        """Link a store that `open_store` connects."""
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
        """Run a call of the store as `Guard.call` does; connecting is part of it."""
        if self._closed:
            return fallback
        return self._guard.call(what, lambda: function(self._connected()), fallback, is_failure)

    def close(self) -> None:
        """Close the store; calls answer their fallback from then on."""
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
