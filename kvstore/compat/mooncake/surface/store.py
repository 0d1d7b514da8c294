"""mooncake.store, as kvstore offers it."""

import os as _os

from kvstore.compat.mooncake.memory import BufferHandle, MooncakeHostMemAllocator
from kvstore.compat.mooncake.store import MooncakeDistributedStore
from kvstore.compat.mooncake.tensors import metadata_size as _tensor_metadata_size
from kvstore.compat.mooncake.values import (
    BufferDescriptor as Descriptor,
)
from kvstore.compat.mooncake.values import (
    DiskDescriptor,
    MemoryDescriptor,
    ObjectDataType,
    ParallelAxis,
    QueryTaskResponse,
    ReadTarget,
    ReplicaDescriptor,
    ReplicaStatus,
    ReplicateConfig,
    SoftPinAction,
    TaskStatus,
    TaskType,
    TensorParallelism,
    enum_members,
)


def bind_to_numa_node(node: int) -> None:
    """Run this thread on the processors of a NUMA node.

    Args:
        node: its number; one that this machine does not have changes nothing. Memory follows: the
            kernel takes it where the thread runs.
    """
    try:
        with open(f"/sys/devices/system/node/node{int(node)}/cpulist") as file:
            listed = file.read().strip()
        cpus: set[int] = set()
        for part in filter(None, listed.split(",")):
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
        _os.sched_setaffinity(0, cpus & _os.sched_getaffinity(0) or cpus)
    except (OSError, ValueError):
        return


globals().update(enum_members())

__all__ = [
    "BufferHandle",
    "Descriptor",
    "DiskDescriptor",
    "MemoryDescriptor",
    "MooncakeDistributedStore",
    "MooncakeHostMemAllocator",
    "ObjectDataType",
    "ParallelAxis",
    "QueryTaskResponse",
    "ReadTarget",
    "ReplicaDescriptor",
    "ReplicaStatus",
    "ReplicateConfig",
    "SoftPinAction",
    "TaskStatus",
    "TaskType",
    "TensorParallelism",
    "_tensor_metadata_size",
    "bind_to_numa_node",
    *enum_members(),
]
