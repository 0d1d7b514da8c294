"""RDMA NICs and their ports, and the bonds of network devices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvstore.topology import sysfs
from kvstore.topology.gids import Gid, best
from kvstore.topology.gids import read as read_gids
from kvstore.topology.pci import Place, place

_MAX_NICS = 256
_MAX_PORTS = 16
# What RoCE v2 adds to the payload of a packet: GRH, UDP, BTH, XRC, AtomicETH and ICRC.
# Source: iboe_get_mtu in the kernel's include/rdma/ib_addr.h.
_ROCE_HEADER_BYTES = 96
_RDMA_MTUS = (4096, 2048, 1024, 512, 256)
LARGEST_MTU = _RDMA_MTUS[0]


@dataclass(frozen=True)
class Port:
    """One port of an RDMA NIC."""

    nic: str
    number: int
    state: str
    """ACTIVE, DOWN, INIT, …; empty: not known."""
    physical_state: str
    """LinkUp, Disabled, Polling, …."""
    rate_gbps: float | None
    link_layer: str
    """InfiniBand or Ethernet."""
    netdev: str
    """Network device of the port; empty: not known."""
    netdev_mtu: int | None
    gids: tuple[Gid, ...]

    @property
    def name(self) -> str:
        """Its name, as UCX and the tools write it."""
        return f"{self.nic}:{self.number}"

    @property
    def active(self) -> bool:
        """Whether it carries traffic."""
        return self.state == "ACTIVE"

    @property
    def gid(self) -> Gid | None:
        """The entry of its table that a connection should use; None when it is empty."""
        return best(self.gids)

    @property
    def mtu(self) -> int | None:
        """Payload of an RDMA packet that its network device allows; None: not known."""
        if self.link_layer == "InfiniBand" or self.netdev_mtu is None:
            return None
        room = self.netdev_mtu - _ROCE_HEADER_BYTES
        return next((mtu for mtu in _RDMA_MTUS if mtu <= room), None)


@dataclass(frozen=True)
class Nic:
    """An RDMA device, as mlx5_0."""

    name: str
    place: Place
    ports: tuple[Port, ...]

    @property
    def active(self) -> bool:
        """Whether a port carries traffic."""
        return any(port.active for port in self.ports)

    @property
    def rate_gbps(self) -> float:
        """Of its active ports together; 0 when it is not known."""
        return sum(port.rate_gbps or 0 for port in self.ports if port.active)


@dataclass(frozen=True)
class Bond:
    """A bond of network devices."""

    name: str
    mode: str
    """As balance-rr or 802.3ad."""
    members: tuple[str, ...]
    members_down: tuple[str, ...]


def read(sys: Path) -> tuple[Nic, ...]:
    """Read all RDMA devices, by name."""
    base = sys / "class" / "infiniband"
    return tuple(_nic(sys, base / name) for name in sysfs.names(base)[:_MAX_NICS])


def _nic(sys: Path, folder: Path) -> Nic:
    numbers = [n for n in sysfs.names(folder / "ports") if re.fullmatch("[1-9][0-9]{0,2}", n)]
    ports = tuple(_port(sys, folder, int(number)) for number in numbers[:_MAX_PORTS])
    # A device that is not on PCI, as soft-RoCE, has no `device`.
    return Nic(folder.name, place(folder / "device"), ports)


def _port(sys: Path, nic: Path, number: int) -> Port:
    folder = nic / "ports" / str(number)
    layer = sysfs.text(folder / "link_layer")
    table = read_gids(folder, layer)
    rate = re.match(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) Gb/sec", sysfs.text(folder / "rate"))
    netdev = _netdev(nic, number, table)
    return Port(
        nic=nic.name,
        number=number,
        state=_word(sysfs.text(folder / "state")),
        physical_state=_word(sysfs.text(folder / "phys_state")),
        rate_gbps=float(rate[1]) if rate else None,
        link_layer=layer,
        netdev=netdev,
        netdev_mtu=sysfs.whole(sys / "class" / "net" / netdev / "mtu") if netdev else None,
        gids=table,
    )


def _word(text: str) -> str:
    """Take the word of "4: ACTIVE"."""
    match = re.fullmatch(r"[0-9]+: ([A-Za-z_]+)", text)
    return match[1] if match else ""


def _netdev(nic: Path, number: int, table: tuple[Gid, ...]) -> str:
    """Find the network device of a port: that of its GID, else the one of the same PCI function."""
    chosen = best(table)
    if chosen is not None and chosen.netdev:
        return chosen.netdev
    siblings = nic / "device" / "net"
    by_port = [n for n in sysfs.names(siblings) if _dev_port(siblings / n) == number - 1]
    return by_port[0] if by_port else sysfs.name(nic / "parent")


def _dev_port(netdev: Path) -> int:
    return sysfs.whole(netdev / "dev_port") or 0


def read_bonds(sys: Path) -> tuple[Bond, ...]:
    """Read the bonds of network devices, by name."""
    base = sys / "class" / "net"
    found = []
    for name in sysfs.names(base):
        mode = sysfs.text(base / name / "bonding" / "mode").partition(" ")[0]
        if not mode:
            continue
        listed = sysfs.text(base / name / "bonding" / "slaves").split()
        members = tuple(member for member in listed if sysfs.is_name(member))
        down = tuple(m for m in members if sysfs.text(base / m / "operstate") != "up")
        found.append(Bond(name, mode, members, down))
    return tuple(found)
