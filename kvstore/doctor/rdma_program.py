"""Writes and reads memory between two RDMA ports of this host; run by its path, without kvstore.

Prints JSON. In a process of its own, because a broken provider may crash or hang; it may also be
run by another interpreter, the one that pyverbs is installed for.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_DEBIANS = "/usr/lib/python3/dist-packages"
_BYTES = 64 << 10
_PACKET_NUMBER = 1
_TIMEOUT, _RETRIES = 12, 3  # 4.096 us * 2^12 = 17 ms, four times
_RNR_TIMER, _RNR_RETRIES = 12, 3
_HOPS = 64
_ETHERNET = 2  # IBV_LINK_LAYER_ETHERNET
# ibv_wc_status of what a network causes.
_STATUSES = {
    4: "local protection error",
    5: "flushed: the queue pair failed before",
    9: "the other side refuses the request",
    10: "the other side refuses access to its memory",
    12: "no answer from the other side (retries exceeded)",
    13: "the other side is not ready (RNR retries exceeded)",
}
_POLLS = 1 << 40  # until the parent's patience ends


def _import_pyverbs() -> None:
    """Import pyverbs, from Debian's folder if this interpreter has none of its own."""
    try:
        import pyverbs
    except ImportError:
        sys.path.append(_DEBIANS)
    import pyverbs.device  # noqa: F401


class End:
    """One side: a port with its memory, completion queue and queue pair."""

    def __init__(self, device: str, port: int, gid_index: int) -> None:
        """Open a port.

        Args:
            device: its NIC, as mlx5_0.
            port: its number.
            gid_index: of the port's table.
        """
        from pyverbs import enums
        from pyverbs.cq import CQ
        from pyverbs.device import Context
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

        self.port, self.gid_index = port, gid_index
        self.context = Context(name=device)
        self.attributes = self.context.query_port(port)
        self.gid = self.context.query_gid(port, gid_index)
        self.domain = PD(self.context)
        access = (
            enums.IBV_ACCESS_LOCAL_WRITE
            | enums.IBV_ACCESS_REMOTE_WRITE
            | enums.IBV_ACCESS_REMOTE_READ
        )
        self.memory = MR(self.domain, _BYTES, access)
        self.completions = CQ(self.context, 8)
        capacity = QPCap(max_send_wr=4, max_recv_wr=4, max_send_sge=1, max_recv_sge=1)
        kind = enums.IBV_QPT_RC
        init = QPInitAttr(
            qp_type=kind, scq=self.completions, rcq=self.completions, cap=capacity, sq_sig_all=1
        )
        attr = QPAttr(port_num=port)
        attr.qp_access_flags = access
        self.pair = QP(self.domain, init, attr)

    def connect(self, other: End) -> None:
        """Connect this side's queue pair to the other's."""
        from pyverbs.addr import AHAttr, GlobalRoute
        from pyverbs.qp import QPAttr

        attr = QPAttr(port_num=self.port)
        attr.dest_qp_num = other.pair.qp_num
        attr.path_mtu = min(self.attributes.active_mtu, other.attributes.active_mtu)
        attr.rq_psn = attr.sq_psn = _PACKET_NUMBER
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 1
        attr.min_rnr_timer = _RNR_TIMER
        attr.timeout, attr.retry_cnt, attr.rnr_retry = _TIMEOUT, _RETRIES, _RNR_RETRIES
        route = GlobalRoute(dgid=other.gid, sgid_index=self.gid_index, hop_limit=_HOPS)
        is_global = self.attributes.link_layer == _ETHERNET
        attr.ah_attr = AHAttr(
            gr=route, is_global=int(is_global), dlid=other.attributes.lid, port_num=self.port
        )
        self.pair.to_rts(attr)

    def transfer(self, name: str, opcode: int, other: End) -> None:
        """Post one request against the other side's memory, and wait for its completion."""
        from pyverbs.wr import SGE, SendWR

        element = SGE(self.memory.buf, _BYTES, self.memory.lkey)
        request = SendWR(opcode=opcode, num_sge=1, sg=[element])
        request.set_wr_rdma(other.memory.rkey, other.memory.buf)
        self.pair.post_send(request)
        for _ in range(_POLLS):
            count, done = self.completions.poll()
            if count:
                break
        if done[0].status:
            status = _STATUSES.get(done[0].status, f"completed with status {done[0].status}")
            raise RuntimeError(f"{name}: {status}")


def exchange(source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """Write random bytes from one port into memory behind another, and read them back."""
    from pyverbs import enums

    one = End(source["device"], source["port"], source["gid_index"])
    other = End(target["device"], target["port"], target["gid_index"])
    one.connect(other)
    other.connect(one)
    sent = os.urandom(_BYTES)
    one.memory.write(sent, _BYTES)
    one.transfer("write", enums.IBV_WR_RDMA_WRITE, other)
    if other.memory.read(_BYTES, 0) != sent:
        raise RuntimeError("write: other bytes arrived than were sent")
    wanted = os.urandom(_BYTES)
    other.memory.write(wanted, _BYTES)
    one.transfer("read", enums.IBV_WR_RDMA_READ, other)
    if one.memory.read(_BYTES, 0) != wanted:
        raise RuntimeError("read: other bytes arrived than are there")
    return {
        "bytes": _BYTES,
        "mtu": 128 << min(one.attributes.active_mtu, other.attributes.active_mtu),
    }


def main() -> None:
    """Print one JSON object: what was done, or an error."""
    try:
        _import_pyverbs()
    except ImportError as error:
        answer: dict[str, Any] = {"error": str(error), "no_pyverbs": True}
    else:
        try:
            answer = exchange(json.loads(sys.argv[1]), json.loads(sys.argv[2]))
        except Exception as error:  # PyverbsError is known only once it is imported
            answer = {"error": f"{error}"}
    print("\n" + json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # a broken provider may hang in its destructors


if __name__ == "__main__":
    main()
