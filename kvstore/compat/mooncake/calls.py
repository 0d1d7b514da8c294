"""What every call of the drop-in has in common: a number for an answer, never an exception."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvstore.client.store import Store
from kvstore.compat.mooncake.codes import ErrorCode, code_of
from kvstore.compat.mooncake.values import ReplicateConfig
from kvstore.errors import KvstoreError
from kvstore.integrations.guard import AWAY, Guard

_T = TypeVar("_T")
_DEFAULT = ReplicateConfig()

log = logging.getLogger("kvstore.compat.mooncake")


class Calls:
    """Base of the store: asks kvstore on behalf of an engine, and turns all failures into codes.

    A store that is away costs an engine three failed calls; then none is made for some seconds
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
            function: makes it.
            failed: makes the answer for an error code.

        Returns:
            Its answer, or that of `failed`.
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
                if error.status in AWAY:
                    raise
                self._guard.say(f"{what}: {error.status}", f"{what}: {error}")
                return failed(code_of(error.status))

        return self._guard.call(what, call, failed(int(ErrorCode.RPC_FAIL)), _is_away)

    def _codes(
        self, what: str, function: Callable[[Store], list[int]], keys: Sequence[object]
    ) -> list[int]:
        """Run a call that answers a code or a number for each key."""
        return self._ask(what, function, lambda code: [code] * len(keys))

    def _say_config(self, config: ReplicateConfig) -> None:
        """Tell once what of a configuration has no effect."""
        if config.preferred_segment or config.preferred_segments:
            self._guard.say(
                "preferred_segment",
                "preferred_segment has no effect: objects go to a node of this host where there "
                "is one, else where the master's policy wants them",
            )
        if config.nof_replica_num or config.dfs_replica_num:
            self._guard.say("replicas", "nof_replica_num and dfs_replica_num have no effect")

    def _kept(self, config: ReplicateConfig | None) -> ReplicateConfig:
        """Return the configuration of a put, or the default one."""
        if config is None:
            return _DEFAULT
        if not isinstance(config, ReplicateConfig):
            raise TypeError(f"config is no ReplicateConfig: {config!r}")
        self._say_config(config)
        return config


def worst(codes: Sequence[int]) -> int:
    """Return the one code of a batch that has a single answer: 0, or the first that is not."""
    return next((code for code in codes if code != ErrorCode.OK), int(ErrorCode.OK))


def _is_away(answer: object) -> bool:
    """Whether an answer says that nothing could be reached."""
    if isinstance(answer, list):
        return bool(answer) and all(one == ErrorCode.RPC_FAIL for one in answer)
    return isinstance(answer, int) and answer == ErrorCode.RPC_FAIL
