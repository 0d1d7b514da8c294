"""Drive a store with a trace: look up the prefix, get and verify it, put missing blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvstore.clock import monotonic_ns
from kvstore.errors import Status
from kvstore.replay.payload import key, payload
from kvstore.replay.trace import Request


class ReplayStore(Protocol):
    """Calls of a store that a replay uses; `kvstore.Store` has them."""

    def prefix_length(self, keys: Sequence[str], stride: int = 1) -> int:
        """Return the number of leading keys that are present."""
        ...

    def batch_get_into(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> list[int]:
        """Read each object into its buffer; a size, or a negative status, per key."""
        ...

    def batch_put(
        self, keys: Sequence[str], buffers: Sequence[bytes], *, parent: str | None = None
    ) -> list[Status]:
        """Put each buffer under its key, chained behind `parent`."""
        ...


@dataclass
class Tally:
    """Counters of a replay. Times are nanoseconds of the store's calls alone."""

    requests: int = 0
    blocks: int = 0
    hit_blocks: int = 0
    put_blocks: int = 0
    wrong_bytes: int = 0
    failed_gets: int = 0
    put_statuses: dict[str, int] = field(default_factory=dict)
    lookup_ns: list[int] = field(default_factory=list)
    get_ns: list[int] = field(default_factory=list)
    put_ns: list[int] = field(default_factory=list)

    @property
    def hit_rate(self) -> float:
        """Share of requested blocks that were read and verified, each after an unbroken prefix."""
        return self.hit_blocks / self.blocks if self.blocks else 0.0


def percentile_us(samples_ns: Sequence[int], fraction: float) -> float:
    """Return the given percentile of nanosecond samples in microseconds, 0 for none."""
    if not samples_ns:
        return 0.0
    ordered = sorted(samples_ns)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] / 1000


class Replay:
    """One replay of a trace against one store, request by request."""

    def __init__(self, store: ReplayStore, block_bytes: int, max_blocks: int) -> None:
        """Prepare buffers for the longest request.

        Args:
            store: The store under test.
            block_bytes: Bytes of one block.
            max_blocks: Blocks of the longest request in the trace.
        """
        self._store = store
        self.block_bytes = block_bytes
        # One batch of buffers is reused, so that the replay measures the store and not the kernel's
        # page faults.
        self._batch = max(1, min(max_blocks, (256 << 20) // block_bytes))
        arena = memoryview(bytearray(self._batch * block_bytes))
        self._buffers = [arena[i * block_bytes : (i + 1) * block_bytes] for i in range(self._batch)]
        self.tally = Tally()
        self.put_keys: set[str] = set()
        """What this replay has put, and nobody else."""

    def run(self, requests: Sequence[Request], progress: Callable[[], None]) -> Tally:
        """Replay every request in order and return the tally; `progress` is called after each."""
        for request in requests:
            self._one(request)
            progress()
        return self.tally

    def _one(self, request: Request) -> None:
        tally = self.tally
        keys = [key(block, self.block_bytes) for block in request.hash_ids]
        tally.requests += 1
        tally.blocks += len(keys)
        if not keys:
            return
        start = monotonic_ns()
        present = self._store.prefix_length(keys)
        tally.lookup_ns.append(monotonic_ns() - start)
        hits = self._get_prefix(request.hash_ids, keys, present)
        tally.hit_blocks += hits
        self._put_missing(request.hash_ids, keys, hits)

    def _get_prefix(self, ids: Sequence[int], keys: Sequence[str], present: int) -> int:
        """Read and verify the first `present` blocks; return the number read before a miss."""
        for first in range(0, present, self._batch):
            some = keys[first : min(first + self._batch, present)]
            start = monotonic_ns()
            sizes = self._store.batch_get_into(some, self._buffers[: len(some)])
            self.tally.get_ns.append(monotonic_ns() - start)
            for i, size in enumerate(sizes):
                if size < 0:
                    # Evicted between the lookup and the read: a miss like any other.
                    self.tally.failed_gets += 1
                    return first + i
                if self._buffers[i][:size] != payload(ids[first + i], self.block_bytes):
                    self.tally.wrong_bytes += 1
        return present

    def _put_missing(self, ids: Sequence[int], keys: Sequence[str], hits: int) -> None:
        for first in range(hits, len(keys), self._batch):
            last = min(first + self._batch, len(keys))
            buffers = [payload(block, self.block_bytes) for block in ids[first:last]]
            start = monotonic_ns()
            statuses = self._store.batch_put(
                keys[first:last], buffers, parent=keys[first - 1] if first else None
            )
            self.tally.put_ns.append(monotonic_ns() - start)
            for one, status in zip(keys[first:last], statuses, strict=True):
                if status is Status.Ok:
                    self.put_keys.add(one)
                name = status.name
                self.tally.put_statuses[name] = self.tally.put_statuses.get(name, 0) + 1
                self.tally.put_blocks += status is Status.Ok
