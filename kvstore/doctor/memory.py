"""Checks of memory: locked memory, huge pages, the segment's file system, NUMA."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.doctor.host import Host
from kvstore.folders import in_memory
from kvstore.sizes import format_size
from kvstore.topology import sysfs

_SHM = "/dev/shm"
_DEFAULT_SEGMENT = 1 << 30
_HUGE_PAGES_FROM = 16 << 30  # as native segment.h
_INDEX_SHARE, _LEAST_INDEX = 16, 6 << 20  # a sixteenth of the segment (deploy/README.md, Memory)
_MAX_TABLE_BYTES = 1 << 20
_LIMITS = (
    "set LimitMEMLOCK=infinity in the systemd unit (containers: --ulimit memlock=-1; elsewhere: "
    "memlock unlimited in /etc/security/limits.conf)"
)


def memlock(host: Host) -> Iterator[Finding]:
    """Locked memory: an RDMA NIC pins what it reads and writes."""
    soft, _ = host.limit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield ok("locked memory is unlimited")
        return
    wanted = host.node.segment_size if host.node else _DEFAULT_SEGMENT
    said = f"at most {format_size(soft)} of memory can be locked"
    if not host.topology.active_ports():
        yield ok(f"{said}; without RDMA nothing needs more")
    elif soft < wanted:
        yield fail(f"{said}, but RDMA has to pin a segment of {format_size(wanted)}", _LIMITS)
    else:
        yield warn(f"{said}; RDMA pins clients' buffers, too", _LIMITS)


@dataclass(frozen=True)
class Mount:
    """The file system that a folder is on."""

    point: str
    kind: str
    options: tuple[str, ...]


def _mount_of(proc: Path, folder: str) -> Mount | None:
    """Find a folder's mount: the one with the longest path, and of those the last, which hides."""
    best: Mount | None = None
    for line in sysfs.lines(proc / "self" / "mountinfo", _MAX_TABLE_BYTES).splitlines():
        about, _, rest = line.partition(" - ")
        fields, kinds = about.split(), rest.split()
        if len(fields) < 6 or len(kinds) < 3:
            continue
        point = fields[4].replace("\\040", " ")
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best.point)):
            options = (*fields[5].split(","), *kinds[2].split(","))
            best = Mount(point, kinds[0], options)
    return best


def _segment_folder(host: Host) -> str:
    return host.node.directory() if host.node else _SHM


def shared_memory(host: Host) -> Iterator[Finding]:
    """Size and mount options of the file system that holds the segment."""
    folder = _segment_folder(host)
    mount = _mount_of(host.proc, folder)
    where = mount.point if mount else folder
    if mount is not None:
        if not in_memory(mount.kind):
            yield warn(
                f"{folder} is on {mount.kind}, not in memory",
                "set segment_dir to a folder on tmpfs or hugetlbfs, as below /dev/shm",
            )
        if "ro" in mount.options:
            yield fail(f"{where} is mounted read-only", f"mount -o remount,rw {where}")
            return
    yield from _room(host, folder, where)


def _room(host: Host, folder: str, where: str) -> Iterator[Finding]:
    existing = next((p for p in (Path(folder), *Path(folder).parents) if p.is_dir()), Path("/"))
    try:
        found = host.file_system(existing)
    except OSError as error:
        yield fail(f"{existing}: {error.strerror}", "mount tmpfs there, or set segment_dir")
        return
    total = found.f_blocks * found.f_frsize
    own = _used_by(Path(folder)) if host.node else 0
    free = found.f_bavail * found.f_frsize + own
    segment = host.node.segment_size if host.node else _DEFAULT_SEGMENT
    wanted = segment + 2 * max(segment // _INDEX_SHARE, _LEAST_INDEX)  # twice in a restart
    fix = (
        f"mount -o remount,size={-(-wanted >> 20)}m {where} (containers: --shm-size; Kubernetes: "
        "sizeLimit of the emptyDir), or a smaller segment_size"
    )
    said = f"{where} has {format_size(free)} free of {format_size(total)}"
    if host.node is None:
        small = total < wanted
        yield (
            warn(f"{said}: too small for a segment of the default size", fix) if small else ok(said)
        )
    elif free < segment:
        yield fail(f"{said}, less than segment_size {format_size(segment)}", fix)
    elif free < wanted:
        yield warn(
            f"{said}: no room for the second index of a restart beside {format_size(segment)}", fix
        )
    else:
        yield ok(f"{said}, enough for segment_size {format_size(segment)}")


def _used_by(folder: Path) -> int:
    """Bytes of the files that a node has in its own folder already."""
    used = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                used += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0
    return used


def swap(host: Host) -> Iterator[Finding]:
    """Swap space, to which pages of tmpfs may go."""
    table = sysfs.lines(host.proc / "swaps", _MAX_TABLE_BYTES).splitlines()[1:]
    devices = [line.split()[0] for line in table if line.split()]
    if not devices:
        yield ok("no swap: objects in memory stay in memory")
        return
    mount = _mount_of(host.proc, _segment_folder(host))
    if mount is not None and ("noswap" in mount.options or mount.kind == "hugetlbfs"):
        yield ok(f"swap is on, but not for {mount.point}")
        return
    yield warn(
        f"swap is on ({', '.join(devices)}): objects in tmpfs may be written to disk",
        "swapoff -a, or mount the segment's tmpfs with noswap (Linux 6.4)",
    )


def huge_pages(host: Host) -> Iterator[Finding]:
    """Huge pages for the segment: reserved ones of hugetlbfs, or those of tmpfs."""
    segment = host.node.segment_size if host.node else _DEFAULT_SEGMENT
    mount = _mount_of(host.proc, _segment_folder(host))
    if mount is not None and mount.kind == "hugetlbfs":
        yield from _reserved(host, segment)
        return
    setting = sysfs.text(host.sys / "kernel" / "mm" / "transparent_hugepage" / "shmem_enabled")
    chosen = re.search(r"\[(\w+)\]", setting)
    of_mount = next((o for o in mount.options if o.startswith("huge=")), "") if mount else ""
    forced = chosen is not None and chosen[1] == "force"
    if of_mount in ("huge=always", "huge=within_size", "huge=advise") or forced:
        yield ok(f"tmpfs uses huge pages ({of_mount or 'shmem_enabled force'})")
    elif segment < _HUGE_PAGES_FROM:
        yield ok("tmpfs uses small pages, which is fine below 16 GiB")
    else:
        where = mount.point if mount else _SHM
        yield warn(
            f"a segment of {format_size(segment)} uses small pages: mapping it takes longer",
            f"mount -o remount,huge=advise {where}",
        )


def _reserved(host: Host, segment: int) -> Iterator[Finding]:
    table = sysfs.lines(host.proc / "meminfo", _MAX_TABLE_BYTES)
    values = dict(re.findall(r"^(\w+): +([0-9]{1,15})", table, re.MULTILINE))
    size = int(values.get("Hugepagesize", 0)) << 10
    free = int(values.get("HugePages_Free", 0)) * size
    own = _used_by(Path(_segment_folder(host)))
    if size and free + own >= segment:
        yield ok(f"{format_size(free)} of huge pages are free")
        return
    pages = -(-segment // (size or 2 << 20))
    yield fail(
        f"{format_size(free)} of huge pages are free, not segment_size {format_size(segment)}",
        f"sysctl vm.nr_hugepages={pages}, or a segment_dir on tmpfs",
    )


def numa(host: Host) -> Iterator[Finding]:
    """NUMA nodes, and whether the kernel moves pages between them."""
    nodes = host.topology.numa_nodes
    if len(nodes) <= 1:
        yield ok("one NUMA node")
        return
    if sysfs.whole(host.proc / "sys" / "kernel" / "numa_balancing"):
        yield warn(
            f"{len(nodes)} NUMA nodes, and the kernel moves pages between them (numa_balancing), "
            "which unmaps what clients read",
            "sysctl kernel.numa_balancing=0",
        )
    else:
        yield ok(f"{len(nodes)} NUMA nodes; pages stay where they were put")
