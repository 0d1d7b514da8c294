"""What the guest gives to tests: two devices, links that go down, limits on locked memory."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping

import pytest

from tests.rdma.fabric import SIDES, Side, sent_by
from tests.rdma.memlock import limited

pytestmark = pytest.mark.rdma

SIZE = 8 << 20
REGISTER = """
import sys
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
import pyverbs.enums as e
MR(PD(Context(name="rxe0")), int(sys.argv[1]), e.IBV_ACCESS_LOCAL_WRITE)
"""


@pytest.mark.parametrize("name", SIDES)
def test_a_device_is_active_and_counts(name: str, fabric_sides: Mapping[str, Side]) -> None:
    side = fabric_sides[name]
    assert side.is_active()
    assert (side.port / "link_layer").read_text().strip() == "Ethernet"
    gids = [(side.port / "gids" / str(i)).read_text().strip() for i in (0, 1)]
    assert gids[0].startswith("fe80:")
    assert socket.inet_ntop(socket.AF_INET6, _packed(gids[1])) == f"::ffff:{side.address}"
    assert {"sent_pkts", "rcvd_pkts", "retry_exceeded_err"} <= set(side.counters())


def _packed(gid: str) -> bytes:
    return bytes.fromhex(gid.replace(":", ""))


def test_tcp_between_the_sides_crosses_the_link(fabric_sides: Mapping[str, Side]) -> None:
    node, client = fabric_sides["node"], fabric_sides["client"]
    with (
        socket.create_server((node.address, 0)) as server,
        socket.create_connection(server.getsockname()) as sender,
        server.accept()[0] as receiver,
        sent_by(client) as traffic,
    ):
        assert receiver.getpeername()[0] == client.address
        _send(sender, receiver)
    traffic.assert_not_by_rdma(SIZE)
    with pytest.raises(AssertionError):
        traffic.assert_by_rdma(SIZE)


def _send(sender: socket.socket, receiver: socket.socket) -> None:
    piece = bytes(64 << 10)
    for _ in range(SIZE // len(piece)):
        sender.sendall(piece)
        got = 0
        while got < len(piece):
            got += len(receiver.recv(len(piece) - got))


@pytest.mark.parametrize("name", SIDES)
def test_a_link_goes_down_and_comes_back(name: str, fabric_sides: Mapping[str, Side]) -> None:
    side = fabric_sides[name]
    other = next(one for one in fabric_sides.values() if one is not side)
    with socket.create_server((other.address, 0)) as server:
        side.set_link(up=False)
        assert not other.is_active()
        with pytest.raises(OSError), socket.create_connection(server.getsockname(), timeout=1):
            pass
        side.set_link(up=True)
        with socket.create_connection(server.getsockname(), timeout=10) as there:
            assert there.getsockname()[0] == side.address


@pytest.mark.parametrize(("limit", "registers"), [(64 << 10, False), (4 << 20, True)])
def test_locked_memory_is_limited_for_root_too(limit: int, registers: bool) -> None:
    assert os.geteuid() == 0
    command = ["/usr/bin/python3", "-c", REGISTER, str(1 << 20)]
    done = subprocess.run([*limited(limit), *command], capture_output=True, text=True)
    assert (done.returncode == 0) is registers, done.stderr
    if not registers:
        assert "Cannot allocate memory" in done.stderr
