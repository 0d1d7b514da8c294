"""The SGLang backend without SGLang: both shapes of its interface, names, hits, failures."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.embedded import _Servers
from kvstore.errors import InvalidArgumentError, Status, UnauthenticatedError
from kvstore.integrations import options as options_module
from kvstore.integrations.sglang import backend as backend_module
from kvstore.integrations.sglang import hits
from kvstore.integrations.sglang.backend import HiCacheBackend
from kvstore.integrations.sglang.naming import Ranks, pages_namespace, pool_digest
from kvstore.integrations.sglang.options import Options
from tests.unit.sglang_shapes import NEW, OLD, Metrics, PoolTransfer, PoolTransferResult, install

LAYERS, PAGE, PAGES, ROW = 3, 4, 8, 16  # ROW: bytes of one token in one layer, of k and of v


class Tensor:
    """What the backend asks of a tensor in host memory."""

    is_cuda = False

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def numel(self) -> int:
        return self.array.size

    def element_size(self) -> int:
        return self.array.itemsize

    def is_contiguous(self) -> bool:
        return self.array.flags.c_contiguous

    def detach(self) -> Tensor:
        return self

    cpu = detach

    def contiguous(self) -> Tensor:
        return Tensor(np.ascontiguousarray(self.array))


class HostPool:
    """Memory laid out layer by layer, as SGLang's layer_first: k and v of each layer apart."""

    def __init__(self, layout: str = "layer_first", addresses: bool = True) -> None:
        self.layout, self.dtype, self.page_size, self.layer_num = layout, "bf16", PAGE, LAYERS
        self.kv_buffer = np.zeros((2, LAYERS, PAGE * PAGES, ROW), np.uint8)
        self.addresses = addresses

    def get_page_buffer_meta(self, indices: list[int]) -> tuple[list[int], list[int]]:
        if not self.addresses:
            raise NotImplementedError
        pointers = [
            self.kv_buffer[half, layer, index:].ctypes.data
            for index in indices[::PAGE]
            for layer in range(LAYERS)
            for half in (0, 1)
        ]
        return pointers, [PAGE * ROW] * len(pointers)

    def page(self, index: int) -> np.ndarray[Any, Any]:
        return self.kv_buffer[:, :, index : index + PAGE]

    def get_data_page(self, index: int) -> Tensor:
        return Tensor(self.page(index).copy().reshape(-1))

    def get_dummy_flat_data_page(self) -> Tensor:
        return Tensor(np.zeros(2 * LAYERS * PAGE * ROW, np.uint8))

    def set_from_flat_data_page(self, index: int, page: Tensor) -> None:
        self.page(index)[:] = page.array.reshape(2, LAYERS, PAGE, ROW)

    def fill(self) -> None:
        self.kv_buffer[:] = np.random.default_rng(7).integers(0, 256, self.kv_buffer.shape)


def indices(pages: int, first: int = 0) -> list[int]:
    return list(range(first * PAGE, (first + pages) * PAGE))


def names(pages: int) -> list[str]:
    return [f"{number:064x}" for number in range(pages)]


def config(address: str, extra: dict[str, Any] | None = None, **values: Any) -> Any:
    wanted = {"master": address, "interface_v1": 1, **(extra or {})}
    given = {"tp_rank": 0, "tp_size": 1, "is_mla_model": False, "model_name": "a/model"}
    return SimpleNamespace(**{**given, "extra_config": wanted, **values})


@pytest.fixture(scope="module")
def master() -> Iterator[str]:
    servers = _Servers(64 << 20, "", "default")
    yield servers.address
    servers.stop()


Make = Callable[..., HiCacheBackend]


@pytest.fixture
def make(master: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes backends with a host pool, in namespaces of this test's own."""
    made: list[HiCacheBackend] = []

    def make(
        pool: Any = None,
        extra: dict[str, Any] | None = None,
        kind: Any = HiCacheBackend,
        **how: Any,
    ) -> HiCacheBackend:
        own = {"weights_revision": request.node.name, **(extra or {})}
        backend = kind(config(master, own, **how), {})
        assert isinstance(backend, HiCacheBackend)
        made.append(backend)
        backend.register_mem_pool_host(pool if pool is not None else HostPool())
        return backend

    yield make
    for backend in made:
        backend.close()


# --- importing ---


def test_the_package_is_imported_without_sglang() -> None:
    code = """
import sys
import kvstore.integrations.sglang as package
import kvstore.integrations.sglang.backend
assert not any(name == "sglang" or name.startswith("sglang.") for name in sys.modules)
try:
    package.KVStoreHiCache
except ImportError as error:
    assert error.name.startswith("sglang")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_has_no_other_names() -> None:
    from kvstore.integrations import sglang

    with pytest.raises(AttributeError, match="no attribute 'HiCache'"):
        _ = sglang.HiCache


@pytest.mark.parametrize("version", [OLD, NEW])
def test_the_class_fits_both_versions(
    version: str, make: Make, monkeypatch: pytest.MonkeyPatch, master: str
) -> None:
    storage = install(monkeypatch, version)
    from kvstore.integrations.sglang import KVStoreHiCache

    assert issubclass(KVStoreHiCache, storage.HiCacheStorage)
    extra = {"master": master, "interface_v1": 1, "backend_name": "kvstore"}
    made = storage.HiCacheStorageConfig(0, 1, model_name="a/model", extra_config=extra)
    pool = HostPool()
    pool.fill()
    backend: Any = KVStoreHiCache(made, {})
    backend.register_mem_pool_host(pool)
    try:
        assert backend.counters().get("peers_failures") is None
        # 0.5.6's HiCacheStorageExtraInfo has this default.
        info = SimpleNamespace(prefix_keys=(None,), extra_info=None)
        assert backend.batch_set_v1(names(2), indices(2), info) == [True, True]
        assert backend.batch_exists(names(3), info) == 2
        stats = backend.get_stats()
        assert isinstance(stats, Metrics)
        assert (stats.backup_pgs, stats.prefetch_pgs) == ([2], [])
        with monkeypatch.context() as another_version:
            for name in ("observability.metrics_collector", "metrics.collector"):
                another_version.setitem(sys.modules, f"sglang.srt.{name}", None)
            assert backend.get_stats() is None
        if version == NEW:
            result = backend.batch_exists_v2(names(3), [PoolTransfer("unknown")])
            assert result == PoolTransferResult(0, {}, [])
            assert backend.batch_exists_v2(names(3)) == PoolTransferResult(2, {"kv": 2}, [1, 2])
    finally:
        backend.clear()
        backend.close()
        monkeypatch.delitem(sys.modules, "kvstore.integrations.sglang.hicache")


# --- options ---


def test_options_are_read_from_among_sglangs_own() -> None:
    read = Options.of(
        {"master": ["a:1", "b:1"], "interface_v1": 1, "class_name": "x", "prefill_tokens_per_s": 5}
    )
    assert read == Options(master=("a:1", "b:1"), interface_v1=True, prefill_tokens_per_s=5.0)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({}, "'master' is missing"),
        (None, "'master' is missing"),
        ({"mastr": "a:1"}, "unknown key 'mastr'; did you mean 'master'"),
        ({"master": "a:1", "foo": 1}, "known keys: master, tenant, token_file"),
        ({"master": 5}, "'master' must be a string"),
        ({"master": []}, "'master' must be a string"),
        ({"master": "a:1", "timeout_ms": "5"}, "'timeout_ms' must be a whole number"),
        ({"master": "a:1", "timeout_ms": True}, "'timeout_ms' must be a whole number"),
        ({"master": "a:1", "replicas": 0}, "replicas must be 1 to 8"),
        ({"master": "a:1", "ttl_ms": 1 << 40}, "ttl_ms must be"),
        ({"master": "a:1", "tenant": 7}, "'tenant' must be a string"),
        ({"master": "a:1", "prefill_tokens_per_s": -1}, "must be a number, 0 or more"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(extra: Any, sentence: str) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence):
        Options.of(extra)


def test_what_only_the_user_can_fix_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def connect(*_: Any, **__: Any) -> Any:
        raise UnauthenticatedError("a wrong token")

    monkeypatch.setattr(options_module, "connect", connect)
    with pytest.raises(UnauthenticatedError):
        HiCacheBackend(config("127.0.0.1:1")).register_mem_pool_host(HostPool())


# --- names ---


def test_ranks_share_a_namespace_and_differ_in_keys() -> None:
    pool = HostPool()
    ranks = [Ranks(tp_rank=tp, tp_size=2, pp_rank=pp, pp_size=2) for tp in (0, 1) for pp in (0, 1)]
    assert len({pages_namespace("m", {}, pool, one, True) for one in ranks}) == 1
    assert len({one.suffixes(True, 1)[0] for one in ranks}) == 4
    other = Ranks(tp_rank=0, tp_size=4, pp_rank=0, pp_size=2)
    assert pages_namespace("m", {}, pool, other, True) != pages_namespace(
        "m", {}, pool, ranks[0], True
    )


def test_replicated_pages_have_one_name_whatever_the_number_of_ranks() -> None:
    pool = HostPool()
    two, four = (Ranks(tp_rank=1, tp_size=size, replicated=True) for size in (2, 4))
    assert pages_namespace("m", {}, pool, two, True) == pages_namespace("m", {}, pool, four, True)
    assert two.suffixes(False, 1) == four.suffixes(False, 1) == [""]
    assert two.suffixes(True, 1) != four.suffixes(True, 1)  # state that is not replicated


def test_context_parallel_ranks_hold_other_pages_even_where_replicated() -> None:
    ranks = [Ranks(cp_rank=rank, cp_size=2, replicated=True) for rank in (0, 1)]
    assert [one.suffixes(False, 1) for one in ranks] == [[".cp0"], [".cp1"]]


def test_a_page_split_by_heads_is_what_more_ranks_have_whole() -> None:
    one = Ranks.of(
        config("a:1", tp_size=1, should_split_heads=True, tp_lcm_size=2, is_mla_model=False)
    )
    second_of_two = Ranks(tp_rank=1, tp_size=2)
    assert one.suffixes(True, one.split)[1] == second_of_two.suffixes(True, 1)[0]
    assert one.facts() == second_of_two.facts()
    halves = (
        SimpleNamespace(head_num=8, size_per_token=64),
        SimpleNamespace(head_num=4, size_per_token=32),
    )
    assert pool_digest(halves[0], 2) == pool_digest(halves[1], 1)


@pytest.mark.parametrize("name", ["layout", "dtype", "page_size"])
def test_another_format_has_another_namespace(name: str) -> None:
    pool, other = HostPool(), HostPool()
    setattr(other, name, 64)
    ranks = Ranks()
    spaces = {pages_namespace("m", {}, one, ranks, True) for one in (pool, other)}
    spaces.add(pages_namespace("m", {}, pool, ranks, False))
    spaces.add(pages_namespace("m", {"revision": "2"}, pool, ranks, True))
    assert len(spaces) == 4


# --- hits ---


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 5))
def test_trailing_pages_are_those_whose_window_is_complete(
    present: list[bool], window: int
) -> None:
    lengths = [n for n in range(1, len(present) + 1) if all(present[max(0, n - window) : n])]
    assert hits.resumable(hits.TRAILING_PAGES, window, present) == lengths


@given(st.lists(st.booleans(), max_size=20))
def test_all_pages_are_a_prefix(present: list[bool]) -> None:
    run = present.index(False) if False in present else len(present)
    assert hits.resumable(hits.ALL_PAGES, 1, present) == list(range(1, run + 1))
    assert hits.resumable("a later policy", 1, present) == []


# --- pages ---


@pytest.mark.parametrize("addresses", [True, False], ids=["by address", "flat"])
def test_pages_come_back_where_they_are_wanted(make: Make, addresses: bool) -> None:
    source, target = HostPool(addresses=addresses), HostPool(addresses=addresses)
    source.fill()
    assert make(source).batch_set_v1(names(3), indices(3)) == [True] * 3
    reader = make(target)
    assert reader.batch_exists(names(5)) == 3
    assert reader.batch_get_v1(names(4), indices(4, first=2)) == [True, True, True, False]
    np.testing.assert_array_equal(target.page(2 * PAGE), source.page(0))
    np.testing.assert_array_equal(target.page(4 * PAGE), source.page(2 * PAGE))
    assert reader.counters()["bytes_read"] == 3 * 2 * LAYERS * PAGE * ROW
    assert reader.counters()["pages_missed"] == 1


def test_pages_in_another_order_of_bytes_have_other_names(make: Make) -> None:
    assert make(HostPool(addresses=True)).batch_set_v1(names(2), indices(2)) == [True, True]
    flat = make(HostPool(addresses=False))
    assert flat.batch_exists(names(2)) == 0
    assert flat.batch_get_v1(names(2), indices(2)) == [False, False]


def test_what_is_there_already_is_a_success(make: Make) -> None:
    backend = make()
    assert backend.batch_set_v1(names(2), indices(2)) == [True, True]
    assert backend.batch_set_v1(names(3), indices(3)) == [True] * 3
    assert backend.counters()["objects_existing"] == 2
    assert backend.counters()["bytes_written"] == 3 * 2 * LAYERS * PAGE * ROW


def test_more_pages_than_a_batch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "_BATCH_PAGES", 2)
    source, target = HostPool(), HostPool()
    source.fill()
    assert make(source).batch_set_v1(names(7), indices(7)) == [True] * 7
    assert make(target).batch_get_v1(names(7), indices(7)) == [True] * 7
    np.testing.assert_array_equal(
        target.kv_buffer[:, :, : 7 * PAGE], source.kv_buffer[:, :, : 7 * PAGE]
    )


def test_a_page_of_another_size_is_a_miss(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    backend = make()
    key = backend._pools["kv"].keys(names(1))[0]
    assert backend._open().put(key, b"short") == Status.Ok
    with caplog.at_level(logging.WARNING):
        assert backend.batch_get_v1(names(1), indices(1)) == [False]
    assert "another size" in caplog.text
    assert backend.counters()["wrong_size"] == 1


def test_a_batch_is_a_chain_after_the_pages_before_it(make: Make) -> None:
    backend = make()
    parents: list[str] = []

    def put(keys: list[str], pointers: Any, sizes: Any, **how: Any) -> list[Status]:
        parents.append(how["parent"])
        return [Status.Ok] * len(keys)

    store: Any = SimpleNamespace(batch_put_from=put, close=lambda: None)
    backend._store = store
    page = names(1)[0]
    for prefix in ([page], [], None, (None,)):
        backend.batch_set_v1(names(2), indices(2), SimpleNamespace(prefix_keys=prefix))
    assert parents == [backend._pools["kv"].keys([page])[0], "-", "-", "-"]


def test_the_old_interface(make: Make) -> None:
    backend = make(extra={"interface_v1": 0})
    pages = [np.full(100, number, np.uint8) for number in range(3)]
    assert backend.batch_set(names(3), [Tensor(page) for page in pages])
    assert backend.batch_exists(names(4)) == 3
    assert backend.exists(names(1)[0])
    targets = [Tensor(np.zeros(100, np.uint8)) for _ in range(4)]
    found = backend.batch_get(names(4), targets)
    assert found == [*targets[:3], None]
    np.testing.assert_array_equal(targets[2].array, pages[2])
    by_address = np.zeros(100, np.uint8)
    where = by_address.ctypes.data
    assert backend.get(names(2)[1], where, 100) == where
    np.testing.assert_array_equal(by_address, pages[1])
    assert backend.set("f" * 64, target_location=where, target_sizes=100)
    assert backend.get("f" * 64, Tensor(np.zeros(100, np.uint8))) is not None
    assert backend.get("e" * 64, Tensor(np.zeros(100, np.uint8))) is None
    assert backend.get(names(1)[0]) is None  # nowhere to put it
    assert not backend.set("d" * 64)


def test_pools_of_a_hybrid_model(make: Make) -> None:
    backend = make(is_mla_model=True)
    state = HostPool()
    backend.register_mem_host_pool_v2(state, "mamba")
    backend.register_mem_host_pool_v2(HostPool(), "kv")  # the anchor, known already
    backend.batch_set_v1(names(5), indices(5))
    for page in (1, 3):
        transfer = PoolTransfer("mamba", indices(1), names(5)[page : page + 1])
        assert backend.batch_set_v2([transfer]) == {"mamba": [True]}
    wanted = PoolTransfer("mamba", None, names(5)[4:], "trailing_pages")
    assert backend.prefixes_v2(names(6), [wanted]) == (4, {"kv": 5, "mamba": 4}, [2, 4])
    groups = PoolTransfer("mamba", None, names(5), "block_groups")  # says nothing of the KV
    assert backend.prefixes_v2(names(6), [groups]) == (5, {"kv": 5}, [1, 2, 3, 4, 5])
    wanted = PoolTransfer("mamba", None, names(5), "all_pages")
    assert backend.prefixes_v2(names(6), [wanted]) == (0, {"kv": 5}, [])
    other_rank = make(is_mla_model=True, tp_rank=1, tp_size=1)
    other_rank.register_mem_host_pool_v2(HostPool(), "mamba")
    assert other_rank.batch_exists(names(5)) == 5  # replicated
    read = other_rank.batch_get_v2([PoolTransfer("mamba", indices(1), names(2)[1:])])
    assert read == {"mamba": [False]}  # its own


def test_a_logical_anchor_has_no_pages_of_its_own(make: Make) -> None:
    anchor = SimpleNamespace(kv_buffer=None, page_size=PAGE, dtype="u8", layout="layer_first")
    backend = make(anchor)
    backend.register_mem_host_pool_v2(HostPool(), "c4")
    assert backend.batch_set_v1(names(2), indices(2)) == [True, True]
    assert backend.batch_get_v1(names(2), indices(2)) == [True, True]
    backend.batch_set_v2([PoolTransfer("c4", indices(2), names(2))])
    assert backend.prefixes_v2(names(4), [PoolTransfer("c4")])[0] == 2


def test_clear_empties_this_format_only(make: Make) -> None:
    one, other = make(), make(model_name="another/model")
    for backend in (one, other):
        backend.batch_set_v1(names(2), indices(2))
    assert one.clear()
    assert (one.batch_exists(names(2)), other.batch_exists(names(2))) == (0, 2)


# --- failures ---


def test_nothing_escapes(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(HostPool):
        broken = False

        def get_page_buffer_meta(self, indices: list[int]) -> tuple[list[int], list[int]]:
            if self.broken:
                raise ValueError("the pool is gone")
            return super().get_page_buffer_meta(indices)

    pool = Broken()
    backend = make(pool)
    pool.broken = True
    with caplog.at_level(logging.WARNING):
        assert backend.batch_get_v1(names(2), indices(2)) == [False, False]
        assert backend.batch_get_v1(names(2), indices(2)) == [False, False]
        assert backend.batch_set_v1(names(2), indices(1)) == [False, False]
        assert backend.batch_get_v2([PoolTransfer("?", None, names(2))]) == {"?": [False, False]}
        assert backend.batch_set_v2([PoolTransfer("?", indices(1), names(2))]) == {"?": [False] * 2}
        assert not backend.batch_set(names(1), [object()])
        assert backend.batch_get(names(1), [None]) == [None]
    assert caplog.text.count("the pool is gone") >= 1
    assert sum("get failed: the pool is gone" in record.message for record in caplog.records) == 1


def test_a_store_that_is_away_is_asked_by_few(caplog: pytest.LogCaptureFixture) -> None:
    backend = HiCacheBackend(config("unix:@kvstore-nobody", {"timeout_ms": 50}))
    with caplog.at_level(logging.WARNING):
        backend.register_mem_pool_host(HostPool())
        for _ in range(5):
            assert backend.batch_exists(names(2)) == 0
            assert backend.batch_get_v1(names(2), indices(2)) == [False, False]
            assert backend.batch_set_v1(names(2), indices(2)) == [False, False]
    counters = backend.counters()
    assert counters["breaker_open"] == 1
    assert counters["skipped"] == 6
    assert not backend.clear()
    assert "starting without the store" in caplog.text
    backend.close()


def test_where_no_page_can_be_read_none_is_looked_up(make: Make) -> None:
    backend = make()
    backend.batch_set_v1(names(2), indices(2))
    store = backend._open()
    unreachable = [int(Status.DeadlineExceeded)] * 2
    without_nodes: Any = SimpleNamespace(
        lookup=store.lookup, batch_get_into_pointers=lambda *_: unreachable, close=store.close
    )
    backend._store = without_nodes
    for _ in range(3):
        assert backend.batch_exists(names(2)) == 2
        assert backend.batch_get_v1(names(2), indices(2)) == [False, False]
    assert backend.batch_exists(names(2)) == 0
    counters = backend.counters()
    assert (counters["get_failures"], counters["skipped"], counters["breaker_open"]) == (3, 1, 1)


def test_after_the_end_all_is_a_miss(make: Make) -> None:
    backend = make()
    backend.batch_set_v1(names(2), indices(2))
    backend.close()
    backend.close()
    assert backend.batch_exists(names(2)) == 0
    assert backend.batch_get_v1(names(2), indices(2)) == [False, False]


def test_where_computing_is_faster_nothing_is_fetched(make: Make) -> None:
    backend = make(extra={"prefill_tokens_per_s": 1e12})
    backend.batch_set_v1(names(2), indices(2))
    assert backend.batch_exists(names(2)) == 2
    assert backend.batch_get_v1(names(2), indices(2)) == [True, True]
    assert backend.batch_exists(names(2)) == 2  # measures again once
    assert backend.batch_exists(names(2)) == 0
    assert backend.counters()["bypassed"] == 1


def test_engines_that_share_no_page_are_named(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Elsewhere(HiCacheBackend):
        def probe(self) -> str:
            return "another hash"

    model = "named/model"
    with caplog.at_level(logging.WARNING):
        make(model_name=model)
        assert not caplog.records  # the same process
        with monkeypatch.context() as another_process:
            another_process.setattr(os, "getpid", lambda: 1)
            backend = make(model_name=model, kind=Elsewhere)
    assert backend.counters()["peers_that_share_no_key"] == 1
    assert "hashes the same tokens to other keys" in caplog.text
