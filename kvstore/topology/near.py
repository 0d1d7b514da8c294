"""Which RDMA ports a process's memory should use: those on its own NUMA node."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from kvstore.topology import labels, nics, numa, sysfs
from kvstore.topology.nics import Nic


def ports(
    sys: Path = sysfs.SYS, proc: Path = sysfs.PROC, cpus: Collection[int] | None = None
) -> list[str]:
    """Name the active ports on the NUMA node whose memory this process uses.

    Args:
        sys: where sysfs is mounted.
        proc: where procfs is mounted.
        cpus: processors that this process may use; None: asked of the kernel.

    Returns:
        As UCX names them: "mlx5_0:1". Empty where there is nothing to choose: the process is bound
        to no node, no NIC or every NIC is on it, or other NICs lead to fabrics that these do not.
    """
    node = numa.of_process(sys, proc, cpus)
    active = [nic for nic in nics.read(sys) if nic.active]
    near = [nic for nic in active if nic.place.numa_node == node]
    if node is None or len(near) in (0, len(active)):
        return []
    if _fabrics(near, proc) != _fabrics(active, proc):
        return []
    return [port.name for nic in near for port in nic.ports if port.active]


def _fabrics(active: Iterable[Nic], proc: Path) -> set[str]:
    """Name what the active ports lead to; one that cannot be told is a fabric of its own."""
    ports = [port for nic in active for port in nic.ports if port.active]
    return {labels.fabric(port, proc) or port.name for port in ports}
