"""The NUMA node that a process belongs to. Cheap: a client reads it when it connects."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from kvstore.topology import sysfs


def online(sys: Path) -> tuple[int, ...]:
    """List a host's NUMA nodes; empty: not known."""
    return tuple(sysfs.ranges(sysfs.text(sys / "devices" / "system" / "node" / "online")))


def of_process(
    sys: Path = sysfs.SYS, proc: Path = sysfs.PROC, cpus: Collection[int] | None = None
) -> int | None:
    """Return the one NUMA node whose memory this process uses; None if there is no such one.

    Args:
        sys: where sysfs is mounted.
        proc: where procfs is mounted.
        cpus: processors that this process may use; None: asked of the kernel.
    """
    all_nodes = online(sys)
    if len(all_nodes) == 1:
        return all_nodes[0]
    status = sysfs.lines(proc / "self" / "status", 64 << 10)
    memory = re.search(r"^Mems_allowed_list:\t([0-9,-]+)$", status, re.MULTILINE)
    nodes = sysfs.ranges(memory[1]) if memory else []
    if len(nodes) == 1:
        return nodes[0]
    # Pages are taken on the node of the thread that touches them first.
    allowed = {*(os.sched_getaffinity(0) if cpus is None else cpus)}
    of_cpus = [node for node in all_nodes if allowed & {*_cpus_of(sys, node)}]
    return of_cpus[0] if len(of_cpus) == 1 else None


def _cpus_of(sys: Path, node: int) -> list[int]:
    return sysfs.ranges(sysfs.text(sys / "devices" / "system" / "node" / f"node{node}" / "cpulist"))
