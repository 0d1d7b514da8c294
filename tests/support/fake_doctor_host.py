"""A healthy machine for the doctor, in a folder; tests break one thing and see it found."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvstore.config import NodeConfig
from kvstore.doctor.clock_state import ClockState
from kvstore.doctor.host import Host
from kvstore.doctor.programs import Answer
from tests.support.fake_sysfs import FakeHost, eight_by_eight, write

GIB = 1 << 30
LISTENING = "   0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 1000 0 {inode} 1 0"


class FakeMachine(FakeHost):
    """Two sockets, eight GPUs, eight RoCE NICs; every check of `host()` is content."""

    def __init__(self, folder: Path) -> None:
        made = eight_by_eight(folder)
        self.__dict__.update(made.__dict__)
        self.folder = folder
        self.limits = {
            resource.RLIMIT_MEMLOCK: resource.RLIM_INFINITY,
            resource.RLIMIT_NOFILE: 1 << 20,
        }
        self.shm_total, self.shm_free = 64 * GIB, 60 * GIB
        self.clock_state = ClockState(True, 2.0, 1000.0, 999.0, 1000.0)
        self.libraries: dict[tuple[str, str], Answer] = {}
        self.programs: list[Answer] = []
        self.config = NodeConfig(
            segment_size=32 * GIB, segment_dir="/dev/shm/kvstore-a", port=30061, http_port=30081
        )
        for number in range(8):
            write(self.dev / "infiniband" / f"uverbs{number}", "")
            for part in ("roce_np", "roce_rp"):
                write(self.sys / f"class/net/eth{number}/ecn/{part}/enable/3", 1)
        (self.sys / "module" / "nvidia_peermem").mkdir(parents=True)
        self.mount("huge=within_size")
        for name, text in {
            "ipv4/tcp_congestion_control": "cubic",
            "ipv4/tcp_rmem": "4096\t131072\t16777216",
            "ipv4/tcp_wmem": "4096\t65536\t16777216",
            "ipv4/ip_local_port_range": "32768\t60999",
            "ipv4/ip_local_reserved_ports": "50051-50052",
            "ipv6/conf/all/disable_ipv6": "0",
        }.items():
            write(self.proc / "sys" / "net" / name, text)
        write(self.proc / "net" / "if_inet6", "0" * 31 + "1 01 80 10 80 lo")
        write(self.proc / "net" / "tcp", "  sl  local_address")
        write(self.proc / "swaps", "Filename\tType")
        write(self.proc / "sys" / "kernel" / "numa_balancing", 0)
        write(self.proc / "meminfo", "HugePages_Free:        0\nHugepagesize:       2048 kB")
        self.ucx("usr/lib/ucx-here", (1, 17, 0), ["ib", "rdmacm", "cma", "cuda"])
        self.cuda(8)
        write(self.folder / "site-packages" / "cupy" / "__init__.py", "")

    def mount(self, options: str, kind: str = "tmpfs", own: str = "rw,relatime") -> None:
        write(
            self.proc / "self" / "mountinfo",
            "20 1 0:1 / / rw - ext4 /dev/sda1 rw\n"
            f"25 20 0:23 / /dev/shm {own} - {kind} x rw,{options}",
        )

    def ucx(
        self,
        folder: str,
        version: Sequence[int],
        modules: Sequence[str],
        library: str = "libucp.so.0",
    ) -> Path:
        """A UCX installation; `library` is what the loader is asked for."""
        base = self.folder / folder
        for module in modules:
            write(base / "ucx" / f"libuct_{module}.so.0", "")
        write(base / "libucp.so.0", "")
        values: dict[str, Any] = {"version": [*version], "path": str(base / "libucp.so.0")}
        values["ucs_path"] = str(base / "libucs.so.0")
        self.libraries["ucx", library] = Answer(values)
        return base

    def cuda(self, count: int, dma_buf: bool = False) -> None:
        devices = [{"name": "H200", "dma_buf": dma_buf} for _ in range(count)]
        self.libraries["cuda", "libcuda.so.1"] = Answer({"version": 12080, "devices": devices})

    def port_of(self, nic: str) -> Path:
        return self.sys / "class" / "infiniband" / nic / "ports" / "1"

    def only_gids(self, nic: str, netdev: str, gids: Sequence[tuple[str, str]]) -> None:
        """Give a NIC this GID table."""
        port = self.port_of(nic)
        for entry in (port / "gids").iterdir():
            entry.unlink()
        for index, (address, kind) in enumerate(gids):
            self.gid(port, index, address, kind, netdev)

    def listen(self, port: int, command: str) -> None:
        """A process that listens on a port."""
        write(self.proc / "net" / "tcp", "  sl\n" + LISTENING.format(port=port, inode=4711))
        write(self.proc / "77" / "cmdline", command.replace(" ", "\0"))
        (self.proc / "77" / "fd").mkdir()
        (self.proc / "77" / "fd" / "3").symlink_to("socket:[4711]")

    def host(self, **changes: Any) -> Host:
        """The machine as it is now."""
        programs = iter(self.programs)
        missing = Answer(error="cannot open shared object file: No such file or directory")
        made = Host(
            sys=self.sys,
            proc=self.proc,
            dev=self.dev,
            config=self.config,
            limit=lambda kind: (self.limits[kind], self.limits[kind]),
            file_system=lambda path: os.statvfs_result(
                (4096, 4096, self.shm_total // 4096, 0, self.shm_free // 4096, 0, 0, 0, 0, 255)
            ),
            clock=lambda proc: self.clock_state,
            site_packages=(self.folder / "site-packages",),
            ask_library=lambda kind, name: self.libraries.get((kind, name), missing),
            run_program=lambda command, timeout_s: next(programs),
            root=self.folder / "root",
        )
        return replace(made, **changes)
