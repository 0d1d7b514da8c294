"""Checks of RDMA: NICs, ports, GIDs, MTU, bonds, congestion control of RoCE."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.doctor.host import Host
from kvstore.topology import sysfs
from kvstore.topology.gids import WORDS, Rank
from kvstore.topology.nics import LARGEST_MTU, Port

_MELLANOX = "0x15b3"
_NETWORK_CLASSES = ("0x020000", "0x020700")  # Ethernet, InfiniBand
_ROCE_BONDS = ("active-backup", "balance-xor", "802.3ad")
_MTU_FOR_LARGEST = 4200


def nics(host: Host) -> Iterator[Finding]:
    """RDMA NICs and the device files through which programs use them."""
    found = host.topology.nics
    unbound = [] if found else _without_driver(host)
    if unbound:
        yield warn(
            f"{', '.join(unbound)}: a NIC that can do RDMA, without an RDMA device",
            "modprobe mlx5_ib, and in a container share the host's RDMA devices",
        )
        return
    if not found:
        yield ok("no RDMA NIC: nodes are reached by shared memory and TCP")
        return
    names = ", ".join(f"{nic.name} ({nic.place.address or 'not on PCI'})" for nic in found)
    yield ok(f"{len(found)} RDMA NIC{'s' if len(found) > 1 else ''}: {names}")
    files = [n for n in sysfs.names(host.dev / "infiniband") if n.startswith("uverbs")]
    usable = [n for n in files if os.access(host.dev / "infiniband" / n, os.R_OK | os.W_OK)]
    if not files:
        yield fail(
            f"{host.dev}/infiniband has no uverbs device: no program can use the NICs",
            "modprobe ib_uverbs; for a container --device=/dev/infiniband",
        )
    elif len(usable) < len(files):
        yield fail(
            f"this user may not open {len(files) - len(usable)} of {len(files)} devices in "
            f"{host.dev}/infiniband",
            "chmod 0666 /dev/infiniband/uverbs* (by a udev rule), or the group that owns them",
        )


def _without_driver(host: Host) -> list[str]:
    """Addresses of NICs that have RDMA, on a host without RDMA devices."""
    base = host.sys / "bus" / "pci" / "devices"
    return [
        name
        for name in sysfs.names(base)
        if sysfs.text(base / name / "vendor") == _MELLANOX
        and sysfs.text(base / name / "class") in _NETWORK_CLASSES
    ]


def ports(host: Host) -> Iterator[Finding]:
    """State and speed of the ports."""
    every = [port for nic in host.topology.nics for port in nic.ports]
    for port in every:
        if port.active:
            rate = f"{port.rate_gbps:g} Gbit/s" if port.rate_gbps else "unknown speed"
            yield ok(f"{port.name} is active: {port.link_layer or 'unknown'}, {rate}")
        elif port.state in ("INIT", "ARMED"):
            yield warn(
                f"{port.name} has a link, but is {port.state}: no subnet manager configured it",
                "run a subnet manager (opensm, or the switch's) on the fabric",
            )
        else:
            yield warn(*_down(port))
    if every and not any(port.active for port in every):
        yield fail("no RDMA port is active", "connect one, or bring its network device up")


def _down(port: Port) -> tuple[str, str]:
    state, physical = port.state or "in an unknown state", port.physical_state or "not known"
    device = port.netdev or "its network device"
    if physical == "Polling":
        return f"{port.name} is {state}: no link partner", "check cable, transceiver and switch"
    return f"{port.name} is {state} ({physical})", f"ip link set {device} up; then check the cable"


def gids(host: Host) -> Iterator[Finding]:
    """GID that a connection of each active port should use."""
    for port in host.topology.active_ports():
        gid, device = port.gid, port.netdev or "its network device"
        address = f"ip address add ADDRESS/PREFIX dev {device}"
        if gid is None:
            yield fail(f"{port.name} has no GID: nothing can connect to it", address)
        elif gid.rank in (Rank.INFINIBAND, Rank.ROCE_V2_IPV4, Rank.ROCE_V2_IPV6):
            yield ok(f"{port.name}: {gid.words()}")
        elif gid.rank is Rank.ROCE_V2_LINK_LOCAL:
            yield warn(f"{port.name} has only a link-local GID, which no router forwards", address)
        else:
            yield warn(
                f"{port.name} has only GIDs of {WORDS[gid.rank]}, which no router forwards",
                f"cma_roce_mode -d {port.nic} -p {port.number} -m 2, or a driver with RoCE v2",
            )


def mtu(host: Host) -> Iterator[Finding]:
    """MTU of RoCE ports: a packet carries at most 4,096 bytes, and less below a small MTU."""
    sizes = set()
    for port in host.topology.active_ports():
        if port.link_layer == "InfiniBand":
            continue
        device = port.netdev or "its network device"
        fix = f"ip link set {device} mtu 9000, on the switches and all other hosts, too"
        sizes.add(port.netdev_mtu)
        if port.netdev_mtu is None:
            yield warn(f"{port.name}: the MTU of {device} is not known", f"look at ip link ({fix})")
        elif port.mtu is None:
            yield fail(f"{port.name}: an MTU of {port.netdev_mtu} is too small for RDMA", fix)
        elif port.mtu < LARGEST_MTU:
            yield warn(
                f"{port.name}: {device} has MTU {port.netdev_mtu}, so RDMA packets carry "
                f"{port.mtu:,} bytes and not {LARGEST_MTU:,} (from {_MTU_FOR_LARGEST} on)",
                fix,
            )
        else:
            yield ok(f"{port.name}: MTU {port.netdev_mtu}, RDMA packets of {port.mtu:,} bytes")
    if len(sizes) > 1:
        yield warn(
            f"ports differ in MTU ({', '.join(sorted(map(str, sizes)))}): large packets between "
            "them are lost",
            "give all ports of the fabric one MTU",
        )


def bonds(host: Host) -> Iterator[Finding]:
    """Bonds below RoCE ports, and members of bonds that are down."""
    netdevs = {port.netdev for nic in host.topology.nics for port in nic.ports}
    for bond in host.topology.bonds:
        if bond.name in netdevs and bond.mode not in _ROCE_BONDS:
            yield warn(
                f"{bond.name} has mode {bond.mode}, in which RoCE uses one member at best",
                f"a mode of {', '.join(_ROCE_BONDS)}",
            )
        if bond.members_down:
            yield warn(
                f"{bond.name}: {', '.join(bond.members_down)} of {', '.join(bond.members)} is down",
                f"ip link set {bond.members_down[0]} up; then check the cable",
            )
        elif bond.members:
            yield ok(f"{bond.name}: {bond.mode} of {', '.join(bond.members)}")
        else:
            yield warn(f"{bond.name} has no member", f"ip link set DEVICE master {bond.name}")


def roce_congestion(host: Host) -> Iterator[Finding]:
    """Congestion control of RoCE (DCQCN), where the driver shows it."""
    for port in host.topology.active_ports():
        base = host.sys / "class" / "net" / port.netdev / "ecn"
        if not port.netdev or not sysfs.names(base):
            continue
        for part, role in (("roce_np", "receiver"), ("roce_rp", "sender")):
            marks = [sysfs.whole(base / part / "enable" / str(level)) for level in range(8)]
            if not any(marks):
                yield warn(
                    f"{port.name} ignores marks of congestion as a {role} ({part} is off)",
                    f"echo 1 > /sys/class/net/{port.netdev}/ecn/{part}/enable/3 (the priority of "
                    "RoCE), and ECN on the switches",
                )
            else:
                yield ok(f"{port.name}: {part} is on")
