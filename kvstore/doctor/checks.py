"""The list of all checks, by subject and in the order of the report."""

from __future__ import annotations

from kvstore.doctor import (
    clocks,
    cluster,
    gpu,
    memory,
    network,
    rdma,
    rdma_transfer,
    transfers,
    ucx,
)
from kvstore.doctor.cluster import Cluster
from kvstore.doctor.host import Host
from kvstore.doctor.runner import Check

HOST: dict[str, tuple[Check[Host], ...]] = {
    "memory": (
        Check("memlock", "limit of locked memory", memory.memlock),
        Check("shm", "size and mount options of the segment's folder", memory.shared_memory),
        Check("swap", "swap space under tmpfs", memory.swap),
        Check("hugepages", "huge pages for large segments", memory.huge_pages),
        Check("numa", "NUMA nodes and page migration", memory.numa),
    ),
    "network": (
        Check("congestion", "TCP's congestion control", network.congestion),
        Check("buffers", "TCP's largest buffers", network.socket_buffers),
        Check("ipv6", "IPv6, where configured", network.ipv6),
        Check("files", "limit of open files", network.open_files),
        Check("reserved", "servers' ports in the range of outgoing ones", network.ephemeral_ports),
        Check("taken", "configured ports held by other programs", network.taken_ports),
    ),
    "clock": (
        Check("clock", "synchronization of the wall clock", clocks.wall_clock),
        Check("boottime", "sanity of CLOCK_BOOTTIME", clocks.boot_clock),
    ),
    "rdma": (
        Check("nics", "RDMA NICs, drivers, device files", rdma.nics),
        Check("ports", "state and speed of ports", rdma.ports),
        Check("gids", "best GID of each port", rdma.gids),
        Check("mtu", "MTU of RoCE ports", rdma.mtu),
        Check("bonds", "bonds and their members", rdma.bonds),
        Check("ecn", "congestion control of RoCE", rdma.roce_congestion),
    ),
    "gpu": (
        Check("cuda", "driver and devices", gpu.driver),
        Check("kernels", "CuPy, which compiles kernels", gpu.kernels),
        Check("gpudirect", "nvidia_peermem or dma-buf", gpu.direct),
        Check("distance", "PCIe distance of GPUs and NICs", gpu.distance),
    ),
    "ucx": (Check("ucx", "library, version, transports, verbs providers", ucx.library),),
}
RDMA_TRANSFERS: Check[Host] = Check(
    "rdma", "with --rdma: RC write and read between ports", rdma_transfer.transfers
)
CLUSTER: tuple[Check[Cluster], ...] = (
    Check("master", "block port, gRPC and HTTP of the master", cluster.master),
    Check("token", "whether the token is accepted", cluster.token),
    Check("nodes", "state of nodes, whether their ports answer", cluster.nodes),
    Check("versions", "versions of client, master and nodes", cluster.versions),
    Check("clocks", "clocks of the servers", cluster.clocks),
    Check("tls", "how long the servers' certificates are valid", cluster.certificates),
    Check("paths", "shared memory or TCP to each node, and why", cluster.paths),
    Check("roundtrip", "put, get and remove of a small object", transfers.round_trip),
)
MEASURE: Check[Cluster] = Check(
    "measure", "with --measure: bandwidth and latency of each node", transfers.measure
)
SUBJECTS = (*HOST, "cluster")


def overview() -> str:
    """Return the checks of each subject, a line each, for the help."""
    by_subject: dict[str, list[tuple[str, str]]] = {
        subject: [(check.name, check.about) for check in checks] for subject, checks in HOST.items()
    }
    by_subject["rdma"].append((RDMA_TRANSFERS.name, RDMA_TRANSFERS.about))
    by_subject["cluster"] = [(check.name, check.about) for check in (*CLUSTER, MEASURE)]
    return "\n".join(
        f"  {subject + ':':<10}{name:<11}{about}"
        for subject, checks in by_subject.items()
        for name, about in checks
    )
