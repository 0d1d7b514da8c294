"""Value types of Mooncake's Python interface: configuration, descriptors, tasks, enums."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from kvstore.client.answers import MAX_REPLICAS, PinLevel


class ObjectDataType(IntEnum):
    """Kind of an object; kvstore treats all kinds alike."""

    UNKNOWN = 0
    KVCACHE = 1
    TENSOR = 2
    WEIGHT = 3
    SAMPLE = 4
    ACTIVATION = 5
    GRADIENT = 6
    OPTIMIZER_STATE = 7
    METADATA = 8
    GENERAL = 9


class SoftPinAction(IntEnum):
    """Effect of a put on the soft pin."""

    PRESERVE = 0
    ENABLE = 1
    DISABLE = 2


class ReplicaStatus(IntEnum):
    """State of a replica; always COMPLETE in kvstore."""

    UNDEFINED = 0
    INITIALIZED = 1
    PROCESSING = 2
    COMPLETE = 3
    REMOVED = 4
    FAILED = 5


class TaskType(IntEnum):
    """Kind of a task."""

    REPLICA_COPY = 0
    REPLICA_MOVE = 1


class TaskStatus(IntEnum):
    """Progress of a task."""

    PENDING = 0
    PROCESSING = 1
    FAILED = 2
    SUCCESS = 3


@dataclass(slots=True)
class ReplicateConfig:
    """Storage options of an object.

    Carried over: `replica_num`, `with_soft_pin` (also as `soft_pin_action`) and `with_hard_pin`.
    Accepted without effect: preferred segments (placement is the cluster's policy), groups,
    sessions and data types.
    """

    replica_num: int = 1
    with_soft_pin: bool = False
    with_hard_pin: bool = False
    preferred_segment: str = ""
    preferred_segments: list[str] = field(default_factory=list)
    prefer_alloc_in_same_node: bool | str = False
    data_type: ObjectDataType = ObjectDataType.UNKNOWN
    group_ids: list[str] | None = None
    session_ids: list[str] | None = None
    soft_pin_action: SoftPinAction = SoftPinAction.PRESERVE
    soft_pin_ttl_ms: int | None = None
    nof_replica_num: int = 0
    dfs_replica_num: int = 0
    preferred_nof_segments: list[str] = field(default_factory=list)

    @property
    def replicas(self) -> int:
        """Number of nodes that hold the object, within kvstore's limits."""
        return min(max(int(self.replica_num), 1), MAX_REPLICAS)

    @property
    def pin(self) -> PinLevel | None:
        """The requested pin."""
        if self.with_hard_pin:
            return "hard"
        soft = self.with_soft_pin or self.soft_pin_action == SoftPinAction.ENABLE
        return "soft" if soft else None


@dataclass(frozen=True, slots=True)
class BufferDescriptor:
    """Location of a replica in memory: the node's name. Addresses are meaningless elsewhere."""

    size: int
    transport_endpoint: str
    buffer_address: int = 0

    @property
    def size_(self) -> int:
        """The size, by its older name."""
        return self.size

    @property
    def transport_endpoint_(self) -> str:
        """The node, by its older name."""
        return self.transport_endpoint


@dataclass(frozen=True, slots=True)
class MemoryDescriptor:
    """A replica in memory."""

    buffer_descriptor: BufferDescriptor


@dataclass(frozen=True, slots=True)
class DiskDescriptor:
    """A replica on NVMe; its "path" is the node's name."""

    file_path: str
    object_size: int


@dataclass(frozen=True, slots=True)
class ReplicaDescriptor:
    """One replica of an object."""

    node_id: str
    tier: str
    size: int
    status: ReplicaStatus = ReplicaStatus.COMPLETE

    def is_memory_replica(self) -> bool:
        """Whether it is in memory."""
        return self.tier == "dram"

    def is_disk_replica(self) -> bool:
        """Whether it is a file that every client reads itself; kvstore has none."""
        return False

    def is_local_disk_replica(self) -> bool:
        """Whether it is on its node's NVMe."""
        return self.tier == "nvme"

    def get_memory_descriptor(self) -> MemoryDescriptor:
        """Return its location.

        Raises:
            RuntimeError: It is not in memory.
        """
        if not self.is_memory_replica():
            raise RuntimeError(f"the replica on {self.node_id} is not in memory")
        return MemoryDescriptor(BufferDescriptor(self.size, self.node_id))

    def get_disk_descriptor(self) -> DiskDescriptor:
        """Return its location.

        Raises:
            RuntimeError: It is not on NVMe.
        """
        if not self.is_local_disk_replica():
            raise RuntimeError(f"the replica on {self.node_id} is not on NVMe")
        return DiskDescriptor(self.node_id, self.size)


@dataclass(slots=True)
class QueryTaskResponse:
    """State of a task."""

    id: tuple[int, int] = (0, 0)
    type: TaskType = TaskType.REPLICA_COPY
    status: TaskStatus = TaskStatus.PENDING
    created_at_ms_epoch: int = 0
    last_updated_at_ms_epoch: int = 0
    assigned_client: tuple[int, int] = (0, 0)
    message: str = ""


@dataclass(slots=True)
class ParallelAxis:
    """One axis of a shard's identity."""

    kind: str = "tp"
    rank: int = 0
    size: int = 1
    split_dim: int | None = None
    expert_id: int | None = None
    stage_id: int | None = None


@dataclass(slots=True)
class TensorParallelism:
    """Identity of a shard: an ordered list of axes."""

    axes: list[ParallelAxis] = field(default_factory=list)


@dataclass(slots=True)
class ReadTarget:
    """Requested form of a tensor: "as_stored", one "shard", or the "full" tensor."""

    mode: str = "as_stored"
    parallelism: TensorParallelism | None = None


def enum_members() -> dict[str, Any]:
    """Return the members of the enums by their bare names, as `mooncake.store` exports them."""
    kinds = (ObjectDataType, ReplicaStatus, TaskStatus, TaskType)
    return {member.name: member for kind in kinds for member in kind}
