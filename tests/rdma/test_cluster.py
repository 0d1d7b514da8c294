"""The whole product in the guest: processes, shared memory, and bytes over its link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from kvstore import Status
from tests.rdma.fabric import NODE, Side, sent_by
from tests.support.cluster import Cluster
from tests.support.payloads import proof

pytestmark = [pytest.mark.rdma, pytest.mark.cluster]

SIZE, OBJECTS = 1 << 20, 8


@pytest.fixture(scope="module")
def rdma_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master and the node "a" on the node's side of the link; their start takes long."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), host=NODE.address)
    try:
        cluster.start_node("a", host=NODE.address)
        yield cluster
    finally:
        cluster.close()


def test_objects_go_over_tcp(rdma_cluster: Cluster, fabric_sides: Mapping[str, Side]) -> None:
    keys = [f"page/{i}" for i in range(OBJECTS)]
    pages = [proof(key, SIZE) for key in keys]
    client = rdma_cluster.connect(transport="tcp")
    with sent_by(fabric_sides["client"]) as put:
        assert client.batch_put(keys, pages) == [Status.Ok] * OBJECTS
    put.assert_not_by_rdma(SIZE * OBJECTS)
    with sent_by(fabric_sides["node"]) as got:
        assert client.batch_get(keys) == pages
    got.assert_not_by_rdma(SIZE * OBJECTS)


def test_objects_are_read_in_shared_memory(
    rdma_cluster: Cluster, fabric_sides: Mapping[str, Side]
) -> None:
    client = rdma_cluster.connect()
    assert client.put("mapped", proof("mapped", SIZE)) is Status.Ok
    with sent_by(fabric_sides["node"]) as got:
        assert client.get("mapped") == proof("mapped", SIZE)
    assert got.link_bytes < SIZE // 10
    assert client.stats()["bytes_shm"] == SIZE
