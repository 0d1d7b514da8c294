"""Guard: protects an engine from a failing or slow store."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from kvstore.clock import monotonic_ns
from kvstore.errors import Status

_T = TypeVar("_T")
_log = logging.getLogger("kvstore.integrations")

FAILURES_TO_OPEN = 3
# The store could not be reached, as opposed to an object that is not in it.
UNREACHABLE = frozenset(
    {Status.Unavailable, Status.DeadlineExceeded, Status.Closed, Status.Overloaded, Status.IoError}
)
_WEIGHT = 0.2  # of the newest fetch in the moving average


class Guard:
    """Protects an engine from its store; thread-safe.

    A breaker: after three consecutive failures calls are skipped for `retry_s`, then one at a time
    is tried. A bypass: while fetching a token's pages takes longer than computing it,
    `worth_fetching` is False, except for one fetch every `retry_s` that measures again.

    `call` raises nothing but KeyboardInterrupt and SystemExit: failures are counted, and logged
    once per kind.
    """

    def __init__(
        self, engine: str, *, prefill_tokens_per_s: float = 0.0, retry_s: float = 5.0
    ) -> None:
        """Guard one engine's calls.

        Args:
            engine: name of the engine, for the log.
            prefill_tokens_per_s: how fast the engine computes a prompt; 0: unknown, never bypass.
            retry_s: how long the breaker stays open, and the interval between measurements
                during a bypass.
        """
        self._engine = engine
        self._prefill_ns_per_token = 1e9 / prefill_tokens_per_s if prefill_tokens_per_s > 0 else 0.0
        self._retry_ns = int(retry_s * 1e9)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._said: set[str] = set()
        self._failures = 0
        self._closed_again_ns = 0  # the breaker lets one call through after this
        self._fetch_ns_per_token = 0.0
        self._measure_again_ns = 0

    def call(
        self,
        what: str,
        function: Callable[[], _T],
        fallback: _T,
        is_failure: Callable[[_T], bool] | None = None,
    ) -> _T:
        """Run a call of the store; return `fallback` when the breaker is open or the call raises.

        Args:
            what: the call's name, for the counters and the log.
            function: makes the call.
            fallback: the call's result for a miss.
            is_failure: whether a result means that the store is unreachable; it is still returned.

        Returns:
            The result of `function`, or `fallback`.
        """
        if not self._may_call():
            self.count("skipped")
            return fallback
        try:
            answer = function()
            failed = is_failure is not None and is_failure(answer)
        except Exception as error:  # the engine continues without the store
            self._failed()
            self.count(f"{what}_failures")
            self.say(f"{what}: {type(error).__name__}", f"{what} failed: {error}", exc_info=True)
            return fallback
        if failed:
            self._failed()
            self.count(f"{what}_failures")
            self.say(f"{what}: unreachable", f"{what} failed: the store cannot be reached")
        else:
            with self._lock:
                self._failures = 0
        return answer

    def skips(self) -> bool:
        """Say whether the breaker is open and no retry is due: `call` would skip."""
        with self._lock:
            return self._failures >= FAILURES_TO_OPEN and monotonic_ns() < self._closed_again_ns

    def worth_fetching(self) -> bool:
        """Say whether fetching is faster than computing; counts each bypass."""
        with self._lock:
            slow = 0 < self._prefill_ns_per_token < self._fetch_ns_per_token
            if not slow:
                return True
            now = monotonic_ns()
            if now >= self._measure_again_ns:
                self._measure_again_ns = now + self._retry_ns
                return True
            self._counts["bypassed"] += 1
            return False

    def fetched(self, tokens: int, seconds: float) -> None:
        """Add a fetch to the measured rate."""
        if tokens <= 0:
            return
        took = seconds * 1e9 / tokens
        with self._lock:
            before = self._fetch_ns_per_token
            self._fetch_ns_per_token = took if before == 0 else before + _WEIGHT * (took - before)
            slow = 0 < self._prefill_ns_per_token < self._fetch_ns_per_token
        if slow:
            self.say(
                "bypass",
                "fetching takes longer than computing (prefill_tokens_per_s): the store is "
                "bypassed until it is faster",
            )

    def count(self, what: str, more: int = 1) -> None:
        """Add to a counter of `stats`."""
        with self._lock:
            self._counts[what] += more

    def say(self, kind: str, sentence: str, exc_info: bool = False) -> None:
        """Log a warning once per kind."""
        with self._lock:
            if kind in self._said:
                return
            self._said.add(kind)
        _log.warning("%s: %s", self._engine, sentence, exc_info=exc_info)

    def stats(self) -> dict[str, int | float]:
        """Return every counter, whether the breaker is open, and the measured rate."""
        with self._lock:
            rate = 1e9 / self._fetch_ns_per_token if self._fetch_ns_per_token else 0.0
            is_open = self._failures >= FAILURES_TO_OPEN
            return {**self._counts, "breaker_open": int(is_open), "fetched_tokens_per_s": rate}

    def _may_call(self) -> bool:
        with self._lock:
            if self._failures < FAILURES_TO_OPEN:
                return True
            now = monotonic_ns()
            if now < self._closed_again_ns:
                return False
            self._closed_again_ns = now + self._retry_ns  # this call tries for all
            return True

    def _failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._closed_again_ns = monotonic_ns() + self._retry_ns
