"""DeviceMemory: a KV cache on a GPU, staged in pinned host memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvstore.client.store import Store
from kvstore.errors import KvstoreError, Status
from kvstore.integrations.guard import Guard
from kvstore.integrations.vllm.pages import Region


@dataclass(frozen=True)
class _Part:
    """The rows of one group, contiguous in the staging memory."""

    group: int
    rows: list[int]
    ids: list[int]
    offset: int
    bytes: int


class DeviceMemory:
    """A KV cache on a GPU.

    Each thread has its own stream and staging memory. A put gathers the blocks on the device, so
    that one copy moves them to the host; a get scatters them there.
    """

    def __init__(
        self,
        regions: Mapping[int, Sequence[Region]],
        layout: str,
        caches: Sequence[Any],
        blocks: int,
        device: Any,
    ) -> None:
        """View each region as rows of bytes, one row per block.

        Args:
            regions: of each group.
            layout: as in `Memory`.
            caches: the layers' tensors; regions lie in their storages.
            blocks: rows of each region.
            device: a CUDA device (or "cpu", without streams, for tests of this class).

        Raises:
            ValueError: The device is of another kind.
        """
        import torch

        if device.type not in ("cuda", "cpu"):
            raise ValueError(f"unsupported KV cache on a device of type {device.type!r}")
        self.layout = layout
        self._torch = torch
        self._device = device
        self._sizes = {group: sum(one.size for one in of) for group, of in regions.items()}
        storages = [cache.untyped_storage() for cache in caches if hasattr(cache, "data_ptr")]
        self._regions = {
            group: [_rows(torch, storages, region, blocks, device) for region in of]
            for group, of in regions.items()
        }
        self._lane = threading.local()

    def block_bytes(self, group: int) -> int:
        """Return the size of a block's object."""
        return self._sizes[group]

    def register(self, store: Store, guard: Guard) -> None:
        """Do nothing: the staging memory is registered when it is made."""

    def mark(self) -> Any:
        """Record an event on the stream that the engine computes on."""
        if self._device.type != "cuda":
            return None
        event = self._torch.cuda.Event()
        event.record(self._torch.cuda.current_stream(self._device))
        return event

    def put(
        self,
        store: Store,
        keys: Sequence[str],
        groups: Sequence[int],
        ids: Sequence[int],
        *,
        parent: str | None,
        replicas: int,
        after: Any,
    ) -> list[Status]:
        """Store blocks, one object each."""
        parts, pointers, sizes, staging = self._staged(store, groups, ids)
        with self._stream(after):
            for part in parts:
                rows = self._index(part.ids)
                gathered = [region.index_select(0, rows) for region in self._regions[part.group]]
                flat = self._torch.cat(gathered, dim=1).view(-1)
                staging[part.offset : part.offset + part.bytes].copy_(flat, non_blocking=True)
        return store.batch_put_from(keys, pointers, sizes, parent=parent, replicas=replicas)

    def get(
        self, store: Store, keys: Sequence[str], groups: Sequence[int], ids: Sequence[int]
    ) -> list[int]:
        """Fill blocks from their objects; a block whose read failed gets undefined bytes."""
        parts, pointers, sizes, staging = self._staged(store, groups, ids)
        found = store.batch_get_into_pointers(keys, pointers, sizes)
        with self._stream(None):
            for part in parts:
                rows = self._index(part.ids)
                flat = staging[part.offset : part.offset + part.bytes]
                there = flat.to(self._device, non_blocking=True).view(len(part.rows), -1)
                start = 0
                for region in self._regions[part.group]:
                    size = region.shape[1]
                    region.index_copy_(0, rows, there[:, start : start + size])
                    start += size
        return found

    def _staged(
        self, store: Store, groups: Sequence[int], ids: Sequence[int]
    ) -> tuple[list[_Part], list[int], list[int], Any]:
        """Assign each row its place in this thread's staging memory, group by group."""
        parts: list[_Part] = []
        places = [0] * len(ids)
        used = 0
        for group in dict.fromkeys(groups):
            rows = [row for row, one in enumerate(groups) if one == group]
            size = self._sizes[group]
            for count, row in enumerate(rows):
                places[row] = used + count * size
            of_group = [ids[row] for row in rows]
            parts.append(_Part(group, rows, of_group, used, len(rows) * size))
            used += len(rows) * size
        staging = getattr(self._lane, "staging", None)
        if staging is None or staging.numel() < used:
            staging = self._grown(store, used)
        base = staging.data_ptr()
        sizes = [self._sizes[group] for group in groups]
        return parts, [base + place for place in places], sizes, staging

    def _grown(self, store: Store, used: int) -> Any:
        """Replace this thread's staging memory by more, and register it for RDMA."""
        before = getattr(self._lane, "registration", None)
        if before is not None:
            before.release()
        pinned = self._device.type == "cuda"
        staging = self._torch.empty(used, dtype=self._torch.uint8, pin_memory=pinned)
        self._lane.staging, self._lane.registration = staging, None
        with contextlib.suppress(KvstoreError):  # then the bytes are copied once more
            self._lane.registration = store.register(staging.data_ptr(), staging.numel())
        return staging

    def _index(self, ids: Sequence[int]) -> Any:
        return self._torch.tensor(ids, dtype=self._torch.long, device=self._device)

    @contextlib.contextmanager
    def _stream(self, after: Any) -> Iterator[None]:
        """Run on this thread's stream, after an event; all work has finished when it returns."""
        if self._device.type != "cuda":
            yield
            return
        cuda = self._torch.cuda
        stream = getattr(self._lane, "stream", None)
        if stream is None:
            stream = self._lane.stream = cuda.Stream(self._device)
        with cuda.device(self._device), cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            try:
                yield
            finally:
                stream.synchronize()


def _rows(torch: Any, storages: Sequence[Any], region: Region, blocks: int, device: Any) -> Any:
    """View a region as uint8[blocks, size] within its storage."""
    for storage in storages:
        offset = region.address - storage.data_ptr()
        if 0 <= offset < storage.nbytes():
            whole = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
            return whole.as_strided((blocks, region.size), (region.stride, 1), offset)
    raise ValueError("a layer's tensor has no storage")
