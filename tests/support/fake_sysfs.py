"""A host's sysfs and procfs in a folder: NICs, GPUs, bonds and NUMA nodes as a test wants them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

ROCE_V2, ROCE_V1 = "RoCE v2", "IB/RoCE v1"


def write(path: Path, text: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


def gid_text(address: str) -> str:
    """An address as the kernel writes a GID."""
    value = ipaddress.ip_address(address)
    if isinstance(value, ipaddress.IPv4Address):
        value = ipaddress.IPv6Address(f"::ffff:{value}")
    return value.exploded


class FakeHost:
    """Writes the files; `sys` and `proc` are what the code under test is given."""

    def __init__(self, folder: Path, numa_nodes: int = 1) -> None:
        self.sys, self.proc, self.dev = folder / "sys", folder / "proc", folder / "dev"
        self.dev.mkdir(parents=True)
        (self.sys / "class" / "infiniband").mkdir(parents=True)
        nodes = self.sys / "devices" / "system" / "node"
        write(nodes / "online", "0" if numa_nodes == 1 else f"0-{numa_nodes - 1}")
        for node in range(numa_nodes):
            write(nodes / f"node{node}" / "cpulist", f"{8 * node}-{8 * node + 7}")
        self.route_lines: list[str] = []
        self.write_routes()

    def device(self, path: str, numa_node: int = -1) -> Path:
        """A PCI function, as pci0000:00/0000:00:01.0/0000:01:00.0, linked from the bus."""
        folder = self.sys / "devices" / path
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "numa_node", numa_node)
        link = self.sys / "bus" / "pci" / "devices" / folder.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
        return folder

    def gpu(
        self, path: str, numa_node: int = -1, driver: str = "nvidia", kind: int = 0x0302
    ) -> None:
        folder = self.device(path, numa_node)
        write(folder / "vendor", "0x10de")
        write(folder / "class", f"0x{kind:04x}00")
        if driver:
            target = self.sys / "bus" / "pci" / "drivers" / driver
            target.mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(target)

    def nic(
        self,
        name: str,
        path: str = "",
        numa_node: int = -1,
        layer: str = "Ethernet",
        state: str = "4: ACTIVE",
        rate: str = "400 Gb/sec (4X NDR)",
        gids: Sequence[tuple[str, str]] = (),
        netdev: str = "",
        mtu: int = 9000,
    ) -> Path:
        """An RDMA NIC with one port; `gids` are pairs of address and type. The port's folder."""
        parent = self.device(path, numa_node) if path else self.sys / "devices" / "virtual"
        folder = parent / "infiniband" / name
        folder.mkdir(parents=True)
        if path:
            (folder / "device").symlink_to(parent)
        link = self.sys / "class" / "infiniband" / name
        link.symlink_to(folder)
        port = folder / "ports" / "1"
        write(port / "state", state)
        write(port / "phys_state", "5: LinkUp" if "ACTIVE" in state else "3: Disabled")
        write(port / "rate", rate)
        write(port / "link_layer", layer)
        (port / "gids").mkdir()
        for index, (address, kind) in enumerate(gids):
            self.gid(port, index, address, kind, netdev)
        if netdev:
            self.netdev(netdev, mtu)
        return port

    def gid(self, port: Path, index: int, address: str, kind: str, netdev: str) -> None:
        write(port / "gids" / str(index), gid_text(address))
        write(port / "gid_attrs" / "types" / str(index), kind)
        write(port / "gid_attrs" / "ndevs" / str(index), netdev)

    def netdev(self, name: str, mtu: int = 9000, operstate: str = "up") -> Path:
        folder = self.sys / "class" / "net" / name
        write(folder / "mtu", mtu)
        write(folder / "operstate", operstate)
        return folder

    def bond(self, name: str, mode: str, members: dict[str, str]) -> None:
        """A bond; `members` are its devices with their operstate."""
        folder = self.netdev(name)
        write(folder / "bonding" / "mode", mode)
        write(folder / "bonding" / "slaves", " ".join(members))
        for member, state in members.items():
            self.netdev(member, operstate=state)

    def route(self, netdev: str, network: str, gateway: bool = False) -> None:
        """A line of /proc/net/route."""
        parsed = ipaddress.ip_network(network)
        words = [
            int.from_bytes(int(value).to_bytes(4, "big"), "little")
            for value in (parsed.network_address, parsed.netmask)
        ]
        flags = 3 if gateway else 1
        line = f"{netdev}\t{words[0]:08X}\t00000000\t{flags:04X}\t0\t0\t0\t{words[1]:08X}\t0\t0\t0"
        self.route_lines.append(line)
        self.write_routes()

    def write_routes(self) -> None:
        head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"
        write(self.proc / "net" / "route", "\n".join([head, *self.route_lines]))


def eight_by_eight(folder: Path) -> FakeHost:
    """Two sockets with four GPUs and four NICs each, every GPU below a switch with its NIC."""
    host = FakeHost(folder, numa_nodes=2)
    for i in range(8):
        socket, bus = divmod(i, 4)
        root = f"pci{socket:04x}:{0x10 * (bus + 1):02x}"
        port = f"{socket:04x}:{0x10 * (bus + 1):02x}:01.0"
        switch = f"{socket:04x}:{0x10 * (bus + 1) + 1:02x}:00.0"
        base = f"{root}/{port}/{switch}"
        downstream = [f"{socket:04x}:{0x10 * (bus + 1) + 2:02x}:0{n}.0" for n in (0, 1)]
        ends = [f"{socket:04x}:{0x10 * (bus + 1) + n:02x}:00.0" for n in (3, 4)]
        host.gpu(f"{base}/{downstream[0]}/{ends[0]}", socket)
        host.nic(
            f"mlx5_{i}",
            f"{base}/{downstream[1]}/{ends[1]}",
            socket,
            gids=[
                (f"fe80::{i + 1}", ROCE_V1),
                (f"fe80::{i + 1}", ROCE_V2),
                (f"10.8.{i}.1", ROCE_V1),
                (f"10.8.{i}.1", ROCE_V2),
            ],
            netdev=f"eth{i}",
        )
        host.route(f"eth{i}", f"10.8.{i}.0/24")
    return host
