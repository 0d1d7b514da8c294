"""Checks of the network below sockets: TCP's settings, IPv6, ports, descriptors."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from kvstore.config import MasterConfig
from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.doctor.host import Host
from kvstore.topology import sysfs

_GOOD_CONGESTION = ("cubic", "bbr", "dctcp")
_LEAST_BUFFER = 4 << 20  # 100 Gbit/s over 300 us
_FEW_FILES, _MANY_FILES = 4096, 65536
_MAX_TABLE_BYTES = 1 << 20
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_MAX_PROCESSES = 4096
_MASTER_PROGRAMS = ("kvstore-master", "kvstore.cli.master")
_NODE_PROGRAMS = ("kvstore-node", "kvstore.cli.node")


def congestion(host: Host) -> Iterator[Finding]:
    """Congestion control of TCP."""
    name = sysfs.text(host.proc / "sys" / "net" / "ipv4" / "tcp_congestion_control")
    if not name or name in _GOOD_CONGESTION:
        yield ok(f"TCP uses {name or 'an unknown congestion control'}")
        return
    yield warn(
        f"TCP uses {name}, which gives up much of a fast network",
        "sysctl net.ipv4.tcp_congestion_control=cubic",
    )


def socket_buffers(host: Host) -> Iterator[Finding]:
    """Largest buffers that TCP grows to by itself."""
    small = []
    for name in ("tcp_rmem", "tcp_wmem"):
        values = sysfs.text(host.proc / "sys" / "net" / "ipv4" / name).split()
        if len(values) == 3 and values[2].isdigit() and int(values[2]) < _LEAST_BUFFER:
            small.append(f"{name} {int(values[2]):,}")
    if not small:
        yield ok("TCP may grow its buffers to 4 MiB and more")
        return
    yield warn(
        f"TCP's buffers stay below 4 MiB ({', '.join(small)}): one stream does not fill 100 Gbit/s",
        "sysctl net.ipv4.tcp_rmem='4096 131072 16777216' net.ipv4.tcp_wmem='4096 65536 16777216'",
    )


def ipv6(host: Host) -> Iterator[Finding]:
    """IPv6, where the configuration uses it."""
    net = host.proc / "sys" / "net" / "ipv6" / "conf" / "all" / "disable_ipv6"
    addresses = sysfs.lines(host.proc / "net" / "if_inet6", _MAX_TABLE_BYTES)
    usable = bool(addresses.strip()) and sysfs.whole(net) != 1
    config = host.config
    hosts = [config.host, getattr(config, "advertise_host", "")] if config else []
    if usable:
        yield ok("IPv6 is on")
    elif any(":" in name for name in hosts):
        yield fail(
            f"host {hosts[0]} is IPv6, which is off here",
            "sysctl net.ipv6.conf.all.disable_ipv6=0, or an IPv4 address in host",
        )
    else:
        yield ok("IPv6 is off; nothing here needs it")


def ephemeral_ports(host: Host) -> Iterator[Finding]:
    """Ports of servers that the system may give to outgoing connections."""
    base = host.proc / "sys" / "net" / "ipv4"
    span = sysfs.text(base / "ip_local_port_range").split()
    if len(span) != 2 or not all(part.isdigit() for part in span):
        yield ok("the range of outgoing ports is not known")
        return
    low, high = map(int, span)
    reserved = {*sysfs.ranges(sysfs.text(base / "ip_local_reserved_ports"))}
    inside = {
        name: port
        for name, port in host.ports().items()
        if low <= port <= high and port not in reserved
    }
    if not inside:
        yield ok(f"no port of a server lies in {low} to {high}, or all such are reserved")
        return
    ports = ",".join(map(str, sorted({*inside.values()} | reserved)))
    named = ", ".join(f"{name} {port}" for name, port in inside.items())
    yield warn(
        f"{named}: the system gives ports {low} to {high} to outgoing connections, so one may "
        "hold it when the server starts",
        f"sysctl net.ipv4.ip_local_reserved_ports={ports}",
    )


def open_files(host: Host) -> Iterator[Finding]:
    """Open files: each connection of a server takes one."""
    _, hard = host.limit(resource.RLIMIT_NOFILE)
    fix = "set LimitNOFILE=1048576 in the systemd unit (containers: --ulimit nofile=1048576)"
    if hard == resource.RLIM_INFINITY or hard >= _MANY_FILES:
        yield ok("a server may open 65,536 files or more")
    elif hard >= _FEW_FILES:
        yield warn(f"a server may open {hard:,} files, one per connection", fix)
    else:
        yield fail(f"a server may open only {hard:,} files, one per connection", fix)


def taken_ports(host: Host) -> Iterator[Finding]:
    """Configured ports that another program listens on."""
    if host.config is None:
        return
    listening = _listeners(host.proc)
    taken = {name: port for name, port in host.ports().items() if port in listening}
    if not taken:
        yield ok("the configured ports are free")
        return
    owners = _owners(host.proc, {inode for port in taken.values() for inode in listening[port]})
    own = _MASTER_PROGRAMS if isinstance(host.config, MasterConfig) else _NODE_PROGRAMS
    for name, port in taken.items():
        programs = [owners[inode] for inode in listening[port] if inode in owners]
        if any(word in command for _, command in programs for word in own):
            yield ok(f"{name} {port} is served by {own[0]}")
        elif programs:
            pid, command = programs[0]
            yield fail(
                f"{name} {port} is taken by another program: {command[:80]} (pid {pid})",
                f"stop it, or set another {name}",
            )
        else:
            yield warn(
                f"{name} {port} is in use, by a process that this user may not see",
                f"if it is not {own[0]}, stop it or set another {name}",
            )


def _listeners(proc: Path) -> dict[int, set[str]]:
    """Inodes of listening sockets, by port."""
    found: dict[int, set[str]] = {}
    for name in ("tcp", "tcp6"):
        for line in sysfs.lines(proc / "net" / name, _MAX_TABLE_BYTES).splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTEN:
                continue
            match = re.fullmatch(r"[0-9A-F]+:([0-9A-F]{4})", fields[1])
            if match:
                found.setdefault(int(match[1], 16), set()).add(fields[9])
    return found


def _owners(proc: Path, inodes: set[str]) -> dict[str, tuple[int, str]]:
    """Process and command line that hold each socket, where this user may see them."""
    found: dict[str, tuple[int, str]] = {}
    for name in [name for name in sysfs.names(proc) if name.isdigit()][:_MAX_PROCESSES]:
        for descriptor in sysfs.names(proc / name / "fd"):
            try:
                target = os.readlink(proc / name / "fd" / descriptor)
            except OSError:
                continue
            inode = target.removeprefix("socket:[").removesuffix("]")
            if inode in inodes:
                found[inode] = (int(name), _command(proc / name))
    return found


def _command(process: Path) -> str:
    try:
        with (process / "cmdline").open("rb") as file:
            raw = file.read(4096)
    except OSError:
        return "?"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip() or "?"
