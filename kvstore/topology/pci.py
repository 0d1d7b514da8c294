"""Places in the PCI tree, and how far two of them are from each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from kvstore.topology import sysfs

_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Distance(IntEnum):
    """How far two devices are from each other; a lower one is nearer.

    Source: the legend of `nvidia-smi topo -m`.
    """

    PIX = 1
    """Below one PCIe switch."""
    PXB = 2
    """Across several PCIe switches, without the host bridge."""
    PHB = 3
    """Across a PCIe host bridge."""
    NODE = 4
    """Across host bridges of one NUMA node."""
    SYS = 5
    """Across NUMA nodes, by the interconnect of the sockets."""


@dataclass(frozen=True)
class Place:
    """Where a device is in the PCI tree."""

    root: str
    """Root complex, as pci0000:00; empty for a device that is not on PCI."""
    bridges: tuple[str, ...] = ()
    """Addresses of root port and switch ports above it, the topmost first."""
    address: str = ""
    """Its own, as 0000:3b:00.0."""
    numa_node: int | None = None
    """None: not known."""


def place(device: Path) -> Place:
    """Find a device in the PCI tree.

    Args:
        device: its folder in sysfs, or a link to it.

    Returns:
        The place; one without a root for a device that is not on PCI, or not known.
    """
    folder = sysfs.resolved(device)
    numa = numa_of(device)
    parts = folder.parts if folder else ()
    start = next((i for i, part in enumerate(parts) if _ROOT.fullmatch(part)), None)
    if start is None:
        return Place("", numa_node=numa)
    chain = []
    for part in parts[start + 1 :]:
        if not _ADDRESS.fullmatch(part):
            break
        chain.append(part)
    if not chain:
        return Place("", numa_node=numa)
    return Place(parts[start], tuple(chain[:-1]), chain[-1], numa)


def numa_of(device: Path) -> int | None:
    """Read a device's NUMA node; None where the firmware does not tell (-1)."""
    found = sysfs.whole(device / "numa_node")
    return found if found is not None and found >= 0 else None


def distance(one: Place, other: Place, numa_nodes: Sequence[int]) -> Distance:
    """Tell how far two devices are from each other.

    Args:
        one: place of the first.
        other: place of the second.
        numa_nodes: those of the host; on a host with one, an unknown NUMA node is that one.

    Returns:
        The distance. SYS when a NUMA node is unknown on a host with several: nothing better is
        proven.
    """
    if one.root and one.root == other.root:
        common = _common(one.bridges, other.bridges)
        if common == 0:
            return Distance.PHB
        # Below one switch, each side has at most the switch's downstream port to itself.
        left, right = len(one.bridges) - common, len(other.bridges) - common
        return Distance.PIX if left <= 1 and right <= 1 else Distance.PXB
    if len(numa_nodes) <= 1:
        return Distance.NODE
    known = one.numa_node is not None and one.numa_node == other.numa_node
    return Distance.NODE if known else Distance.SYS


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for mine, its in zip(one, other, strict=False):
        if mine != its:
            break
        count += 1
    return count
