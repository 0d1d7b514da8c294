"""The public API on a real embedded store: every call, its misses, its errors."""

from __future__ import annotations

import array
import ctypes
import gc
import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import kvstore
from kvstore import Status, Store
from tests.support.payloads import proof
from tests.support.processes import wait_for

if TYPE_CHECKING:
    from typing_extensions import Buffer

SIZES = [0, 1, 2, 63, 64, 65, 4095, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1, 8 << 20]


def test_what_was_put_comes_back(store: Store) -> None:
    for size in SIZES:
        key = f"size/{size}"
        assert store.put(key, proof(key, size)) is Status.Ok
        assert store.get(key) == proof(key, size)
        assert store.size(key) == size
        assert store.exists(key)


def test_a_miss_is_none_and_counted(store: Store) -> None:
    before = store.stats()["misses"].get("absent", 0)
    assert store.get("nobody") is None
    assert store.get_into("nobody", bytearray(8)) is None
    assert not store.view("nobody")
    assert store.size("nobody") is None
    assert not store.exists("nobody")
    assert store.inspect("nobody") is None
    assert store.remove("nobody") is Status.NotFound
    assert store.unpin("nobody") is Status.NotFound
    assert store.stats()["misses"]["absent"] - before == 3


def test_sizes_say_what_is_absent(store: Store) -> None:
    assert store.batch_put(["a", "empty"], [b"abc", b""]) == [Status.Ok, Status.Ok]
    assert store.batch_sizes(["a", "nobody", "empty"]) == [3, Status.NotFound, 0]


def test_the_first_put_wins(store: Store) -> None:
    assert store.put("k", b"first") is Status.Ok
    assert store.put("k", b"second") is Status.AlreadyExists
    assert store.get("k") == b"first"


def test_any_contiguous_buffer_goes_in_and_any_writable_one_takes(store: Store) -> None:
    numbers = array.array("d", [1.5, -2.0, 3.25])
    grid = memoryview(bytearray(range(12))).cast("B", (3, 4))
    buffers: dict[str, Buffer] = {
        "bytes": b"abc",
        "bytearray": bytearray(b"abc"),
        "array": numbers,
        "grid": grid,
        "ctypes": (ctypes.c_uint32 * 4)(1, 2, 3, 4),
    }
    for key, buffer in buffers.items():
        assert store.put(key, buffer) is Status.Ok
        assert store.get(key) == memoryview(buffer).tobytes()
    out = array.array("d", [0.0] * 3)
    assert store.get_into("array", out) == 24
    assert out == numbers


@pytest.mark.parametrize("bad", ["", "k" * 1025, "é" * 513, "\ud800", 5, None, b"bytes"])
def test_a_bad_key_is_the_callers_to_fix(store: Store, bad: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.put(bad, b"x"),
        lambda: store.get(bad),
        lambda: store.get_into(bad, bytearray(1)),
        lambda: store.view(bad),
        lambda: store.exists(bad),
        lambda: store.size(bad),
        lambda: store.remove(bad),
        lambda: store.unpin(bad),
        lambda: store.inspect(bad),
        lambda: store.batch_put(["good", bad], [b"x", b"y"]),
        lambda: store.batch_get([bad]),
        lambda: store.batch_get_into([bad], [bytearray(1)]),
        lambda: store.prefix_length([bad]),
        lambda: store.lookup([bad], lease_ms=1000),
    ]
    for call in calls:
        with pytest.raises(kvstore.InvalidArgumentError, match="key"):
            call()
    assert not store.exists("good"), "a refused batch wrote something"


def test_every_good_key_works(store: Store) -> None:
    for key in ["k", "k" * 1024, "é" * 512, "日本" * 100, "a b\n\t\0c", "🦊" * 256, "a/b//c"]:
        assert store.put(key, key.encode()) is Status.Ok
        assert store.get(key) == key.encode()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"pin": "forever"}, "pin"),
        ({"pin": 1}, "pin"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 9}, "replicas"),
        ({"ttl_ms": 0}, "ttl_ms"),
        ({"ttl_ms": 1.5}, "ttl_ms"),
        ({"parent": 5}, "parent"),
        ({"parent": "p" * 1025}, "parent"),
    ],
)
def test_a_bad_option_is_named(store: Store, options: dict[str, Any], word: str) -> None:
    with pytest.raises(kvstore.InvalidArgumentError, match=word):
        store.put("k", b"x", **options)
    assert not store.exists("k")


def test_bad_buffers_are_named(store: Store) -> None:
    store.put("k", b"0123456789")
    with pytest.raises(kvstore.InvalidArgumentError, match="buffer protocol"):
        store.put("x", "text")  # type: ignore[arg-type]
    with pytest.raises(kvstore.InvalidArgumentError, match="contiguous"):
        store.put("x", memoryview(bytearray(8))[::2])
    with pytest.raises(kvstore.InvalidArgumentError, match="writable"):
        store.get_into("k", b"read-only")
    with pytest.raises(kvstore.InvalidArgumentError, match="shorter"):
        store.get_into("k", bytearray(9))
    with pytest.raises(kvstore.InvalidArgumentError, match="2 items for 1 keys"):
        store.batch_put(["x"], [b"", b""])
    with pytest.raises(kvstore.InvalidArgumentError, match="null"):
        store.batch_put_from(["x"], [0], [5])
    with pytest.raises(kvstore.InvalidArgumentError, match="sizes"):
        store.batch_put_from(["x"], [1], [-5])
    with pytest.raises(kvstore.InvalidArgumentError, match="list or tuple"):
        store.batch_get("keys")


def test_batches_keep_order_and_mix_hits_with_misses(store: Store) -> None:
    keys = [f"b/{i}" for i in range(5000)]  # more than one message holds
    values = [proof(key, 50 + i % 7) for i, key in enumerate(keys)]
    assert store.batch_put(keys[:4500], values[:4500]) == [Status.Ok] * 4500
    assert store.batch_put(keys[4400:], values[4400:]) == (
        [Status.AlreadyExists] * 100 + [Status.Ok] * 500
    )
    draw = random.Random(5)
    asked = [draw.choice([*keys, "nobody"]) for _ in range(6000)]
    expected = dict(zip(keys, values, strict=True))
    assert store.batch_get(asked) == [expected.get(key) for key in asked]
    assert store.batch_exists(["nobody", *keys[:3]]) == [False, True, True, True]
    assert store.batch_get([]) == [] and store.batch_put([], []) == []


def test_batch_get_into_says_sizes_and_statuses(store: Store) -> None:
    store.put("empty", b"")
    store.put("ten", b"0123456789")
    buffers = [bytearray(4), bytearray(16), bytearray(10), bytearray(0)]
    sizes = store.batch_get_into(["ten", "nobody", "ten", "empty"], buffers)
    assert sizes == [Status.BufferTooSmall, Status.NotFound, 10, 0]
    assert buffers[2] == b"0123456789"


def test_addresses_go_in_and_out(store: Store) -> None:
    source = (ctypes.c_char * 300).from_buffer_copy(b"x" * 300)
    base = ctypes.addressof(source)
    keys = ["p/0", "p/1", "p/2"]
    assert store.batch_put_from(keys, [base, base + 100, base], [100, 200, 0]) == [Status.Ok] * 3
    target = (ctypes.c_char * 300)()
    base = ctypes.addressof(target)
    assert store.batch_get_into_pointers(keys, [base, base + 100, 0], [100, 200, 0]) == [
        100,
        200,
        0,
    ]
    assert target.raw == source.raw


def test_bad_pieces_are_named(store: Store) -> None:
    for pointers, sizes, word in (
        ([[1, 2]], [[3]], "same length"),
        ([[]], [[]], "1 or more"),
        ([[1]], [5], r"sizes\[0\] must be a list"),
        ([5], [[1]], "sizes"),
        ([[0]], [[5]], "null"),
        ([[1, 2]], [[2**63, 2**63]], "64 bits"),
        ([["a"]], [[1]], "pointers"),
    ):
        with pytest.raises(kvstore.InvalidArgumentError, match=word):
            store.batch_put_from(["x"], pointers, sizes)  # type: ignore[arg-type]
        with pytest.raises(kvstore.InvalidArgumentError, match=word):
            store.batch_get_into_pointers(["x"], pointers, sizes)  # type: ignore[arg-type]


def test_prefixes_count_whole_pages(store: Store) -> None:
    keys = [f"chain/{i}" for i in range(10)]
    for key in (*keys[:7], *keys[8:]):
        store.put(key, b"page")
    assert store.prefix_length(keys) == 7
    assert store.prefix_length(keys, stride=2) == 6
    assert store.prefix_length(keys, stride=4) == 4
    assert store.prefix_length(keys[7:]) == 0
    assert store.prefix_length([]) == 0
    with store.lookup(keys, stride=2) as lookup:
        assert lookup.length == 6 and not lookup.alive
    with pytest.raises(kvstore.InvalidArgumentError, match="stride"):
        store.prefix_length(keys, stride=0)


def test_a_view_is_the_block_itself(store: Store, way: str) -> None:
    value = proof("v", 1 << 20)
    store.put("v", value)
    view = store.view("v")
    assert view and view.size == len(value)
    assert view.zero_copy == (way == "shm"), "from elsewhere it is a copy"
    with view as block:
        assert block is not None
        assert block.readonly and block.nbytes == len(value) and block == value
        with pytest.raises(TypeError):
            block[0] = 0
        assert store.remove("v") is Status.Ok
        assert store.get("v") is None
        assert block == value, "a removed object stays as it is while it is held"
    with pytest.raises(ValueError, match="released"):
        bytes(block)
    with pytest.raises(BufferError):
        view.__enter__()


def test_what_was_made_from_a_view_keeps_the_hold(store: Store) -> None:
    value = proof("v", 4 << 20)
    store.put("v", value)
    view = store.view("v")
    with view as block:
        assert block is not None
        kept = memoryview(block)[1:]
    del view, block
    gc.collect()
    for i in range(64):  # the object is evicted meanwhile, the held block is not
        store.put(f"noise/{i}", bytes(4 << 20))
    assert kept == value[1:]


def test_more_views_than_a_slot_has_hazards(store: Store) -> None:
    keys = [f"v/{i}" for i in range(100)]
    values = [proof(key, 5000) for key in keys]
    store.batch_put(keys, values)
    views = [store.view(key) for key in keys]
    blocks = [block for view in views if (block := view.__enter__()) is not None]
    assert [bytes(block) for block in blocks] == values
    for i in range(40):
        store.put(f"noise/{i}", bytes(4 << 20))
    assert [bytes(block) for block in blocks] == values
    for view in views:
        view.release()


def test_leases_and_pins_survive_pressure(store: Store) -> None:
    for name in ("leased", "hard", "plain"):
        for i in range(4):
            pin: Any = "hard" if name == "hard" else None
            assert store.put(f"{name}/{i}", proof(f"{name}/{i}", 1 << 20), pin=pin) is Status.Ok
    with store.lookup([f"leased/{i}" for i in range(4)], lease_ms=1000) as lookup:
        assert lookup.length == len(lookup) == 4 and lookup.alive
        for i in range(200):
            assert store.put(f"noise/{i}", bytes(1 << 20)) is Status.Ok
        for name in ("leased", "hard"):
            for i in range(4):
                assert store.get(f"{name}/{i}") == proof(f"{name}/{i}", 1 << 20)
        assert lookup.alive, "a thread renews the leases"
    assert not lookup.alive
    assert not any(store.exists(f"plain/{i}") for i in range(4))
    assert store.stats()["evictions"] > 0
    assert store.unpin("hard/0") is Status.Ok
    inspected = store.inspect("hard/1")
    assert inspected is not None and inspected["pin"] == "hard"


def test_time_to_live_ends(store: Store) -> None:
    store.put("short", b"x", ttl_ms=50)
    store.put("long", b"y", ttl_ms=600_000)
    wait_for(lambda: store.get("short") is None, "the object to expire", 5)
    assert not store.exists("short")
    assert store.get("long") == b"y"


def test_larger_than_the_segment_is_too_large(store: Store) -> None:
    assert store.put("big", bytes(65 << 20)) is Status.TooLarge
    assert store.get("big") is None


def test_keys_and_removal_by_prefix(store: Store) -> None:
    keys = [f"a/{i}" for i in range(2500)]
    store.batch_put([*keys, "b"], [b"x"] * 2501)
    assert sorted(store.keys("a/")) == sorted(keys)
    assert sorted(store.keys()) == sorted([*keys, "b"])
    assert store.remove("a/0") is Status.Ok
    assert store.batch_remove(["a/1", "nobody"]) == [Status.Ok, Status.NotFound]
    assert store.remove_prefix("a/") == 2498
    assert list(store.keys()) == ["b"]
    assert store.put("a/0", b"again") is Status.Ok
    assert store.get("a/0") == b"again"


def test_inspect_tells_size_version_replicas(store: Store) -> None:
    store.put("k", bytes(100), pin="soft", replicas=2)
    found = store.inspect("k")
    assert found is not None
    assert found["size"] == 100 and found["pin"] == "soft" and found["version"] > 0
    assert found["replicas"] == [{"node_id": "embedded", "tier": "dram"}]
    assert found["replicas_wanted"] == 2 and found["tier"] == "dram"
    assert found["created_ms"] > 1_600_000_000_000


def test_flush_makes_the_namespace_new(store: Store) -> None:
    store.put("k", b"old")
    assert store.flush() is Status.Ok
    assert store.get("k") is None
    assert not store.exists("k")
    assert store.put("k", b"new") is Status.Ok
    assert store.get("k") == b"new"


def test_bytes_take_the_stores_way_only(store: Store, way: str) -> None:
    before: dict[str, Any] = store.stats()
    store.batch_put([f"k{i}" for i in range(50)], [bytes(10_000)] * 50)
    store.batch_get([f"k{i}" for i in range(50)])
    stats: dict[str, Any] = store.stats()
    for one in ("shm", "tcp", "ucx"):
        for name, wanted in (("hits", 50), ("bytes", 500_000), ("put_bytes", 500_000)):
            more = stats[f"{name}_{one}"] - before[f"{name}_{one}"]
            assert more == (wanted if one == way else 0), f"{name}_{one}"
    assert stats["hits"] - before["hits"] == 50
    puts = {name: count - before["puts"][name] for name, count in stats["puts"].items()}
    assert puts == {"ok": 50, "existing": 0, "failed": 0}


def test_many_threads_share_a_store(store: Store) -> None:
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            draw = random.Random(thread)
            for i in range(150):
                key = f"t/{draw.randrange(300)}"
                value = proof(key, 1000 + len(key))
                assert store.put(key, value) in (Status.Ok, Status.AlreadyExists)
                assert store.get(key) == value
                mine = f"own/{thread}/{i}"
                store.put(mine, value)
                assert store.remove(mine) is Status.Ok
                assert store.get(mine) is None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_an_upsert_is_a_new_version(store: Store) -> None:
    for turn, size in enumerate([100, 100, 100, 5000, 0, 100]):
        assert store.put("k", proof("k", size, str(turn)), upsert=True) is Status.Ok
        assert store.get("k") == proof("k", size, str(turn))
    assert store.put("k", b"late") is Status.AlreadyExists
    before = store.inspect("k")
    assert store.batch_put(["k", "l"], [b"x", b"y"], upsert=True) == [Status.Ok, Status.Ok]
    memory = ctypes.create_string_buffer(b"z", 1)
    assert store.batch_put_from(["l"], [ctypes.addressof(memory)], [1], upsert=True) == [Status.Ok]
    assert store.batch_get(["k", "l"]) == [b"x", b"z"]
    after = store.inspect("k")
    assert before is not None and after is not None and after["version"] > before["version"]


def test_a_view_outlives_an_upsert(store: Store) -> None:
    assert store.put("k", b"old") is Status.Ok
    view = store.view("k")
    with view as block:
        assert store.put("k", b"new", upsert=True) is Status.Ok
        assert block is not None and bytes(block) == b"old"
    assert store.get("k") == b"new"
