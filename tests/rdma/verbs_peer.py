"""One side of a reliable connection, by Debian's pyverbs: python3 verbs_peer.py DEVICE SIZE.

A program for the system's interpreter, without this package. It prints a line of JSON that says
where its memory is and waits for the other side's. Then each line that it reads is an order:
"write TEXT" and "read" use the other side's memory, "show" its own; each is answered by a line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

PORT, IPV4_GID, FIRST_PACKET = 1, 1, 0
RIGHTS = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


class Peer:
    """A queue pair, the memory that the other side may use, and memory for its own orders."""

    def __init__(self, device: str, size: int) -> None:
        self.size = size
        self.context = Context(name=device)
        self.domain = PD(self.context)
        self.completions = CQ(self.context, 16)
        self.shared = MR(self.domain, size, RIGHTS)
        self.private = MR(self.domain, size, e.IBV_ACCESS_LOCAL_WRITE)
        attributes = QPInitAttr(
            qp_type=e.IBV_QPT_RC,
            scq=self.completions,
            rcq=self.completions,
            cap=QPCap(max_send_wr=16, max_recv_wr=1),
        )
        self.queue = QP(self.domain, attributes)
        self.other: dict[str, Any] = {}

    def address(self) -> dict[str, Any]:
        return {
            "queue": self.queue.qp_num,
            "gid": str(self.context.query_gid(PORT, IPV4_GID)),
            "memory": self.shared.buf,
            "key": self.shared.rkey,
        }

    def connect(self, other: dict[str, Any]) -> None:
        self.other = other
        route = GlobalRoute(dgid=GID(other["gid"]), sgid_index=IPV4_GID, hop_limit=1)
        attributes = QPAttr(port_num=PORT)
        attributes.qp_access_flags = RIGHTS
        attributes.dest_qp_num = other["queue"]
        attributes.path_mtu = e.IBV_MTU_4096
        attributes.rq_psn = attributes.sq_psn = FIRST_PACKET
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = 12
        attributes.timeout = 14
        attributes.retry_cnt = attributes.rnr_retry = 3  # soft-RoCE takes 7 for any number
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=PORT)
        self.queue.to_rts(attributes)

    def order(self, operation: int) -> str:
        """Move the whole memory from or to the other side; returns the completion's status."""
        piece = SGE(self.private.buf, self.size, self.private.lkey)
        request = SendWR(opcode=operation, num_sge=1, sg=[piece], send_flags=e.IBV_SEND_SIGNALED)
        request.set_wr_rdma(self.other["key"], self.other["memory"])
        self.queue.post_send(request)
        while True:  # the test has a deadline
            count, found = self.completions.poll()
            if count:
                return str(found[0].status)

    def obey(self, line: str) -> object:
        word, _, text = line.partition(" ")
        if word == "write":
            self.private.write(text.encode().ljust(self.size, b"."), self.size)
            return self.order(e.IBV_WR_RDMA_WRITE)
        if word == "read":
            status = self.order(e.IBV_WR_RDMA_READ)
            return [status, self.private.read(self.size, 0).decode().rstrip(".")]
        return self.shared.read(self.size, 0).decode().rstrip(".")


def main() -> None:
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    say(peer.address())
    peer.connect(json.loads(sys.stdin.readline()))
    say("connected")
    for line in sys.stdin:
        say(peer.obey(line.rstrip("\n")))


if __name__ == "__main__":
    main()
