"""The doctor on machines with one planted fault each: found, with its sentence and its fix."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kvstore.config import MasterConfig
from kvstore.doctor import Check, Finding, Level, run
from kvstore.doctor.checks import HOST, RDMA_TRANSFERS
from kvstore.doctor.clock_state import ClockState
from kvstore.doctor.host import Host
from kvstore.doctor.programs import Answer
from tests.support.fake_doctor_host import GIB, FakeMachine
from tests.support.fake_sysfs import ROCE_V1, ROCE_V2, write

Plant = Callable[[FakeMachine], object]
WARN, FAIL = Level.WARN, Level.FAIL
CHECKS = [check for checks in HOST.values() for check in checks]


def look(host: Host, checks: list[Check[Host]] = CHECKS) -> list[Finding]:
    return list(run(checks, host))


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_a_healthy_machine_gives_neither_failure_nor_warning(machine: FakeMachine) -> None:
    found = look(machine.host())
    assert [f for f in found if f.level is not Level.OK] == []
    assert {f.check for f in found} == {check.name for check in CHECKS} - {"bonds"}
    text = "\n".join(f.message for f in found)
    for said in ("GPU7 and mlx5_7: PIX", "GID 3 (RoCE v2 over IPv4, 10.8.0.1)", "UCX 1.17.0",
                 "CUDA 12.8 sees 8 GPUs", "mlx5_0:1 is active: Ethernet, 400 Gbit/s"):  # fmt: skip
        assert said in text


def test_a_machine_with_nothing_needs_nothing(tmp_path: Path) -> None:
    for name in ("sys", "proc", "dev"):
        (tmp_path / name).mkdir()
    machine = FakeMachine(tmp_path / "other")
    host = machine.host(sys=tmp_path / "sys", dev=tmp_path / "dev", proc=tmp_path / "proc")
    machine.libraries.clear()
    machine.limits[resource.RLIMIT_MEMLOCK] = 64 << 10
    found = look(host)
    assert not [f for f in found if f.level is FAIL]
    text = "\n".join(f.message for f in found)
    for said in ("no RDMA NIC", "no NVIDIA GPU", "there is no UCX; without RDMA nothing needs it",
                 "without RDMA nothing needs more"):  # fmt: skip
        assert said in text


# --- planted faults ---


def limit(kind: int, value: int) -> Plant:
    return lambda machine: machine.limits.update({kind: value})


def put(path: str, text: object) -> Plant:
    def plant(machine: FakeMachine) -> None:
        write(machine.folder / path, text)

    return plant


def configured(**changes: object) -> Plant:
    def plant(machine: FakeMachine) -> None:
        machine.config = msgspec.structs.replace(machine.config, **changes)

    return plant


def gids(*table: tuple[str, str]) -> Plant:
    return lambda machine: machine.only_gids("mlx5_0", "eth0", table)


def every_port(text: str) -> Plant:
    def plant(machine: FakeMachine) -> None:
        for i in range(8):
            write(machine.port_of(f"mlx5_{i}") / "state", text)

    return plant


def clock(state: ClockState) -> Plant:
    def plant(machine: FakeMachine) -> None:
        machine.clock_state = state

    return plant


def cuda(error: str) -> Plant:
    def plant(machine: FakeMachine) -> None:
        machine.libraries["cuda", "libcuda.so.1"] = Answer(error=error)

    return plant


def both(*plants: Plant) -> Plant:
    def plant(machine: FakeMachine) -> None:
        for one in plants:
            one(machine)

    return plant


def no_peermem(machine: FakeMachine) -> None:
    (machine.sys / "module" / "nvidia_peermem").rmdir()


def no_cupy(machine: FakeMachine) -> None:
    (machine.folder / "site-packages" / "cupy" / "__init__.py").unlink()
    (machine.folder / "site-packages" / "cupy").rmdir()


def no_uverbs(machine: FakeMachine) -> None:
    for file in (machine.dev / "infiniband").iterdir():
        file.unlink()


def no_driver(machine: FakeMachine) -> None:
    base = machine.sys / "class" / "infiniband"
    for link in base.iterdir():
        link.unlink()
    folder = machine.device("pci0000:70/0000:70:01.0/0000:71:00.0")
    write(folder / "vendor", "0x15b3")
    write(folder / "class", "0x020000")


def far_nic(machine: FakeMachine) -> None:
    for i in range(4):
        write(machine.port_of(f"mlx5_{i}") / "state", "1: DOWN")


def unbound(machine: FakeMachine) -> None:
    driver = next((machine.sys / "bus" / "pci" / "devices").glob("*/driver"))
    driver.unlink()


def no_shm(machine: FakeMachine) -> None:
    machine.shm_free = 20 * GIB


def tight_shm(machine: FakeMachine) -> None:
    machine.shm_free = 33 * GIB


def hugetlbfs(machine: FakeMachine) -> None:
    machine.mount("pagesize=2M", kind="hugetlbfs")


def wheel_only(machine: FakeMachine) -> None:
    """No UCX of the system; the one of a nixl wheel, whose verbs find no provider."""
    machine.libraries.pop(("ucx", "libucp.so.0"))
    base = machine.folder / "site-packages" / "nixl_cu13.libs"
    library = str(base / "libucp-0123abcd.so.0.0.0")
    write(Path(library), "")
    machine.ucx("site-packages/nixl_cu13.libs", (1, 23, 0), ["ib", "cuda"], library)
    write(base / "libibverbs-89abcdef.so.1.14.48.0", "x\0/usr/lib64/libibverbs/lib%s-rdmav34.so\0")


def named_wheel(machine: FakeMachine) -> Host:
    library = str(machine.folder / "site-packages" / "libucx" / "lib" / "libucp.so.0")
    machine.ucx("site-packages/libucx/lib", (1, 22, 0), ["cma", "cuda"], library)
    return machine.host(ucx_library=library)


def named_nothing(machine: FakeMachine) -> Host:
    return machine.host(ucx_library="/nowhere/libucp.so.0")


def crashing_ucx(machine: FakeMachine) -> None:
    machine.libraries["ucx", "libucp.so.0"] = Answer(error="crashed with signal 11")


def bond(mode: str, **members: str) -> Plant:
    def plant(machine: FakeMachine) -> None:
        for i, name in enumerate(members):
            machine.only_gids(f"mlx5_{i}", "bond0", [("10.8.9.1", ROCE_V2)])
            (machine.sys / "class" / "net" / name / "mtu").unlink()
        machine.bond("bond0", mode, members)

    return plant


FAULTS: list[tuple[str, Plant, str, Level, str, str]] = [
    ("memlock", limit(resource.RLIMIT_MEMLOCK, 8 << 20), "memlock", FAIL,
     "at most 8 MiB of memory can be locked, but RDMA has to pin a segment of 32 GiB",
     "LimitMEMLOCK=infinity"),
    ("memlock of one segment", limit(resource.RLIMIT_MEMLOCK, 40 * GIB), "memlock", WARN,
     "RDMA pins clients' buffers, too", "--ulimit memlock=-1"),
    ("small /dev/shm", no_shm, "shm", FAIL,
     "/dev/shm has 20 GiB free of 64 GiB, less than segment_size 32 GiB",
     "mount -o remount,size=36864m /dev/shm"),
    ("no room for a restart", tight_shm, "shm", WARN, "no room for the second index of a restart",
     "smaller segment_size"),
    ("segment on disk", configured(segment_dir="/var/kvstore"), "shm", WARN,
     "/var/kvstore is on ext4, not in memory", "set segment_dir to a folder on tmpfs"),
    ("read-only /dev/shm", lambda m: m.mount("size=1g", own="ro"), "shm", FAIL,
     "/dev/shm is mounted read-only", "mount -o remount,rw /dev/shm"),
    ("swap", put("proc/swaps", "Filename Type\n/dev/sda2 partition 8388604 0 -2"), "swap", WARN,
     "swap is on (/dev/sda2)", "swapoff -a"),
    ("small pages", lambda m: m.mount("size=99g"), "hugepages", WARN,
     "a segment of 32 GiB uses small pages", "mount -o remount,huge=advise /dev/shm"),
    ("no huge pages", hugetlbfs, "hugepages", FAIL,
     "0 B of huge pages are free, not segment_size 32 GiB", "sysctl vm.nr_hugepages=16384"),
    ("NUMA balancing", put("proc/sys/kernel/numa_balancing", 1), "numa", WARN,
     "2 NUMA nodes, and the kernel moves pages between them", "sysctl kernel.numa_balancing=0"),
    ("congestion control", put("proc/sys/net/ipv4/tcp_congestion_control", "vegas"), "congestion",
     WARN, "TCP uses vegas", "tcp_congestion_control=cubic"),
    ("small buffers", put("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t212992"), "buffers", WARN,
     "tcp_rmem 212,992", "sysctl net.ipv4.tcp_rmem="),
    ("IPv6 off", both(put("proc/sys/net/ipv6/conf/all/disable_ipv6", 1), configured(host="::1")),
     "ipv6", FAIL, "host ::1 is IPv6, which is off here", "disable_ipv6=0"),
    ("few files", limit(resource.RLIMIT_NOFILE, 1024), "files", FAIL,
     "a server may open only 1,024 files", "LimitNOFILE=1048576"),
    ("not many files", limit(resource.RLIMIT_NOFILE, 20_000), "files", WARN,
     "a server may open 20,000 files", "--ulimit nofile=1048576"),
    ("ephemeral port", configured(port=50061), "reserved", WARN,
     "port 50061: the system gives ports 32768 to 60999 to outgoing connections",
     "sysctl net.ipv4.ip_local_reserved_ports=50051,50052,50061"),
    ("taken port", lambda m: m.listen(30061, "nginx -g daemon"), "taken", FAIL,
     "port 30061 is taken by another program: nginx -g daemon (pid 77)", "set another port"),
    ("port of the master", lambda m: m.listen(30081, "python -m kvstore.cli.master"), "taken", FAIL,
     "http_port 30081 is taken by another program: python -m kvstore.cli.master",
     "set another http_port"),
    ("clock", clock(ClockState(False, 0.0, 10.0, 10.0, 10.0)), "clock", WARN,
     "the clock is not synchronized", "chronyd"),
    ("inexact clock", clock(ClockState(True, 5000.0, 10.0, 10.0, 10.0)), "clock", WARN,
     "the clock may be off by 5,000 ms", "chronyd"),
    ("boot clock", clock(ClockState(True, 1.0, 900.0, 10.0, 1000.0)), "boottime", FAIL,
     "CLOCK_BOOTTIME says 900 s, /proc/uptime 1,000 s", "time namespace"),
    ("boot clock behind", clock(ClockState(True, 1.0, 9.0, 10.0, None)), "boottime", FAIL,
     "CLOCK_BOOTTIME is behind CLOCK_MONOTONIC", "sandboxed kernel"),
    ("no RDMA driver", no_driver, "nics", WARN, "0000:71:00.0: a NIC that can do RDMA",
     "modprobe mlx5_ib"),
    ("no uverbs", no_uverbs, "nics", FAIL, "has no uverbs device", "--device=/dev/infiniband"),
    ("port down", put("sys/class/infiniband/mlx5_3/ports/1/state", "1: DOWN"), "ports", WARN,
     "mlx5_3:1 is DOWN (LinkUp)", "ip link set eth3 up"),
    ("no cable", both(put("sys/class/infiniband/mlx5_3/ports/1/state", "1: DOWN"),
                      put("sys/class/infiniband/mlx5_3/ports/1/phys_state", "2: Polling")),
     "ports", WARN, "mlx5_3:1 is DOWN: no link partner", "transceiver"),
    ("no subnet manager", put("sys/class/infiniband/mlx5_3/ports/1/state", "2: INIT"), "ports",
     WARN, "mlx5_3:1 has a link, but is INIT", "opensm"),
    ("all ports down", every_port("1: DOWN"), "ports", FAIL, "no RDMA port is active", "connect"),
    ("no GID", gids(), "gids", FAIL, "mlx5_0:1 has no GID", "ip address add"),
    ("RoCE v1 only", gids(("10.8.0.1", ROCE_V1)), "gids", WARN,
     "mlx5_0:1 has only GIDs of RoCE v1", "cma_roce_mode -d mlx5_0 -p 1 -m 2"),
    ("link-local GID", gids(("fe80::1", ROCE_V2)), "gids", WARN, "has only a link-local GID",
     "ip address add ADDRESS/PREFIX dev eth0"),
    ("small MTU", put("sys/class/net/eth2/mtu", 1500), "mtu", WARN,
     "mlx5_2:1: eth2 has MTU 1500, so RDMA packets carry 1,024 bytes and not 4,096",
     "ip link set eth2 mtu 9000"),
    ("different MTUs", put("sys/class/net/eth2/mtu", 4500), "mtu", WARN,
     "ports differ in MTU (4500, 9000)", "one MTU"),
    ("tiny MTU", put("sys/class/net/eth2/mtu", 300), "mtu", FAIL,
     "an MTU of 300 is too small for RDMA", "mtu 9000"),
    ("bond member down", bond("802.3ad 4", eth0="up", eth1="down"), "bonds", WARN,
     "bond0: eth1 of eth0, eth1 is down", "ip link set eth1 up"),
    ("bond mode", bond("balance-rr 0", eth0="up", eth1="up"), "bonds", WARN,
     "bond0 has mode balance-rr, in which RoCE uses one member at best", "802.3ad"),
    ("no ECN", put("sys/class/net/eth4/ecn/roce_rp/enable/3", 0), "ecn", WARN,
     "mlx5_4:1 ignores marks of congestion as a sender", "/ecn/roce_rp/enable/3"),
    ("no CUDA", cuda("libcuda.so.1: cannot open shared object file"), "cuda", FAIL,
     "the CUDA driver does not work: libcuda.so.1", "--gpus all"),
    ("driver mismatch", cuda("cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"), "cuda", FAIL,
     "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "differ in version"),
    ("no fabric manager", cuda("cuInit: CUDA_ERROR_SYSTEM_NOT_READY (802)"), "cuda", FAIL,
     "CUDA_ERROR_SYSTEM_NOT_READY", "nvidia-fabricmanager"),
    ("hidden GPUs", lambda m: m.cuda(6), "cuda", WARN, "CUDA 12.8 sees 6 of 8 GPUs",
     "CUDA_VISIBLE_DEVICES"),
    ("unbound GPU", unbound, "cuda", WARN, "is bound to no driver", "nvidia-smi must list it"),
    ("no CuPy", no_cupy, "kernels", WARN, "CuPy is not installed", "kvcache-store[gpu]"),
    ("no peermem", no_peermem, "gpudirect", WARN, "nvidia_peermem is not loaded",
     "modprobe nvidia_peermem"),
    ("far NIC", far_nic, "distance", WARN,
     "GPU0 reaches its nearest NIC, mlx5_4, across sockets (SYS)", "activate the port that is"),
    ("no UCX", lambda m: m.libraries.pop(("ucx", "libucp.so.0")), "ucx", WARN,
     "there is no UCX: the RDMA NICs are not used", "apt-get install libucx0"),
    ("wrong KVSTORE_UCX_LIB", named_nothing, "ucx", FAIL,
     "KVSTORE_UCX_LIB /nowhere/libucp.so.0: cannot open", "or unset it"),
    ("wheel without verbs", named_wheel, "ucx", FAIL, "the libucx wheel, which is built without",
     "unset KVSTORE_UCX_LIB"),
    ("wheel without providers", wheel_only, "ucx", WARN,
     "looks for providers only in /usr/lib64/libibverbs (lib*-rdmav34.so), where there are none",
     "the system's UCX"),
    ("crashing UCX", crashing_ucx, "ucx", WARN, "UCX of the system does not load: crashed",
     "libucx0"),
    ("old UCX", lambda m: m.ucx("old", (1, 10, 1), ["ib", "cuda"]), "ucx", WARN,
     "UCX 1.10.1 of the system", "apt-get install libucx0"),
    ("no verbs", lambda m: m.ucx("tcp", (1, 17, 0), ["cma", "cuda"]), "ucx", WARN,
     "(cma, cuda) have no verbs", "ibverbs-providers"),
    ("no CUDA module", lambda m: m.ucx("bare", (1, 17, 0), ["ib"]), "ucx", WARN,
     "UCX of the system has no CUDA module", "libucx-cuda"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("plant", "check", "level", "said", "fix"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
def test_a_planted_fault_is_found_with_its_fix(
    machine: FakeMachine, plant: Plant, check: str, level: Level, said: str, fix: str
) -> None:
    planted = plant(machine)
    host = planted if isinstance(planted, Host) else machine.host()
    found = look(host)
    fitting = [f for f in found if f.level is level and said in f.message and fix in f.fix]
    assert [f.check for f in fitting] == [check] * len(fitting) and fitting, "\n".join(
        f"{f.level.value} {f.check}: {f.message} -> {f.fix}" for f in found
    )
    assert all(f.fix for f in found if f.level is not Level.OK)


def test_every_check_has_a_planted_fault() -> None:
    assert {fault[2] for fault in FAULTS} == {check.name for check in CHECKS}


def test_a_wheels_providers_are_found_in_their_folder(machine: FakeMachine) -> None:
    wheel_only(machine)
    write(machine.folder / "root/usr/lib64/libibverbs/libmlx5-rdmav34.so", "")
    found = look(machine.host(), [*HOST["ucx"]])
    assert [f.level for f in found] == [Level.OK] * 3
    assert "UCX 1.23.0 of the nixl-cu13 wheel" in found[0].message
    assert "and finds 1" in found[2].message


def test_the_system_comes_before_a_wheel_and_a_named_library_before_both(
    machine: FakeMachine,
) -> None:
    system = machine.libraries["ucx", "libucp.so.0"]
    wheel_only(machine)
    assert "the nixl-cu13 wheel" in look(machine.host(), [*HOST["ucx"]])[0].message
    machine.libraries["ucx", "libucp.so.0"] = system
    assert "of the system" in look(machine.host(), [*HOST["ucx"]])[0].message
    machine.libraries["ucx", "/opt/libucp.so"] = system
    named = machine.host(ucx_library="/opt/libucp.so")
    assert "of KVSTORE_UCX_LIB" in look(named, [*HOST["ucx"]])[0].message


def test_a_nodes_own_files_count_as_free(machine: FakeMachine, tmp_path: Path) -> None:
    folder = tmp_path / "segment"
    folder.mkdir()
    (folder / "segment").write_bytes(bytes(1 << 20))
    machine.config = msgspec.structs.replace(
        machine.config, segment_dir=str(folder), segment_size=1 << 20
    )
    machine.shm_total, machine.shm_free = 32 << 20, 12 << 20
    write(machine.proc / "self" / "mountinfo", f"25 20 0:23 / {tmp_path} rw - tmpfs x rw")
    (finding,) = look(machine.host(), [HOST["memory"][1]])
    assert finding.level is Level.OK, finding


def test_swap_that_spares_the_segment_is_fine(machine: FakeMachine) -> None:
    put("proc/swaps", "Filename Type\n/dev/sda2 partition 8388604 0 -2")(machine)
    machine.mount("huge=advise,noswap")
    (finding,) = look(machine.host(), [HOST["memory"][2]])
    assert finding.level is Level.OK and finding.message == "swap is on, but not for /dev/shm"


def test_a_masters_ports_are_its_own(machine: FakeMachine) -> None:
    config = MasterConfig(port=51000, grpc_port=51001, http_port=51002)
    machine.listen(51000, "/opt/kvstore/bin/python /opt/kvstore/bin/kvstore-master --config x")
    found = {f.check: f for f in look(machine.host(config=config), [*HOST["network"]])}
    assert found["taken"].message == "port 51000 is served by kvstore-master"
    assert "51000,51001,51002" in found["reserved"].fix
    other = replace(machine.host(config=None))
    assert not [f for f in look(other, [*HOST["network"]]) if f.check == "taken"]


def test_a_connection_from_a_configured_port_does_not_hold_it(machine: FakeMachine) -> None:
    machine.listen(30061, "nginx")
    table = machine.proc / "net" / "tcp"
    table.write_text(table.read_text().replace(" 0A ", " 01 "))
    found = [f for f in look(machine.host(), [*HOST["network"]]) if f.check == "taken"]
    assert [f.message for f in found] == ["the configured ports are free"]


def test_a_check_that_breaks_is_a_finding(machine: FakeMachine) -> None:
    def broken(host: Host) -> list[Finding]:
        raise RuntimeError("no such thing")

    found = look(machine.host(), [Check("odd", "", broken), HOST["clock"][0]])
    assert [f.level for f in found] == [FAIL, Level.OK]
    assert "RuntimeError: no such thing" in found[0].message and found[0].check == "odd"


# --- RDMA transfers ---

DONE = Answer({"bytes": 65536, "mtu": 4096})
NO_PYVERBS = Answer({"no_pyverbs": True}, "No module named 'pyverbs'")


def test_transfers_go_from_each_port_to_itself_and_within_a_network(machine: FakeMachine) -> None:
    machine.only_gids("mlx5_1", "eth0", [("10.8.0.2", ROCE_V2)])
    machine.programs = [DONE] * 9
    found = look(machine.host(), [RDMA_TRANSFERS])
    assert [f.level for f in found] == [Level.OK] * 9
    assert found[-1].message.startswith("mlx5_0:1 to mlx5_1:1: 65536 bytes written and read")


@pytest.mark.parametrize(
    ("answers", "level", "said", "fix"),
    [
        ([NO_PYVERBS, NO_PYVERBS], WARN, "--rdma needs pyverbs", "apt-get install python3-pyverbs"),
        ([Answer(error="write: no answer from the other side (retries exceeded)")], FAIL,
         "mlx5_0:1: write: no answer", "UDP port 4791"),
        ([Answer(error="Failed to register a MR. Errno: 12, Cannot allocate memory")], FAIL,
         "Cannot allocate memory", "limit of locked memory"),
        ([Answer(error="Failed to open device mlx5_0")], FAIL, "Failed to open", "providers"),
        ([Answer(error="crashed with signal 11")], FAIL, "crashed with signal 11", "ib_write_bw"),
        ([Answer(error="no answer within 20 s")], FAIL, "no answer within 20 s", "firewall"),
        ([NO_PYVERBS, Answer(error="Permission denied")], FAIL, "Permission denied", "this user"),
    ],
)  # fmt: skip
def test_a_failed_transfer_is_found_with_its_fix(
    machine: FakeMachine, answers: list[Answer], level: Level, said: str, fix: str
) -> None:
    machine.programs = answers + [DONE] * 8
    first = look(machine.host(), [RDMA_TRANSFERS])[0]
    assert first.level is level and said in first.message and fix in first.fix, first


def test_without_an_active_port_there_is_no_transfer(machine: FakeMachine) -> None:
    every_port("1: DOWN")(machine)
    (finding,) = look(machine.host(), [RDMA_TRANSFERS])
    assert finding.level is FAIL and "no active RDMA port" in finding.message
