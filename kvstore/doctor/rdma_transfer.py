"""A real RDMA write and read between the active ports of this host."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.doctor.host import Host
from kvstore.doctor.programs import Answer
from kvstore.topology.labels import fabric
from kvstore.topology.nics import Port

_PROGRAM = str(Path(__file__).parent / "rdma_program.py")
_SYSTEMS_PYTHON = "/usr/bin/python3"
_TIMEOUT_S = 30.0
_MAX_PAIRS = 64
_PYVERBS = "apt-get install python3-pyverbs (with the Python of the distribution)"


def pairs(host: Host) -> list[tuple[Port, Port]]:
    """List what to try: each active port with itself, and with those of the same fabric.

    Ports of different networks need not reach each other: rails are separate.
    """
    usable = [port for port in host.topology.active_ports() if port.gid is not None]
    fabrics = {port.name: fabric(port, host.proc) for port in usable}
    together = [
        (one, other)
        for one, other in combinations(usable, 2)
        if fabrics[one.name] and fabrics[one.name] == fabrics[other.name]
    ]
    return [(port, port) for port in usable] + together


def transfers(host: Host) -> Iterator[Finding]:
    """Write and read 64 KiB by RDMA (RC) from each active port to itself and to its neighbours."""
    wanted = pairs(host)
    if not wanted:
        fix = "see the findings of nics, ports and gids"
        yield fail("--rdma: there is no active RDMA port with a GID", fix)
        return
    for one, other in wanted[:_MAX_PAIRS]:
        answer = _exchange(host, one, other)
        if answer.values.get("no_pyverbs"):
            yield warn(f"--rdma needs pyverbs, which is not installed: {answer.error}", _PYVERBS)
            return
        yield _judge(one, other, answer)
    if len(wanted) > _MAX_PAIRS:
        yield ok(f"{len(wanted) - _MAX_PAIRS} further pairs of ports were not tried")


def _exchange(host: Host, one: Port, other: Port) -> Answer:
    """Run the program, with the first interpreter that has pyverbs."""
    ends = [
        json.dumps(
            {
                "device": port.nic,
                "port": port.number,
                "gid_index": port.gid.index if port.gid else 0,
            }
        )
        for port in (one, other)
    ]
    answer = Answer(error="no Python")
    for python in dict.fromkeys((sys.executable, _SYSTEMS_PYTHON)):
        answer = host.run_program([python, "-I", "-B", _PROGRAM, *ends], _TIMEOUT_S)
        if not answer.values.get("no_pyverbs"):
            break
    return answer


def _judge(one: Port, other: Port, answer: Answer) -> Finding:
    between = one.name if one is other else f"{one.name} to {other.name}"
    if not answer.error:
        size, mtu = answer.values.get("bytes"), answer.values.get("mtu")
        return ok(f"{between}: {size} bytes written and read by RDMA, in packets of {mtu}")
    assert one.gid is not None
    if "memory" in answer.error.lower():
        fix = "raise the limit of locked memory (see memlock)"
    elif "permission" in answer.error.lower():
        fix = "give this user the devices in /dev/infiniband"
    elif "No such device" in answer.error or "Failed to open" in answer.error:
        fix = "install the NIC's provider (apt-get install ibverbs-providers)"
    else:
        fix = (
            f"try ib_write_bw -d {one.nic} -x {one.gid.index}; look at addresses, routes, firewall "
            "(RoCE is UDP port 4791) and, on InfiniBand, at the subnet manager"
        )
    return fail(f"{between}: {answer.error}", fix)
