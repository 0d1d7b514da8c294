"""Moves blocks of torch tensors through an embedded store, by addresses and by staging memory.

Run in vLLM's environment: `HostMemory` and `DeviceMemory` (on a CPU here, without streams; on the
GPU where there is one) write and read each other's objects. Prints "ok" as the last line.
"""

from __future__ import annotations

import torch

import kvstore
from kvstore.integrations.vllm.device_memory import DeviceMemory
from kvstore.integrations.vllm.gpu_memory import GpuMemory
from kvstore.integrations.vllm.memory import HostMemory, Memory, memory_of

BLOCKS, HEADS, TOKENS, HEAD = 10, 2, 8, 16
GROUPS = {0: ["a", "b"], 1: ["c"]}


def caches_of(seed: int, device: str) -> dict[str, torch.Tensor]:
    """Two layers interleaved in one storage with tokens before heads, and one that lies apart."""
    generator = torch.Generator().manual_seed(seed)
    together = torch.randn((BLOCKS, 2, TOKENS, HEADS, HEAD), generator=generator).to(device)
    apart = torch.randn((2, HEADS, BLOCKS, TOKENS, HEAD), generator=generator).to(device)
    return {
        "a": together[:, 0].transpose(1, 2),
        "b": together[:, 1].transpose(1, 2),
        "c": apart[1].transpose(0, 1),  # each head's blocks lie together: two regions a block
    }


def memories(device: str) -> list[tuple[dict[str, torch.Tensor], Memory]]:
    host, staged = caches_of(1, "cpu"), caches_of(2, device)
    by_address = memory_of(host, GROUPS, BLOCKS)
    assert isinstance(by_address, HostMemory)
    if device == "cpu":
        regions = memory_of(staged, GROUPS, BLOCKS)._regions
        kind = torch.device(device)
        by_staging: Memory = DeviceMemory(
            regions, by_address.layout, list(staged.values()), BLOCKS, kind
        )
    else:
        found = memory_of(staged, GROUPS, BLOCKS)
        assert isinstance(found, GpuMemory)
        by_staging = found
    assert by_staging.layout == by_address.layout
    return [(host, by_address), (staged, by_staging)]


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    both = memories(device)
    groups, there, here = [0, 1, 0], [3, 4, 9], [1, 7, 2]
    layers = [name for group in groups for name in GROUPS[group]]
    with kvstore.open(segment_size="64mb") as store:
        for number, (writer, reader) in enumerate([both, both[::-1]]):
            (from_caches, source), (to_caches, target) = writer, reader
            keys = [f"{number}/{block}" for block in there]
            kept = {name: cache.clone() for name, cache in to_caches.items()}
            after = source.mark()
            statuses = source.put(store, keys, groups, there, parent=None, replicas=1, after=after)
            assert statuses == [kvstore.Status.Ok] * 3, statuses
            sizes = target.get(store, keys, groups, here)
            assert sizes == [target.block_bytes(group) for group in groups], sizes
            for group, old, new in zip(groups, there, here, strict=True):
                for name in GROUPS[group]:
                    assert torch.equal(to_caches[name][new].cpu(), from_caches[name][old].cpu())
                    kept[name][new] = to_caches[name][new]
            assert all(torch.equal(kept[name], to_caches[name]) for name in layers)
    print(f"ok on {device}", flush=True)


if __name__ == "__main__":
    main()
