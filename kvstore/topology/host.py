"""Topology: what a host has, and which NIC is nearest to a GPU or a NUMA node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvstore.topology import gpus, nics, numa, sysfs
from kvstore.topology.gpus import Gpu
from kvstore.topology.nics import Bond, Nic, Port
from kvstore.topology.pci import Distance, distance


@dataclass(frozen=True)
class Topology:
    """Devices of a host and their places."""

    numa_nodes: tuple[int, ...]
    """Those that are online; empty: not known."""
    nics: tuple[Nic, ...]
    gpus: tuple[Gpu, ...]
    bonds: tuple[Bond, ...]

    def active_ports(self) -> list[Port]:
        """All ports that carry traffic, by NIC and number."""
        return [port for nic in self.nics for port in nic.ports if port.active]

    def distance(self, gpu: Gpu, nic: Nic) -> Distance:
        """Tell how far a NIC is from a GPU."""
        return distance(gpu.place, nic.place, self.numa_nodes)

    def nearest_nics(self, gpu: Gpu) -> list[Nic]:
        """List the active NICs at the shortest distance from a GPU, the fastest first."""
        usable = [nic for nic in self.nics if nic.active]
        least = min((self.distance(gpu, nic) for nic in usable), default=None)
        near = [nic for nic in usable if self.distance(gpu, nic) == least]
        return sorted(near, key=lambda nic: -nic.rate_gbps)  # stable: then by name

    def nearest_nic(self, gpu: Gpu) -> Nic | None:
        """Choose a GPU's NIC: GPUs with the same choice are spread over it.

        Args:
            gpu: one of this host's.

        Returns:
            The NIC; None when no port is active.
        """
        near = self.nearest_nics(gpu)
        if not near:
            return None
        fastest = [nic for nic in near if nic.rate_gbps == near[0].rate_gbps]
        rivals = [other for other in self.gpus if self.nearest_nics(other) == near]
        return fastest[rivals.index(gpu) % len(fastest)]

    def nics_of_numa_node(self, node: int) -> list[Nic]:
        """List the active NICs nearest to a NUMA node, the fastest first.

        Those of the node itself; where it has none, those of an unknown one; else all others.
        """
        usable = sorted((nic for nic in self.nics if nic.active), key=lambda nic: -nic.rate_gbps)
        own = [nic for nic in usable if nic.place.numa_node == node]
        unknown = [nic for nic in usable if nic.place.numa_node is None]
        return own or unknown or usable


def read(sys: Path = sysfs.SYS) -> Topology:
    """Read a host's topology.

    Args:
        sys: where sysfs is mounted.
    """
    return Topology(numa.online(sys), nics.read(sys), gpus.read(sys), nics.read_bonds(sys))
