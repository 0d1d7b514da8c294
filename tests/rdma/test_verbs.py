"""Reliable connections between the two devices, by two processes: what is below UCX works."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rdma.fabric import Side, sent_by
from tests.support.processes import read_line

pytestmark = pytest.mark.rdma

SIZE = 4 << 20
SUCCESS = "0"  # IBV_WC_SUCCESS
_PROGRAM = Path(__file__).with_name("verbs_peer.py")


class Peer:
    """A process of verbs_peer.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self.answer()

    def answer(self) -> Any:
        return json.loads(read_line(self._process))

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, line: str) -> Any:
        self.tell(line)
        return self.answer()


@contextmanager
def peer_of(side: Side) -> Iterator[Peer]:
    # pyverbs is a package of Debian's own Python.
    command = ["/usr/bin/python3", str(_PROGRAM), side.device, str(SIZE)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()


@pytest.fixture
def peers(fabric_sides: Mapping[str, Side]) -> Iterator[dict[str, Peer]]:
    with ExitStack() as stack:
        found = {name: stack.enter_context(peer_of(side)) for name, side in fabric_sides.items()}
        for one, other in (("node", "client"), ("client", "node")):
            assert found[one].ask(json.dumps(found[other].address)) == "connected"
        yield found


def test_a_write_and_a_read_go_from_device_to_device(
    peers: dict[str, Peer], fabric_sides: Mapping[str, Side]
) -> None:
    with sent_by(fabric_sides["client"]) as written:
        assert peers["client"].ask("write from the client") == SUCCESS
    assert peers["node"].ask("show") == "from the client"
    written.assert_by_rdma(SIZE)

    assert peers["node"].ask("write from the node") == SUCCESS
    with sent_by(fabric_sides["client"]) as read:
        assert peers["node"].ask("read") == [SUCCESS, "from the node"]
    read.assert_by_rdma(SIZE)


def test_a_dead_link_ends_an_order_with_an_error(
    peers: dict[str, Peer], fabric_sides: Mapping[str, Side]
) -> None:
    fabric_sides["node"].set_link(up=False)
    assert peers["client"].ask("write into the void") != SUCCESS
