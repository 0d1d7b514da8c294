"""Topology of hosts whose sysfs is a folder: distances, nearest NICs, GIDs, bonds, labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.config import NodeConfig
from kvstore.limits import MAX_LABELS
from kvstore.node.labels import labels_of
from kvstore.topology import host as topology
from kvstore.topology import near
from kvstore.topology.gids import Rank
from kvstore.topology.labels import found
from kvstore.topology.pci import Distance
from tests.support.fake_sysfs import ROCE_V1, ROCE_V2, FakeHost, eight_by_eight, write

IPV4 = [("10.8.0.1", ROCE_V2)]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


# --- distances and choices ---


def test_every_gpu_of_two_sockets_finds_the_nic_below_its_switch(tmp_path: Path) -> None:
    host = topology.read(eight_by_eight(tmp_path).sys)
    assert len(host.gpus) == len(host.nics) == 8 and host.numa_nodes == (0, 1)
    for i, gpu in enumerate(host.gpus):
        nearest = host.nearest_nic(gpu)
        assert nearest is not None and nearest.name == f"mlx5_{i}"
        distances = [host.distance(gpu, nic) for nic in host.nics]
        same_socket = [Distance.NODE if j // 4 == i // 4 else Distance.SYS for j in range(8)]
        assert distances == [Distance.PIX if j == i else same_socket[j] for j in range(8)]
    assert [n.name for n in host.nics_of_numa_node(1)] == [f"mlx5_{i}" for i in (4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("nic", "numa_node", "distance"),
    [
        ("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0", 0, Distance.PIX),
        ("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0/0000:05:00.0/0000:06:00.0/0000:07:00.0",
         0, Distance.PXB),
        ("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0/0000:05:00.0/0000:06:00.0", 0,
         Distance.PXB),
        ("pci0000:00/0000:00:02.0/0000:08:00.0", 0, Distance.PHB),
        ("pci0000:40/0000:40:01.0/0000:41:00.0", 0, Distance.NODE),
        ("pci0000:80/0000:80:01.0/0000:81:00.0", 1, Distance.SYS),
        ("pci0000:80/0000:80:01.0/0000:81:00.0", -1, Distance.SYS),
        ("", 0, Distance.SYS),
    ],
)  # fmt: skip
def test_distances_have_the_names_of_nvidia_smi(
    tmp_path: Path, nic: str, numa_node: int, distance: Distance
) -> None:
    host = FakeHost(tmp_path, numa_nodes=2)
    host.gpu("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0", 0)
    host.nic("mlx5_0", nic, numa_node, gids=IPV4)
    read = topology.read(host.sys)
    assert read.distance(read.gpus[0], read.nics[0]) is distance


def test_an_unknown_numa_node_is_the_only_one_where_there_is_only_one(host: FakeHost) -> None:
    host.gpu("pci0000:00/0000:00:01.0/0000:01:00.0", -1)
    host.nic("mlx5_0", "pci0000:40/0000:40:01.0/0000:41:00.0", -1, gids=IPV4)
    read = topology.read(host.sys)
    assert read.gpus[0].place.numa_node is read.nics[0].place.numa_node is None
    assert read.distance(read.gpus[0], read.nics[0]) is Distance.NODE


def test_a_port_that_is_down_is_nobodys_nearest(tmp_path: Path) -> None:
    host = eight_by_eight(tmp_path)
    write(host.sys / "class" / "infiniband" / "mlx5_0" / "ports" / "1" / "state", "1: DOWN")
    read = topology.read(host.sys)
    nearest = read.nearest_nic(read.gpus[0])
    assert nearest is not None and nearest.name == "mlx5_1"
    assert [port.name for port in read.active_ports()] == [f"mlx5_{i}:1" for i in range(1, 8)]
    assert read.nics[0].ports[0].physical_state == "LinkUp"


def test_gpus_with_the_same_choice_are_spread_over_it(host: FakeHost) -> None:
    for i in range(4):
        host.gpu(f"pci0000:{0x10 + i:02x}/0000:{0x10 + i:02x}:01.0/0000:2{i}:00.0")
    for i in range(2):
        host.nic(f"mlx5_{i}", f"pci0000:5{i}/0000:5{i}:01.0/0000:6{i}:00.0", gids=IPV4)
    host.nic("slow", "pci0000:55/0000:55:01.0/0000:66:00.0", gids=IPV4, rate="25 Gb/sec (1X EDR)")
    read = topology.read(host.sys)
    chosen = [read.nearest_nic(gpu) for gpu in read.gpus]
    assert [nic and nic.name for nic in chosen] == ["mlx5_0", "mlx5_1", "mlx5_0", "mlx5_1"]


def test_other_devices_of_nvidia_are_no_gpus(host: FakeHost) -> None:
    host.gpu("pci0000:00/0000:00:01.0/0000:01:00.0", kind=0x0302, driver="nvidia")
    host.gpu("pci0000:00/0000:00:02.0/0000:02:00.0", kind=0x0300, driver="vfio-pci")
    host.gpu("pci0000:00/0000:00:03.0/0000:03:00.1", kind=0x0403)  # its audio function
    host.gpu("pci0000:00/0000:00:04.0/0000:04:00.0", kind=0x0680)  # an NVSwitch
    read = topology.read(host.sys)
    assert [gpu.driver for gpu in read.gpus] == ["nvidia", "vfio-pci"]


# --- GIDs and ports ---


@pytest.mark.parametrize(
    ("gids", "index", "rank"),
    [
        ([("fe80::1", ROCE_V1), ("fe80::1", ROCE_V2), ("10.0.0.1", ROCE_V1), ("10.0.0.1", ROCE_V2)],
         3, Rank.ROCE_V2_IPV4),
        ([("fe80::1", ROCE_V2), ("2001:db8::1", ROCE_V2)], 1, Rank.ROCE_V2_IPV6),
        ([("fe80::1", ROCE_V1), ("fe80::1", ROCE_V2)], 1, Rank.ROCE_V2_LINK_LOCAL),
        ([("169.254.7.1", ROCE_V2)], 0, Rank.ROCE_V2_LINK_LOCAL),
        ([("fe80::1", ROCE_V1), ("10.0.0.1", ROCE_V1)], 0, Rank.ROCE_V1),
        ([("10.0.0.1", "RoCE v9")], 0, Rank.UNKNOWN),
        ([("::", ROCE_V2), ("10.0.0.1", ROCE_V2)], 1, Rank.ROCE_V2_IPV4),
    ],
)  # fmt: skip
def test_the_best_gid_of_a_roce_port(
    host: FakeHost, gids: list[tuple[str, str]], index: int, rank: Rank
) -> None:
    host.nic("rxe0", gids=gids, netdev="eth0", mtu=1500)
    (port,) = topology.read(host.sys).active_ports()
    assert port.gid is not None and (port.gid.index, port.gid.rank) == (index, rank)
    assert (port.netdev, port.netdev_mtu, port.mtu) == ("eth0", 1500, 1024)


def test_infiniband_uses_entry_0(host: FakeHost) -> None:
    host.nic("mlx5_0", layer="InfiniBand", gids=[("fe80::506b:4b03:a1:b2c3", ""), ("fec0::1", "")])
    (port,) = topology.read(host.sys).active_ports()
    assert port.gid is not None and port.gid.index == 0
    assert port.gid.rank is Rank.INFINIBAND and port.mtu is None
    assert port.name == "mlx5_0:1" and port.rate_gbps == 400.0


@pytest.mark.parametrize(
    ("mtu", "rdma_mtu"), [(9000, 4096), (4192, 4096), (4191, 2048), (1500, 1024), (300, None)]
)
def test_the_rdma_mtu_follows_from_the_network_devices(
    host: FakeHost, mtu: int, rdma_mtu: int | None
) -> None:
    host.nic("rxe0", gids=IPV4, netdev="eth0", mtu=mtu)
    assert topology.read(host.sys).active_ports()[0].mtu == rdma_mtu


def test_entries_after_a_gap_are_found_and_long_tails_are_not_read(host: FakeHost) -> None:
    port = host.nic("mlx5_0", gids=[("fe80::1", ROCE_V2)], netdev="eth0")
    for index in range(1, 1024):
        write(port / "gids" / str(index), "0000:" * 7 + "0000")
    host.gid(port, 10, "10.0.0.1", ROCE_V2, "eth0")
    host.gid(port, 1000, "10.0.0.2", ROCE_V2, "eth0")
    (read,) = topology.read(host.sys).active_ports()
    assert [gid.index for gid in read.gids] == [0, 10]


def test_a_bond_is_read_with_its_members(host: FakeHost) -> None:
    host.bond("bond0", "802.3ad 4", {"eth0": "up", "eth1": "down"})
    host.nic("mlx5_bond_0", gids=IPV4, netdev="bond0")
    read = topology.read(host.sys)
    (bond,) = read.bonds
    assert (bond.name, bond.mode) == ("bond0", "802.3ad")
    assert bond.members == ("eth0", "eth1") and bond.members_down == ("eth1",)
    assert read.active_ports()[0].netdev == "bond0"


def test_a_port_without_gids_finds_its_network_device_by_its_function(host: FakeHost) -> None:
    path = "pci0000:00/0000:00:01.0/0000:01:00.0"
    host.nic("mlx5_0", path)
    write(host.sys / "devices" / path / "net" / "ens1" / "dev_port", 0)
    host.netdev("ens1", 4200)
    host.nic("rxe0")
    write(host.sys / "class" / "infiniband" / "rxe0" / "parent", "ens2")
    host.netdev("ens2", 1500)
    ports = topology.read(host.sys).active_ports()
    assert [(port.netdev, port.netdev_mtu) for port in ports] == [("ens1", 4200), ("ens2", 1500)]
    assert all(port.gid is None for port in ports)


# --- labels ---


def test_labels_name_the_networks_of_all_rails(tmp_path: Path) -> None:
    host = eight_by_eight(tmp_path)
    labels = found(host.sys, host.proc, cpus=range(16))
    assert labels == {"rdma_domain": "+".join(f"roce:10.8.{i}.0/24" for i in range(8))}
    assert found(host.sys, host.proc, cpus=range(8, 12))["numa"] == "1"


def test_the_memory_that_a_process_may_use_decides_its_numa_node(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, numa_nodes=2)
    write(host.proc / "self" / "status", "Name:\tx\nMems_allowed_list:\t1\nTail:\t0")
    assert found(host.sys, host.proc, cpus=range(16)) == {"numa": "1"}
    write(host.proc / "self" / "status", "Name:\tx\nMems_allowed_list:\t0-1\nTail:\t0")
    assert found(host.sys, host.proc, cpus=range(16)) == {}


def test_a_node_uses_the_nics_of_its_numa_node_unless_others_lead_elsewhere(
    tmp_path: Path,
) -> None:
    host = FakeHost(tmp_path / "one", numa_nodes=2)
    for i in range(4):
        path = f"pci0000:{i}0/0000:{i}0:01.0/0000:{i}1:00.0"
        host.nic(f"mlx5_{i}", path, i // 2, layer="InfiniBand", gids=[("fec0:0:0:7::a", "")])
    host.nic("mlx5_4", "pci0000:50/0000:50:01.0/0000:51:00.0", 1, state="1: DOWN")
    assert near.ports(host.sys, host.proc, cpus=range(8, 12)) == ["mlx5_2:1", "mlx5_3:1"]
    assert near.ports(host.sys, host.proc, cpus=range(16)) == []  # bound to no node
    # Eight rails, each a network of its own: clients may reach the node by any of them.
    rails = eight_by_eight(tmp_path / "rails")
    assert near.ports(rails.sys, rails.proc, cpus=range(8, 12)) == []


def test_infiniband_is_known_by_its_subnet_prefix(host: FakeHost) -> None:
    host.nic("mlx5_0", layer="InfiniBand", gids=[("fec0:0:0:7::a", "")])
    host.nic("mlx5_1", layer="InfiniBand", gids=[("fec0:0:0:7::b", "")])
    host.nic("mlx5_2", gids=IPV4, netdev="eth0")
    host.route("eth0", "10.8.0.0/24")
    labels = found(host.sys, host.proc, cpus=[0])
    assert labels == {"numa": "0", "rdma_domain": "ib:fec0000000000007"}


@pytest.mark.parametrize(
    ("netdev", "network", "gateway"),
    [
        ("eth1", "10.8.0.0/24", False),  # of another device
        ("eth0", "10.9.0.0/24", False),  # of another network
        ("eth0", "10.8.0.0/24", True),  # a route, not a network
        ("eth0", "10.8.0.0/31", False),  # a link between two ports: no other node has it
    ],
)
def test_a_network_that_is_not_known_is_not_guessed(
    host: FakeHost, netdev: str, network: str, gateway: bool
) -> None:
    host.nic("mlx5_0", gids=IPV4, netdev="eth0")
    host.route(netdev, network, gateway)
    assert found(host.sys, host.proc, cpus=[0]) == {"numa": "0"}
    host.route("eth0", "10.8.0.0/16")
    expected = {} if network == "10.8.0.0/31" else {"rdma_domain": "roce:10.8.0.0/16"}
    assert found(host.sys, host.proc, cpus=[0]) == {"numa": "0", **expected}


def test_ports_that_are_down_or_have_no_ipv4_make_no_domain(host: FakeHost) -> None:
    host.nic("mlx5_0", gids=IPV4, netdev="eth0", state="1: DOWN")
    host.nic("mlx5_1", gids=[("2001:db8::1", ROCE_V2)], netdev="eth1")
    host.route("eth0", "10.8.0.0/24")
    assert "rdma_domain" not in found(host.sys, host.proc, cpus=[0])


def test_a_configurations_labels_are_kept() -> None:
    def of_host() -> dict[str, str]:
        return {"numa": "1", "rdma_domain": "roce:10.8.0.0/24"}

    config = NodeConfig(labels={"host": "h", "rdma_domain": ""})
    assert labels_of(config, of_host) == {"host": "h", "rdma_domain": "", "numa": "1"}
    full = {f"l{i}": "" for i in range(MAX_LABELS - 2)}
    assert len(labels_of(NodeConfig(labels={"host": "h", **full}), of_host)) == MAX_LABELS
    more = {"host": "h", **full, "last": ""}
    assert labels_of(NodeConfig(labels=more), of_host) == more
