"""What a node tells the master about itself with every heartbeat, to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvstore import __version__
from kvstore._proto import node_pb2
from kvstore.limits import MAX_LACKS
from kvstore.node.http import degraded


def of(
    stats: Mapping[str, Any], restart_loses: str, more: Sequence[str], config_refused: str
) -> node_pb2.NodeHealth:
    """Collect it.

    Args:
        stats: of NodeCoreApi.stats().
        restart_loses: as in kvstore.node.http.degraded.
        more: what else the node lacks, a sentence each.
        config_refused: why its configuration file is not in effect; empty: it is.
    """
    nvme = stats["nvme"]
    return node_pb2.NodeHealth(
        software_version=__version__,
        lacks=[*degraded(stats, restart_loses), *more][:MAX_LACKS],
        config_refused=config_refused,
        nvme=None
        if nvme is None
        else node_pb2.NvmeTier(
            state=nvme["state"],
            capacity_bytes=nvme["capacity_bytes"],
            object_bytes=nvme["object_bytes"],
            objects=nvme["objects"],
        ),
    )
