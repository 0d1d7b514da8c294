"""Memory: moves whole blocks between vLLM's KV cache and the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvstore.client.store import Store
from kvstore.errors import Status
from kvstore.integrations.guard import Guard
from kvstore.integrations.registered import register
from kvstore.integrations.vllm.device_memory import DeviceMemory
from kvstore.integrations.vllm.gpu_memory import GpuMemory, TorchStreams
from kvstore.integrations.vllm.pages import Region, joined, layout_of, regions_of, spans

CALL_BYTES = 64 << 20  # per call of the store, whose deadline is short


class Memory(Protocol):
    """The KV cache of one worker, by group and block."""

    layout: str
    """Byte order of a block; engines with equal layouts share objects."""

    def block_bytes(self, group: int) -> int:
        """Return the size of a block's object."""

    def register(self, store: Store, guard: Guard) -> None:
        """Register what it reads and writes with a store, once."""

    def mark(self) -> Any:
        """Mark the work submitted to the device so far, for `put`; for the engine's thread."""

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
        """Store blocks as they are after that mark, one object each; at most CALL_BYTES."""

    def get(
        self, store: Store, keys: Sequence[str], groups: Sequence[int], ids: Sequence[int]
    ) -> list[int]:
        """Fill blocks from their objects, at most CALL_BYTES; returns as `batch_get_into`."""


def memory_of(
    caches: Mapping[str, Any], groups: Mapping[int, Sequence[str]], blocks: int
) -> HostMemory | GpuMemory | DeviceMemory:
    """Describe a worker's KV cache.

    Args:
        caches: each layer's tensor, blocks first.
        groups: layer names of each stored group.
        blocks: number of blocks of the KV cache.

    Returns:
        HostMemory for host memory and GpuMemory for a GPU of NVIDIA, which are used in place;
        DeviceMemory, with staging, otherwise.

    Raises:
        ValueError: A group has no layer here, a layer has no single tensor, or the tensor does not
            consist of blocks.
    """
    regions: dict[int, list[Region]] = {}
    layout: list[str] = []
    device: Any = None
    for group, layers in groups.items():
        if not layers:  # a pipeline stage without layers of one of a hybrid model's kinds
            raise ValueError(f"group {group} has no layer here")
        of_group: list[Region] = []
        for layer in layers:
            cache: Any = caches.get(layer)
            if not hasattr(cache, "data_ptr"):
                raise ValueError(f"layer {layer} has no single tensor")
            shape, strides, size = cache.shape, cache.stride(), cache.element_size()
            device = cache.device if device is None else device
            layout.append(f"{group} {layer} {layout_of(shape, strides, str(cache.dtype), blocks)}")
            found = regions_of(cache.data_ptr(), shape, strides, size, blocks)
            of_group += [region for region in found if region not in of_group]
        regions[group] = joined(of_group)
    text = "\n".join(layout)
    if device is None or device.type == "cpu":
        return HostMemory(regions, text, blocks)
    if device.type == "cuda" and _is_nvidia():
        return GpuMemory(regions, text, blocks, TorchStreams(device))
    return DeviceMemory(regions, text, list(caches.values()), blocks, device)


def _is_nvidia() -> bool:
    import torch

    return torch.version.cuda is not None  # PyTorch for ROCm says "cuda", too


class HostMemory:
    """A KV cache in host memory: the store copies from and to its blocks directly."""

    def __init__(self, regions: Mapping[int, Sequence[Region]], layout: str, blocks: int) -> None:
        """Use the regions of each group, which have this many blocks."""
        self.layout = layout
        self._blocks = blocks
        self._regions = regions
        self._sizes = {group: [one.size for one in of] for group, of in regions.items()}

    def block_bytes(self, group: int) -> int:
        """Return the size of a block's object."""
        return sum(self._sizes[group])

    def register(self, store: Store, guard: Guard) -> None:
        """Register the memory of all blocks."""
        register(store, guard, spans(self._regions, self._blocks))

    def mark(self) -> None:
        """Do nothing: on a CPU the forward pass has finished when it returns."""

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
        pointers, sizes = self._places(groups, ids)
        return store.batch_put_from(keys, pointers, sizes, parent=parent, replicas=replicas)

    def get(
        self, store: Store, keys: Sequence[str], groups: Sequence[int], ids: Sequence[int]
    ) -> list[int]:
        """Fill blocks from their objects."""
        pointers, sizes = self._places(groups, ids)
        return store.batch_get_into_pointers(keys, pointers, sizes)

    def _places(
        self, groups: Sequence[int], ids: Sequence[int]
    ) -> tuple[list[list[int]], list[list[int]]]:
        pointers = [
            [region.address + block * region.stride for region in self._regions[group]]
            for group, block in zip(groups, ids, strict=True)
        ]
        return pointers, [self._sizes[group] for group in groups]
