"""A small cluster in which every metric has something to count."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for

SIZE = 64 << 10
SEGMENT = 4 << 20
COUNT = 120
"""Of objects: twice what the memory of a node holds."""


def start(cluster: Cluster, folder: Path) -> None:
    """Start node a, with little memory and an NVMe tier, and node b with memory alone."""
    nvme: dict[str, Any] = {"nvme_dir": str(folder / "nvme"), "nvme_size": "64mb"}
    cluster.start_node("a", segment_size=SEGMENT, labels={}, **nvme)
    cluster.start_node("b", segment_size=SEGMENT, labels={})


def work(cluster: Cluster) -> tuple[kvstore.Store, kvstore.Store]:
    """Put, read from both tiers and by both ways, miss, evict; and be refused once by each.

    Returns:
        The stores that did it: by shared memory, and by sockets.
    """
    local, remote = cluster.connect(), cluster.connect(transport="tcp", namespace="remote")
    for store in (local, remote):
        keys = [f"k/{i}" for i in range(COUNT)]
        for key in keys:
            assert store.put(key, proof(key, SIZE)) is Status.Ok
            wait_for(
                lambda: metric(cluster.nodes["a"], "kvstore_unwritten_bytes") <= SEGMENT / 2,
                "NVMe to keep up",
                20,
            )
        store.put(keys[-1], b"again")
        assert any(store.batch_get(keys))
        store.get("absent")
        store.remove(keys[-1])
    for name in ("b", "a"):
        _be_refused(int(cluster.nodes[name].ports["port"]))
    _be_refused(int(cluster.master.ports["port"]))
    return local, remote


def _be_refused(port: int) -> None:
    """Say what no peer of the block protocol says, and wait until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: kvstore\r\n\r\n")
        while peer.recv(4096):
            pass
