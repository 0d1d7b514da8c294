"""WorkerSide: loads and saves one rank's blocks, in threads off the forward path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

from kvstore.client.store import Store
from kvstore.clock import monotonic_ns
from kvstore.errors import Status
from kvstore.integrations.guard import UNREACHABLE, Guard
from kvstore.integrations.identity import UNKNOWN_PARENT
from kvstore.integrations.link import Link
from kvstore.integrations.vllm.memory import CALL_BYTES, Memory
from kvstore.integrations.vllm.messages import Answer, Load, Loaded, Save, Saved, Step
from kvstore.integrations.vllm.pages import Blocks

_T = TypeVar("_T")

_LOADERS = 2
_DRAIN_S = 5.0  # how long the shutdown of the engine waits for saves
_SAVED = (Status.Ok, Status.AlreadyExists)


class WorkerSide:
    """The worker's half of the connector, one per rank.

    The engine's thread submits work and collects results; it never waits for the store. A load's
    request is always reported, with the blocks that failed.
    """

    def __init__(
        self,
        *,
        memory: Memory,
        guard: Guard,
        open_store: Callable[[str], Store],
        rank: int,
        writes: bool,
        replicas: int,
    ) -> None:
        """Start the threads.

        Args:
            memory: this rank's KV cache.
            guard: of this worker's calls.
            open_store: connects to a namespace.
            rank: in the objects' keys.
            writes: False where another worker has the same heads and writes them.
            replicas: of written blocks.
        """
        self._memory = memory
        self._guard = guard
        self._open_store = open_store
        self._rank = rank
        self._writes = writes
        self._replicas = replicas
        self._link: Link | None = None
        self._loaders = ThreadPoolExecutor(_LOADERS, "kvstore-load")
        self._saver = ThreadPoolExecutor(1, "kvstore-save")
        self._saving: list[Future[None]] = []
        self._lock = threading.Lock()
        self._answer = Answer()
        self._finished: set[str] = set()
        self._failed_blocks: dict[str, set[int]] = {}

    def start_loads(self, step: Step) -> None:
        """Start this step's loads."""
        if step.namespace and self._link is None:
            namespace = step.namespace
            self._link = Link(self._guard, lambda: self._opened(namespace))
        for load in step.loads:
            self._loaders.submit(self._load, load)

    def start_saves(self, step: Step) -> None:
        """Start this step's saves; the forward pass has been submitted."""
        if not step.saves:
            return
        after = self._memory.mark()
        for save in step.saves:
            if self._writes:
                self._saving = [one for one in self._saving if not one.done()]
                self._saving.append(self._saver.submit(self._save, save, after))
            else:
                self._saved(save, frozenset(range(len(save.blocks))))

    def take_finished(self) -> tuple[set[str], dict[str, set[int]]]:
        """Return the requests whose loads have finished, and their failed blocks."""
        with self._lock:
            finished, self._finished = self._finished, set()
            failed, self._failed_blocks = self._failed_blocks, {}
        return finished, failed

    def take_answer(self) -> Answer | None:
        """Return the news for the scheduler."""
        with self._lock:
            answer, self._answer = self._answer, Answer()
        return answer if answer.loads or answer.saves else None

    def close(self) -> None:
        """Stop the threads; running saves get a little time."""
        wait(self._saving, timeout=_DRAIN_S)
        if self._link is not None:
            self._link.close()
        for threads in (self._loaders, self._saver):
            threads.shutdown(wait=True, cancel_futures=True)

    def _opened(self, namespace: str) -> Store:
        store = self._open_store(namespace)
        self._memory.register(store, self._guard)
        return store

    def _load(self, load: Load) -> None:
        """Fetch a request's blocks; runs in a loader's thread."""
        began = monotonic_ns()
        good, unreachable = 0, True
        try:
            good, unreachable = self._fetch(load.blocks)
        finally:
            seconds = (monotonic_ns() - began) / 1e9
            failed = set(load.blocks.ids[good:])
            with self._lock:
                self._answer.loads[load.request_id] = Loaded(
                    load.tokens, seconds, len(failed), unreachable
                )
                self._finished.add(load.request_id)
                if failed:
                    self._failed_blocks[load.request_id] = failed

    def _fetch(self, blocks: Blocks) -> tuple[int, bool]:
        """Return how many leading blocks were loaded, and whether the store was unreachable."""
        for rows in self._calls(blocks, range(len(blocks))):
            sizes = self._call("load", partial(self._get, blocks, rows))
            if sizes is None:
                return rows[0], True
            for row, size in zip(rows, sizes, strict=True):
                if size != self._memory.block_bytes(blocks.groups[row]):
                    return row, size in UNREACHABLE
        return len(blocks), False

    def _get(self, blocks: Blocks, rows: list[int], store: Store) -> list[int]:
        keys = blocks.keys(self._rank)
        return self._memory.get(
            store,
            [keys[row] for row in rows],
            [blocks.groups[row] for row in rows],
            [blocks.ids[row] for row in rows],
        )

    def _save(self, save: Save, after: Any) -> None:
        """Store a save's blocks that are not stored yet; runs in the saver's thread."""
        written: frozenset[int] = frozenset()
        try:
            written = frozenset(self._written(save.blocks, after))
        finally:
            self._saved(save, written)

    def _written(self, blocks: Blocks, after: Any) -> Iterator[int]:
        keys = blocks.keys(self._rank)
        there = self._call("exists", lambda store: store.batch_exists(keys))
        if there is None:
            return
        absent = [row for row, found in enumerate(there) if not found]
        for rows in self._calls(blocks, absent):
            statuses = self._call("save", partial(self._put, blocks, rows, after))
            for row, status in zip(rows, statuses or [], strict=False):
                if status == Status.Ok:
                    yield row
            if statuses is None or any(status not in _SAVED for status in statuses):
                self._guard.count("saves_cut_short")
                return  # later pages of the chain cannot be found without these

    def _put(self, blocks: Blocks, rows: list[int], after: Any, store: Store) -> list[Status]:
        keys = blocks.keys(self._rank)
        return self._memory.put(
            store,
            [keys[row] for row in rows],
            [blocks.groups[row] for row in rows],
            [blocks.ids[row] for row in rows],
            parent=keys[rows[0] - 1] if rows[0] else UNKNOWN_PARENT,
            replicas=self._replicas,
            after=after,
        )

    def _saved(self, save: Save, written: frozenset[int]) -> None:
        with self._lock:
            self._answer.saves[save.job] = Saved(1, written)

    def _call(self, what: str, function: Callable[[Store], list[_T]]) -> list[_T] | None:
        if self._link is None:
            return None
        return self._link.call(what, function, None, _says_away)

    def _calls(self, blocks: Blocks, rows: range | list[int]) -> Iterator[list[int]]:
        """Split rows into calls of bounded size."""
        call: list[int] = []
        size = 0
        for row in rows:
            more = self._memory.block_bytes(blocks.groups[row])
            if call and size + more > CALL_BYTES:
                yield call
                call, size = [], 0
            call.append(row)
            size += more
        if call:
            yield call


def _says_away(rows: Sequence[object] | None) -> bool:
    return rows is not None and any(row in UNREACHABLE for row in rows)
