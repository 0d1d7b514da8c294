"""One store, reached in every way: by shared memory, by TCP, by UCX."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore
from tests.support.cluster import Cluster
from tests.support.processes import SCALE, wait_for
from tests.support.transports import REMOTE, moved

WAYS = ["shm", *REMOTE]


@pytest.fixture(scope="session", params=WAYS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster | None]:
    """A node that is reached in this way, for all tests; None: each test embeds its own."""
    if request.param == "shm":
        yield None
        return
    cluster = Cluster(tmp_path_factory.mktemp("contract"), transport=request.param)
    try:
        cluster.start_node("embedded")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def way(served: Cluster | None) -> str:
    """How the store reaches its objects: "shm", "tcp" or "ucx"."""
    return "shm" if served is None else served.transport


@pytest.fixture(scope="session")
def remote(served: Cluster | None) -> kvstore.Store | None:
    """A client of that node; over RDMA it takes seconds to connect."""
    if served is None:
        return None
    return served.connect(transport=served.transport, timeout_ms=int(30_000 * SCALE))


@pytest.fixture
def store(remote: kvstore.Store | None, way: str) -> Iterator[kvstore.Store]:
    """A store without objects, of 64 MiB. All of its bytes have to take the way.

    Where processors are emulated UCX may take longer than clients wait for it; TCP serves then.
    """
    if remote is None:
        with kvstore.open(segment_size="64mb") as opened:
            yield opened
        return
    if way == "ucx":
        count = iter(range(1000))
        wait_for(lambda: uses_ucx(remote, f"first/{next(count)}"), "UCX to be used", 60)
        remote.flush()
    before = moved(remote)
    yield remote
    remote.flush()
    for name, now in moved(remote).items():
        assert name.endswith(way) or now == before[name] or SCALE > 10, name


def uses_ucx(store: kvstore.Store, key: str) -> bool:
    """Whether an object goes by UCX, which is left alone for a while when it has failed."""
    before = moved(store)
    assert store.put(key, key.encode()) is kvstore.Status.Ok and store.get(key) == key.encode()
    after = moved(store)
    return all(after[name] > before[name] for name in ("bytes_ucx", "put_bytes_ucx"))
