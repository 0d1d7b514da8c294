"""Integrations over each way to a store: their option, the bytes, and the pool that they register.

vLLM's is in test_vllm_sides.py; the engines themselves are in tests/engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvstore.compat.mooncake import MooncakeDistributedStore
from kvstore.compat.mooncake.memory import Addresses
from kvstore.integrations.sglang.backend import HiCacheBackend
from kvstore.integrations.vllm import options as vllm_options
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import SCALE
from tests.support.transports import AT_CLIENT, REMOTE
from tests.unit.test_sglang_integration import HostPool, config, indices, names

MIB = 1 << 20
# Engines are given an address, which an embedded store has not.
by_address = pytest.mark.parametrize("served", REMOTE, indirect=True, scope="session")


@pytest.fixture
def node(served: Cluster | None, way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The node, for engines that are told the transport alone: UCX is set up by its variables."""
    assert served is not None
    for name, value in AT_CLIENT.items() if way == "ucx" else ():
        monkeypatch.setenv(f"UCX_{name.removeprefix('UCX_')}", value)
    yield served
    with served.connect() as store:
        store.remove_prefix("")


class Registrable(HostPool):
    """A host pool whose buffer is a tensor: it says where it is, as those of SGLang do."""

    def __init__(self) -> None:
        super().__init__()
        self.kv_buffer = self.kv_buffer.view(Located)


class Located(np.ndarray[Any, Any]):
    def data_ptr(self) -> int:
        return int(self.ctypes.data)


@by_address
def test_sglangs_pages(node: Cluster, way: str) -> None:
    pool = HostPool()
    pool.fill()
    written = pool.kv_buffer.copy()
    extra = {"transport": way, "timeout_ms": int(10_000 * SCALE)}
    backend = HiCacheBackend(config(node.address, extra), {})
    try:
        backend.register_mem_pool_host(pool)
        pages = len(written[0, 0]) // pool.page_size
        assert backend.batch_set_v1(names(pages), indices(pages)) == [True] * pages
        pool.kv_buffer[:] = 0
        assert backend.batch_get_v1(names(pages), indices(pages)) == [True] * pages
        assert (pool.kv_buffer == written).all()
        store = backend._store
        assert store is not None
        stats: Any = store.stats()
        assert stats[f"bytes_{way}"] == stats[f"put_bytes_{way}"] == written.nbytes
    finally:
        backend.close()


@by_address
def test_a_pool_is_registered_until_the_store_is_closed(node: Cluster, way: str) -> None:
    backend = HiCacheBackend(config(node.address, {"transport": way}), {})
    pool, later = Registrable(), Registrable()
    backend.register_mem_pool_host(pool)
    store = backend._store
    assert store is not None
    registered = [store._client.ucx_state()["registered_bytes"]]
    backend.register_mem_host_pool_v2(later, "mamba")
    registered.append(store._client.ucx_state()["registered_bytes"])
    backend.register_mem_host_pool_v2(later, "mamba")  # once more is no other memory
    registered.append(store._client.ucx_state()["registered_bytes"])
    backend.close()
    registered.append(store._client.ucx_state()["registered_bytes"])
    size = pool.kv_buffer.nbytes
    assert registered == [size, 2 * size, 2 * size, 0]


@by_address
def test_mooncakes_buffers(node: Cluster, way: str) -> None:
    store = MooncakeDistributedStore()
    setup = {
        "local_hostname": "localhost",
        "metadata_server": "P2PHANDSHAKE",
        "global_segment_size": 0,
        "master_server_address": node.address,
        "transport": way,
        "timeout_ms": int(10_000 * SCALE),
    }
    assert store.setup(setup) == 0
    try:
        pool = memoryview(bytearray(2 * MIB))
        with Addresses([pool]) as at:
            (base,) = at.pointers
            assert store.register_buffer(base, len(pool)) == 0
            keys = [f"m/{i}" for i in range(4)]
            values = [proof(key, MIB // 4) for key in keys]
            for i, value in enumerate(values):
                pool[i * MIB // 4 :][: MIB // 4] = value
            sizes = [MIB // 4] * 4
            places = [base + i * MIB // 4 for i in range(4)]
            assert store.batch_put_from(keys, places, sizes) == [0] * 4
            assert (
                store.batch_get_into(keys, [base + MIB + i * MIB // 4 for i in range(4)], sizes)
                == sizes
            )
            assert pool[MIB:] == b"".join(values)
            assert store.unregister_buffer(base) == 0
        stats = store.stats()
        assert stats[f"bytes_{way}"] == stats[f"put_bytes_{way}"] == MIB
        assert store.remove_all() >= 0
    finally:
        assert store.close() == 0


def test_a_wrong_transport_is_named() -> None:
    with pytest.raises(ValueError, match="transport"):
        vllm_options.Options.of({"master": "h:1", "transport": "rdma"}).open_store("n")
