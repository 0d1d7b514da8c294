"""The two sides of the guest's link, and what proves how bytes went from one to the other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import wait_for

INFINIBAND = Path("/sys/class/infiniband")
MTU_BYTES = 4096
"""What an RDMA packet carries at most: the largest power of two below the link's 9000 bytes."""
_FABRIC = Path(__file__).resolve().parent / "guest" / "fabric.sh"


@dataclass(frozen=True)
class Side:
    """One end of the link: what a process needs to play the host there."""

    device: str
    interface: str
    address: str

    @property
    def environment(self) -> dict[str, str]:
        """Settings of UCX, to be added to the process's environment.

        Soft-RoCE needs the link-local GID 0: with the IPv4 one UCX 1.13 loses the packets that set
        up a connection. It is set up by unreliable datagrams, so rc_verbs alone connects nothing.
        UCX's own number of retries, 7, is taken for any number: a dead link would be no error.
        """
        return {
            "UCX_IB_GID_INDEX": "0",
            "UCX_TLS": "rc_verbs,ud_verbs,self",
            "UCX_NET_DEVICES": f"{self.device}:1",
            "UCX_RC_RETRY_COUNT": "3",
        }

    @property
    def port(self) -> Path:
        return INFINIBAND / self.device / "ports" / "1"

    def is_active(self) -> bool:
        return "ACTIVE" in (self.port / "state").read_text()

    def counters(self) -> dict[str, int]:
        """Return the device's counters since its creation: sent_pkts, rcvd_pkts and others."""
        files = (self.port / "hw_counters").iterdir()
        return {file.name: int(file.read_text()) for file in files if file.name != "lifespan"}

    def sent_bytes(self) -> int:
        """Return what has left by the link, RDMA and all else, with headers."""
        statistics = Path("/sys/class/net") / self.interface / "statistics"
        return int((statistics / "tx_bytes").read_text())

    def set_link(self, up: bool) -> None:
        """Take this end of the link down or up, and wait until its port is in that state.

        While it is down, the other end has no carrier, and its port is down, too.
        """
        state = "up" if up else "down"
        subprocess.run(["ip", "link", "set", self.interface, state], check=True)
        if up:
            subprocess.run(["sh", str(_FABRIC)], check=True)
        wait_for(lambda: self.is_active() is up, f"{self.device} to be {state}")


NODE = Side("rxe0", "veth0", "10.77.0.1")
CLIENT = Side("rxe1", "veth1", "10.77.0.2")
SIDES = {"node": NODE, "client": CLIENT}


@dataclass
class Traffic:
    """What one side has sent while it was watched."""

    link_bytes: int = 0
    rdma_packets: int = 0

    def assert_by_rdma(self, size_bytes: int) -> None:
        """Fail unless this much went by RDMA, and not once more by anything else."""
        assert self.rdma_packets * MTU_BYTES >= size_bytes, self
        # A busy machine makes soft-RoCE send some packets again: those do not count.
        beside = self.link_bytes - self.rdma_packets * MTU_BYTES
        assert size_bytes <= self.link_bytes and beside < size_bytes // 2 + (64 << 10), self

    def assert_not_by_rdma(self, size_bytes: int) -> None:
        """Fail unless this much went over the link without RDMA."""
        assert self.link_bytes >= size_bytes, self
        assert self.rdma_packets * MTU_BYTES < size_bytes // 10, self


@contextmanager
def sent_by(side: Side) -> Iterator[Traffic]:
    """Watch what a side sends; the result is complete when the block has ended."""
    traffic = Traffic()
    bytes_before, counters_before = side.sent_bytes(), side.counters()
    yield traffic
    traffic.link_bytes = side.sent_bytes() - bytes_before
    traffic.rdma_packets = side.counters()["sent_pkts"] - counters_before["sent_pkts"]
