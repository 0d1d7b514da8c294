"""Common part of the drop-in's calls: they return a number and never raise."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvstore.client.store import Store
from kvstore.compat.mooncake.codes import ErrorCode, code_of
from kvstore.compat.mooncake.values import ReplicateConfig
from kvstore.errors import KvstoreError
from kvstore.integrations.guard import UNREACHABLE, Guard

_T = TypeVar("_T")
_DEFAULT = ReplicateConfig()

log = logging.getLogger("kvstore.compat.mooncake")


class Calls:
    """Base of the store: calls kvstore for an engine, and turns all failures into codes.

    Failures become error codes; after three in a row the store is skipped for five seconds
    (integrations.guard).
    """

    def __init__(self) -> None:
        """Start without a store; `setup` opens it."""
        self._store: Store | None = None
        self._guard = Guard("mooncake drop-in")
        self._lock = threading.RLock()

    def _ask(self, what: str, function: Callable[[Store], _T], failed: Callable[[int], _T]) -> _T:
        """Run a call.

        Args:
            what: its name, for counters and log.
            function: makes the call.
            failed: makes the result for an error code.

        Returns:
            The call's result, or that of `failed`.
        """
        store = self._store
        if store is None:
            self._guard.say("no setup", f"{what} before a successful setup, or after close")
            return failed(int(ErrorCode.INVALID_PARAMS))

        def call() -> _T:
            try:
                return function(store)
            except (TypeError, ValueError, BufferError, OverflowError) as error:
                self._guard.say(f"{what}: argument", f"{what}: {error}")
                return failed(int(ErrorCode.INVALID_PARAMS))
            except KvstoreError as error:
                if error.status in UNREACHABLE:
                    raise
                self._guard.say(f"{what}: {error.status}", f"{what}: {error}")
                return failed(code_of(error.status))

        return self._guard.call(what, call, failed(int(ErrorCode.RPC_FAIL)), _is_away)

    def _codes(
        self, what: str, function: Callable[[Store], list[int]], keys: Sequence[object]
    ) -> list[int]:
        """Run a call that returns a code or a number for each key."""
        return self._ask(what, function, lambda code: [code] * len(keys))

    def _say_config(self, config: ReplicateConfig) -> None:
        """Log once which settings of a configuration have no effect."""
        if config.preferred_segment or config.preferred_segments:
            self._guard.say(
                "preferred_segment",
                "preferred_segment has no effect: objects go to a node of this host if there "
                "is one, else where the master's policy places them",
            )
        if config.nof_replica_num or config.dfs_replica_num:
            self._guard.say("replicas", "nof_replica_num and dfs_replica_num have no effect")

    def _kept(self, config: ReplicateConfig | None) -> ReplicateConfig:
        """Return the configuration of a put, or the default one."""
        if config is None:
            return _DEFAULT
        if not isinstance(config, ReplicateConfig):
            raise TypeError(f"config is not a ReplicateConfig: {config!r}")
        self._say_config(config)
        return config


def worst(codes: Sequence[int]) -> int:
    """Return the code of a batch with a single result: the first that is not 0, else 0."""
    return next((code for code in codes if code != ErrorCode.OK), int(ErrorCode.OK))


def _is_away(answer: object) -> bool:
    """Whether a result means that the store was unreachable."""
    if isinstance(answer, list):
        return bool(answer) and all(one == ErrorCode.RPC_FAIL for one in answer)
    return isinstance(answer, int) and answer == ErrorCode.RPC_FAIL
