"""GpuMemory: a KV cache on an NVIDIA GPU, which the store copies from and to by itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvstore.client.page_pools import PagePool
from kvstore.client.store import Store
from kvstore.errors import Status
from kvstore.integrations.guard import Guard
from kvstore.integrations.registered import register
from kvstore.integrations.vllm.pages import Region, spans


class Streams(Protocol):
    """CUDA streams of the engine's device."""

    def mark(self) -> Any:
        """Record an event on the stream that the engine computes on."""

    def own(self, after: Any) -> int:
        """Return the handle of this thread's own stream, behind an event unless it is None."""


class TorchStreams:
    """Streams of PyTorch, one for each thread that moves blocks."""

    def __init__(self, device: Any) -> None:
        """Use a CUDA device."""
        import torch

        self._cuda = torch.cuda
        self._device = device
        self._lane = threading.local()

    def mark(self) -> Any:
        """Record an event on the engine's stream."""
        event = self._cuda.Event()
        event.record(self._cuda.current_stream(self._device))
        return event

    def own(self, after: Any) -> int:
        """Return this thread's stream, which is not one that the engine computes on."""
        stream = getattr(self._lane, "stream", None)
        if stream is None:
            stream = self._lane.stream = self._cuda.Stream(self._device)
        if after is not None:
            stream.wait_event(after)
        return int(stream.cuda_stream)


class GpuMemory:
    """A KV cache on a GPU: blocks of a node on this host are copied without passing the host.

    A group whose regions are alike is a pool of pages, which a kernel may move; others are lists of
    addresses.
    """

    def __init__(
        self,
        regions: Mapping[int, Sequence[Region]],
        layout: str,
        blocks: int,
        streams: Streams,
    ) -> None:
        """Use the regions of each group, which have `blocks` blocks."""
        self.layout = layout
        self._streams = streams
        self._regions = regions
        self._blocks = blocks
        self._pools = {group: _pool(of, blocks) for group, of in regions.items()}

    def block_bytes(self, group: int) -> int:
        """Return the size of a block's object."""
        return sum(region.size for region in self._regions[group])

    def register(self, store: Store, guard: Guard) -> None:
        """Register the memory of all blocks: RDMA then reads and writes the GPU's memory."""
        register(store, guard, spans(self._regions, self._blocks), "cuda")

    def mark(self) -> Any:
        """Record an event on the stream that the engine computes on."""
        return self._streams.mark()

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
        """Store blocks as they are after that event, one object each."""
        stream = self._streams.own(after)
        statuses = [Status.Internal] * len(keys)
        for group, rows in _rows(groups).items():
            names, blocks = [keys[row] for row in rows], [ids[row] for row in rows]
            pool = self._pools[group]
            if pool is not None:
                put = store.batch_put_from_pages(
                    names, pool, blocks, parent=parent, replicas=replicas, stream=stream
                )
            else:
                put = store.batch_put_from(
                    names,
                    *self._places(group, blocks),
                    parent=parent,
                    replicas=replicas,
                    memory="cuda",
                    stream=stream,
                )
            for row, status in zip(rows, put, strict=True):
                statuses[row] = status
        return statuses

    def get(
        self, store: Store, keys: Sequence[str], groups: Sequence[int], ids: Sequence[int]
    ) -> list[int]:
        """Fill blocks from their objects; a block whose read failed gets undefined bytes.

        It returns when nothing writes into the blocks any more, whatever the store's time-out.
        """
        stream = self._streams.own(None)
        transfers = []
        for group, rows in _rows(groups).items():
            names, blocks = [keys[row] for row in rows], [ids[row] for row in rows]
            pool = self._pools[group]
            if pool is not None:
                queued = store.batch_get_into_pages(names, pool, blocks, stream=stream)
            else:
                places, sizes = self._places(group, blocks)
                queued = store.batch_get_into_pointers(
                    names, places, sizes, memory="cuda", stream=stream
                )
            transfers.append((rows, queued))
        found = [int(Status.Internal)] * len(keys)
        for rows, transfer in transfers:
            for row, size in zip(rows, transfer.result(), strict=True):
                found[row] = size
        return found

    def _places(self, group: int, ids: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        regions = self._regions[group]
        sizes = [region.size for region in regions]
        return [[one.address + block * one.stride for one in regions] for block in ids], [
            sizes for _ in ids
        ]


def _pool(regions: Sequence[Region], blocks: int) -> PagePool | None:
    """Describe regions that are alike as the layers of a pool; None when they differ."""
    first = regions[0]
    if any((one.stride, one.size) != (first.stride, first.size) for one in regions):
        return None
    addresses = [one.address for one in regions]
    return PagePool(
        "layer_first",
        addresses,
        layers=len(regions),
        pages=blocks,
        page_tokens=1,
        token_bytes=first.size,
        parts=1,
        page_stride=first.stride,
    )


def _rows(groups: Sequence[int]) -> dict[int, list[int]]:
    """Return the rows of each group, in their order."""
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return rows
