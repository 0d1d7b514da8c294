"""Topology of a sysfs whose contents are wrong: unknown, never an error, never endless."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.topology import host as topology
from kvstore.topology import sysfs
from kvstore.topology.labels import found
from tests.support.fake_sysfs import ROCE_V2, FakeHost, write


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    made = FakeHost(tmp_path)
    made.gpu("pci0000:00/0000:00:01.0/0000:01:00.0", 0)
    made.nic("mlx5_0", "pci0000:00/0000:00:02.0/0000:02:00.0", 0, gids=[("10.8.0.1", ROCE_V2)],
             netdev="eth0")  # fmt: skip
    made.bond("bond0", "802.3ad 4", {"eth0": "up"})
    made.route("eth0", "10.8.0.0/24")
    write(made.proc / "self" / "status", "Mems_allowed_list:\t0")
    return made


def every_file(host: FakeHost) -> list[Path]:
    roots = (host.sys, host.proc)
    return sorted(
        p for root in roots for p in root.rglob("*") if p.is_file() and not p.is_symlink()
    )


def read_all(host: FakeHost) -> None:
    read = topology.read(host.sys)
    for gpu in read.gpus:
        read.nearest_nic(gpu)
    read.nics_of_numa_node(0)
    assert set(found(host.sys, host.proc, cpus=[0])) <= {"numa", "rdma_domain"}


def test_an_empty_or_missing_tree_has_nothing(tmp_path: Path) -> None:
    read = topology.read(tmp_path / "nowhere")
    assert read == topology.Topology((), (), (), ())
    assert found(tmp_path, tmp_path, cpus=[0]) == {}


@pytest.mark.parametrize("what", ["missing", "binary", "huge", "fifo", "loop", "folder", "zero"])
def test_any_file_may_be_wrong(host: FakeHost, what: str) -> None:
    paths = every_file(host)
    assert len(paths) > 15
    for path in paths:
        before = path.read_bytes()
        path.unlink()
        if what == "binary":
            path.write_bytes(bytes(range(256)) * 8)
        elif what == "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "loop":
            path.symlink_to(path)
        elif what == "folder":
            path.mkdir()
        elif what == "zero":
            path.symlink_to("/dev/zero")
        read_all(host)
        if what == "folder":
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(before)
    assert found(host.sys, host.proc, cpus=[0])["rdma_domain"] == "roce:10.8.0.0/24"


def test_what_a_pipe_says_is_not_believed() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"42\n")
        os.close(writer)
        assert sysfs.whole(Path(f"/proc/self/fd/{reader}")) is None
    finally:
        os.close(reader)


def test_folders_may_be_loops(host: FakeHost) -> None:
    base = host.sys / "class" / "infiniband"
    (base / "mlx5_1").symlink_to(base / "mlx5_2")
    (base / "mlx5_2").symlink_to(base / "mlx5_1")
    (base / "mlx5_3").symlink_to(base)
    device = base / "mlx5_0" / "device"
    device.unlink()
    device.symlink_to(device)
    read = topology.read(host.sys)
    assert [nic.name for nic in read.nics] == ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3"]
    assert [nic.place.root for nic in read.nics] == ["", "", "", ""]
    assert [len(nic.ports) for nic in read.nics] == [1, 0, 0, 0]


def test_a_name_that_is_a_path_leads_nowhere(host: FakeHost) -> None:
    write(host.sys / "secret" / "mtu", 4242)
    port = host.sys / "class" / "infiniband" / "mlx5_0" / "ports" / "1"
    for wrong in ("../../secret", "..", "/etc", "a/b"):
        write(port / "gid_attrs" / "ndevs" / "0", wrong)
        (read,) = topology.read(host.sys).active_ports()
        assert (read.netdev, read.netdev_mtu) == ("", None)
    write(host.sys / "class" / "net" / "bond0" / "bonding" / "slaves", "eth0 ../../secret")
    assert topology.read(host.sys).bonds[0].members == ("eth0",)


def test_names_that_no_device_has_are_left_out(host: FakeHost) -> None:
    base = os.fsencode(host.sys / "class" / "infiniband")
    os.mkdir(base + b"/\xff\x1b[2J")
    os.mkdir(base + b"/a b")
    assert [nic.name for nic in topology.read(host.sys).nics] == ["mlx5_0"]


def test_a_crowd_is_cut(host: FakeHost) -> None:
    for i in range(300):
        (host.sys / "class" / "infiniband" / f"x{i}").mkdir()
    assert len(topology.read(host.sys).nics) == 256


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_bytes_in_any_file(host: FakeHost, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(every_file(host)))
    before = path.read_bytes()
    text = st.text("0123456789abcdef:.-,\n\t xgGbACTIVE", max_size=60).map(str.encode)
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=200), text)))
    read_all(host)
    path.write_bytes(before)


@pytest.mark.parametrize(
    ("listed", "numbers"),
    [
        ("0", [0]),
        ("0-2,5", [0, 1, 2, 5]),
        ("", []),
        ("3-1", []),
        ("0-999999", []),
        ("0,x", []),
        ("-1", []),
    ],
)
def test_lists_of_numbers(listed: str, numbers: list[int]) -> None:
    assert sysfs.ranges(listed) == numbers
