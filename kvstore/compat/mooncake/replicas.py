"""Locations of replicas, and tasks that create further ones."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from kvstore.client.answers import MAX_REPLICAS
from kvstore.client.store import Store
from kvstore.clock import monotonic_ms, pause_s, unix_ms
from kvstore.compat.mooncake.calls import Calls
from kvstore.compat.mooncake.codes import ErrorCode
from kvstore.compat.mooncake.values import (
    QueryTaskResponse,
    ReplicaDescriptor,
    TaskStatus,
    TaskType,
)

_WAIT_MS = 10_000
_POLL_S = 0.05
_KEPT_TASKS = 1000


class Replicas(Calls):
    """Calls about replicas."""

    def __init__(self) -> None:
        """Start without tasks."""
        super().__init__()
        self._tasks: dict[tuple[int, int], QueryTaskResponse] = {}

    def get_replica_desc(self, key: str) -> list[ReplicaDescriptor]:
        """Describe an object's replicas; none when it is absent."""
        return self.batch_get_replica_desc([key]).get(key, [])

    def batch_get_replica_desc(self, keys: Sequence[str]) -> dict[str, list[ReplicaDescriptor]]:
        """Describe the replicas of several objects; those that are absent are left out."""

        def call(store: Store) -> dict[str, list[ReplicaDescriptor]]:
            found = {}
            for key in keys:
                known = store.inspect(key)
                if known is not None:
                    found[key] = [
                        ReplicaDescriptor(one["node_id"], one["tier"], known["size"])
                        for one in known["replicas"]
                    ]
            return found

        return self._ask("batch_get_replica_desc", call, lambda code: {})

    def create_copy_task(self, key: str, targets: Sequence[str]) -> tuple[tuple[int, int], int]:
        """Create replicas of an object on more nodes, in the background.

        Args:
            key: of the object.
            targets: names of nodes. The master places replicas by its policy; the task succeeds if
                all targets hold one, otherwise it fails and its message lists the holders.

        Returns:
            The task's id and 0; or (0, 0) and a negative code.
        """
        wanted = sorted(set(targets))

        def call(store: Store) -> tuple[tuple[int, int], int]:
            return self._begin(store, TaskType.REPLICA_COPY, key, wanted)

        return self._ask("create_copy_task", call, lambda code: ((0, 0), int(code)))

    def create_move_task(self, key: str, source: str, target: str) -> tuple[tuple[int, int], int]:
        """Create a replica on another node, in the background.

        Args:
            key: of the object.
            source: a node that holds it. Its replica stays until it is evicted there.
            target: the node that is to hold it.

        Returns:
            As `create_copy_task`.
        """

        def call(store: Store) -> tuple[tuple[int, int], int]:
            if source not in _holders(store, key):
                return (0, 0), int(ErrorCode.OBJECT_NOT_FOUND)
            return self._begin(store, TaskType.REPLICA_MOVE, key, [target])

        return self._ask("create_move_task", call, lambda code: ((0, 0), int(code)))

    def query_task(self, task_id: tuple[int, int]) -> tuple[QueryTaskResponse | None, int]:
        """Return a task's progress; (None, TASK_NOT_FOUND) for an unknown task."""
        with self._lock:
            task = self._tasks.get(tuple(task_id))  # type: ignore[arg-type]
        return (None, int(ErrorCode.TASK_NOT_FOUND)) if task is None else (task, 0)

    def _begin(
        self, store: Store, kind: TaskType, key: str, targets: list[str]
    ) -> tuple[tuple[int, int], int]:
        if not targets:
            return (0, 0), int(ErrorCode.INVALID_PARAMS)
        known = {node["node_id"] for node in store.stats()["nodes"]}
        if not known.issuperset(targets):
            return (0, 0), int(ErrorCode.SEGMENT_NOT_FOUND)
        if not store.exists(key):
            return (0, 0), int(ErrorCode.OBJECT_NOT_FOUND)
        now = unix_ms()
        task = QueryTaskResponse(
            id=(secrets.randbits(63), secrets.randbits(63)),
            type=kind,
            created_at_ms_epoch=now,
            last_updated_at_ms_epoch=now,
        )
        with self._lock:
            while len(self._tasks) >= _KEPT_TASKS:
                del self._tasks[next(iter(self._tasks))]
            self._tasks[task.id] = task
        threading.Thread(
            target=self._carry_out, args=(store, task, key, targets), daemon=True
        ).start()
        return task.id, 0

    def _carry_out(
        self, store: Store, task: QueryTaskResponse, key: str, targets: list[str]
    ) -> None:
        try:
            task.status = TaskStatus.PROCESSING
            message = _replicate(store, key, targets)
        except Exception as error:  # a closed store, an unreachable master, …
            message = str(error) or type(error).__name__
        task.message = message
        task.last_updated_at_ms_epoch = unix_ms()
        task.status = TaskStatus.FAILED if message else TaskStatus.SUCCESS


def _holders(store: Store, key: str) -> set[str]:
    known = store.inspect(key)
    return set() if known is None else {one["node_id"] for one in known["replicas"]}


def _replicate(store: Store, key: str, targets: list[str]) -> str:
    """Create replicas; return an error message, or "" on success."""
    missing = set(targets) - _holders(store, key)
    if not missing:
        return ""
    known, data = store.inspect(key), store.get(key)
    if known is None or data is None:
        return "the object is gone"
    replicas = min(len(known["replicas"]) + len(missing), MAX_REPLICAS)
    # A new version with the same bytes: the number of replicas is set by a put.
    status = store.put(key, data, replicas=replicas, pin=known["pin"], upsert=True)
    if not status.ok:
        return f"the copy was refused: {status}"
    deadline = monotonic_ms() + _WAIT_MS
    while missing and monotonic_ms() < deadline:
        pause_s(_POLL_S)
        missing = set(targets) - _holders(store, key)
    if missing:
        return f"not on {sorted(missing)}; the master placed it on {sorted(_holders(store, key))}"
    return ""
