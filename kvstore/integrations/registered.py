"""An engine's own memory, registered with its store: by RDMA its pages then move without a copy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvstore.client.device_buffers import MemoryKind
from kvstore.client.store import Store
from kvstore.errors import KvstoreError
from kvstore.integrations.guard import Guard

Span = tuple[int, int]
"""Address and size in bytes."""


def register(store: Store, guard: Guard, memory: Iterable[Span], kind: MemoryKind = "host") -> None:
    """Register memory until the store is closed; what is refused is copied as before.

    Args:
        store: that moves bytes to and from it.
        guard: counts and reports what is refused.
        memory: of the engine; memory that overlaps other memory is registered with it.
        kind: of that memory: "host", or "cuda" for one CUDA device.
    """
    for address, size in merged(memory):
        try:
            store.register(address, size, kind=kind)
        except KvstoreError as error:
            guard.count("register_failures")
            guard.say("register", f"memory is not registered for RDMA: {error}")


def merged(memory: Iterable[Span]) -> list[Span]:
    """Return the same memory in as few spans as possible, in the order of addresses."""
    out: list[Span] = []
    for address, size in sorted(span for span in memory if span[1] > 0):
        if out and address <= sum(out[-1]):
            first, before = out[-1]
            out[-1] = (first, max(before, address + size - first))
        else:
            out.append((address, size))
    return out


def memory_of_tensors(tensors: Iterable[Any]) -> list[Span]:
    """Return the memory of those tensors that lie in host memory; others have none."""
    return [
        (int(one.data_ptr()), int(one.nbytes))
        for one in tensors
        if hasattr(one, "data_ptr") and not getattr(one, "is_cuda", False)
    ]
