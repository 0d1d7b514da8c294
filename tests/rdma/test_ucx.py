"""UCX, as Debian has it, over the two devices: the settings of `Side.environment` work."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.rdma.fabric import Side, sent_by
from tests.support.processes import SCALE, wait_for

pytestmark = pytest.mark.rdma

SIZE, ROUNDS = 1 << 20, 16
_PROGRAM = "ucx_perftest"


@contextmanager
def server_of(side: Side, port: int) -> Iterator[None]:
    """Run the passive side, until the block has ended."""
    with subprocess.Popen(
        [_PROGRAM, "-p", str(port)],
        env={**os.environ, **side.environment},
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(lambda: _listens(port), "the server to listen")
            yield
        finally:
            process.kill()


def _listens(port: int) -> bool:
    """Whether the kernel has a listening socket there: a connection would be taken for a client."""
    with open("/proc/net/tcp") as sockets, open("/proc/net/tcp6") as sockets6:
        return re.search(rf":{port:04X} \S+ 0A ", sockets.read() + sockets6.read()) is not None


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def transfer(test: str, sender: str, sides: Mapping[str, Side]) -> None:
    """Run a test of ucx_perftest between the sides; fail unless its bytes went by RDMA."""
    port = free_port()
    node, client = sides["node"], sides["client"]
    with server_of(node, port), sent_by(sides[sender]) as traffic:
        done = subprocess.run(
            [
                *(_PROGRAM, node.address, "-p", str(port), "-t", test, "-f"),
                *("-s", str(SIZE), "-n", str(ROUNDS), "-w", "0"),
            ],
            env={**os.environ, **client.environment},
            capture_output=True,
            text=True,
            timeout=60 * SCALE,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" {ROUNDS} " in done.stdout, done.stdout
    traffic.assert_by_rdma(SIZE * ROUNDS)


@pytest.mark.parametrize(
    ("test", "sender"), [("ucp_put_bw", "client"), ("ucp_get", "node"), ("tag_bw", "client")]
)
def test_bulk_bytes_go_by_rdma(test: str, sender: str, fabric_sides: Mapping[str, Side]) -> None:
    transfer(test, sender, fabric_sides)


def test_a_link_that_came_back_is_used(fabric_sides: Mapping[str, Side]) -> None:
    fabric_sides["node"].set_link(up=False)
    fabric_sides["node"].set_link(up=True)
    transfer("ucp_get", "node", fabric_sides)


def test_a_dead_link_ends_a_transfer(fabric_sides: Mapping[str, Side]) -> None:
    port = free_port()
    node, client = fabric_sides["node"], fabric_sides["client"]
    endless = ["-t", "ucp_put_bw", "-s", str(SIZE), "-n", str(1 << 30), "-w", "0"]
    with server_of(node, port):
        before = client.counters()["sent_pkts"]
        with subprocess.Popen(
            [_PROGRAM, node.address, "-p", str(port), *endless],
            env={**os.environ, **client.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as transfer:
            try:
                wait_for(lambda: client.counters()["sent_pkts"] > before + 1000, "a transfer")
                assert transfer.poll() is None
                node.set_link(up=False)
                _, said = transfer.communicate(timeout=30 * SCALE)
            finally:
                transfer.kill()
    assert transfer.returncode != 0
    assert "retry" in said, said
