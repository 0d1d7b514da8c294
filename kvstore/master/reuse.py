"""How often a use finds its object at other sizes of the cluster; from what the nodes report."""

from __future__ import annotations

from kvstore import _native, clock
from kvstore._proto import master_pb2, node_pb2, types_pb2
from kvstore.errors import InvalidArgumentError
from kvstore.master.model import Cluster

_HALF_LIFE_MS = 6 * 3600 * 1000
"""A use of this age counts half: the curve is that of the workload of today."""
_REACH = 64
"""Keys are followed until this many times the cluster's size was used since."""
_SIZE_MS = 1_000
"""The cluster's size is added up this often: with every heartbeat it would cost more than these."""


class Reuse:
    """The native curve, fed by heartbeats."""

    def __init__(self) -> None:
        """Begin without any use."""
        self._curve = _native.ReuseCurve(half_life_ms=_HALF_LIFE_MS)
        self._size_bytes = 0
        self._sized_ms = -_SIZE_MS

    def note(self, uses: node_pb2.UseSample, cluster: Cluster) -> int:
        """Take what a heartbeat reports; return the level to sample at.

        Raises:
            InvalidArgumentError: It is no report.
        """
        most = _native.MAX_REPORT_USES * _native.USE_RECORD_BYTES
        if len(uses.records) > most:
            raise InvalidArgumentError(f"uses: at most {most} bytes of records in a heartbeat")
        now_ms = clock.monotonic_ms()
        if now_ms - self._sized_ms >= _SIZE_MS:
            self._sized_ms = now_ms
            size_bytes = sum(sizes(cluster))
            if size_bytes != self._size_bytes:
                self._size_bytes = size_bytes
                self._curve.set_reach(_REACH * size_bytes)
        return self._curve.note(
            level=uses.level,
            records=uses.records,
            hits=uses.hits,
            puts=uses.puts,
            lost=uses.lost_hits,
            capacity_bytes=self._size_bytes,
            now_ms=now_ms,
        )

    def reply(self, cluster: Cluster) -> master_pb2.ReuseReply:
        """Return the curve, and the size of the cluster."""
        found = self._curve.summary(now_ms=clock.monotonic_ms())
        memory, nvme = sizes(cluster)
        return master_pb2.ReuseReply(
            upto_bytes=[upto for upto, _ in found["buckets"]],
            uses=[uses for _, uses in found["buckets"]],
            cold_uses=found["cold"],
            hits=found["hits"],
            puts=found["puts"],
            lost_hits=found["lost"],
            sample_level=found["level"],
            sampled_keys=found["keys"],
            sampled_uses=found["uses"],
            observed_ms=found["since_ms"],
            memory_bytes=found["memory_bytes"],
            busy_us=found["busy_us"],
            dram_capacity_bytes=memory,
            nvme_capacity_bytes=nvme,
        )


def sizes(cluster: Cluster) -> tuple[int, int]:
    """Return the memory and the NVMe space of the living nodes, in bytes."""
    alive = [node for node in cluster.nodes.values() if node.session_id]
    nvme = sum(
        segment.capacity_bytes
        for node in alive
        for segment in node.segments
        if segment.tier == types_pb2.TIER_NVME
    )
    return sum(node.capacity_bytes for node in alive), nvme
