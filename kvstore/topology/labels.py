"""Placement labels that follow from a host's topology: `numa` and `rdma_domain`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from pathlib import Path
from sys import byteorder

from kvstore.limits import is_valid_name
from kvstore.topology import nics, numa, sysfs
from kvstore.topology.nics import Port

NUMA = "numa"
RDMA_DOMAIN = "rdma_domain"

_MAX_ROUTES_BYTES = 256 << 10
_GATEWAY = 0x2  # RTF_GATEWAY
_MOST_SPECIFIC = 30  # a longer prefix is a link between two ports, which no other host shares


def found(
    sys: Path = sysfs.SYS, proc: Path = sysfs.PROC, cpus: Collection[int] | None = None
) -> dict[str, str]:
    """Find the labels of this process's host.

    Args:
        sys: where sysfs is mounted.
        proc: where procfs is mounted.
        cpus: processors that this process may use; None: asked of the kernel.

    Returns:
        `numa`, if the process is bound to one NUMA node or the host has only one; `rdma_domain`,
        the fabric of its active RDMA ports, if it can be told. A label that is not known is
        missing.
    """
    node = numa.of_process(sys, proc, cpus)
    labels = {NUMA: "" if node is None else str(node), RDMA_DOMAIN: rdma_domain(sys, proc)}
    return {name: value for name, value in labels.items() if value and is_valid_name(value)}


def rdma_domain(sys: Path = sysfs.SYS, proc: Path = sysfs.PROC) -> str:
    """Name the fabric of the active ports; InfiniBand before RoCE, which is often for storage."""
    ports = [port for nic in nics.read(sys) for port in nic.ports if port.active]
    for layer in ("InfiniBand", "Ethernet"):
        fabrics = {fabric(port, proc) for port in ports if port.link_layer == layer} - {""}
        if fabrics:
            return "+".join(sorted(fabrics))  # one per rail
    return ""


def fabric(port: Port, proc: Path = sysfs.PROC) -> str:
    """Name what a port is connected to.

    Args:
        port: of an RDMA NIC.
        proc: where procfs is mounted.

    Returns:
        "ib:<subnet prefix>" or "roce:<IPv4 network>"; empty when it cannot be told.
    """
    if port.gid is None:
        return ""
    if port.link_layer == "InfiniBand":
        return f"ib:{int(port.gid.address) >> 64:016x}"
    return _network(port, sysfs.lines(proc / "net" / "route", _MAX_ROUTES_BYTES))


def _network(port: Port, routes: str) -> str:
    """IPv4 network of a port's GID, by the kernel's routes; empty when it has none."""
    address = port.gid.ipv4 if port.gid else None
    if address is None or port.gid is None:
        return ""
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[0] != port.gid.netdev:
            continue
        words = [fields[1], fields[3], fields[7]]
        if not all(re.fullmatch("[0-9A-F]{4,8}", word) for word in words):
            continue
        destination, flags, mask = (int(word, 16) for word in words)
        network = _network_of(destination, mask)
        if network is not None and not flags & _GATEWAY and address in network:
            return f"roce:{network}" if network.prefixlen <= _MOST_SPECIFIC else ""
    return ""


def _network_of(destination: int, mask: int) -> ipaddress.IPv4Network | None:
    """Read two words of /proc/net/route, which are in the byte order of the host."""
    length = mask.bit_count()
    words = [ipaddress.IPv4Address(word.to_bytes(4, byteorder)) for word in (destination, mask)]
    try:
        network = ipaddress.IPv4Network((words[0], str(words[1])))
    except ValueError:
        return None
    return network if network.prefixlen == length and length else None
