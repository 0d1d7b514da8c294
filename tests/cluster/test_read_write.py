"""What a put promises: readable at once, by every process, on every path, whatever the size."""

from __future__ import annotations

import ctypes
import json
import random
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import python_process, read_line, wait_for
from tests.support.transports import EVERY, REMOTE, client_options

pytestmark = pytest.mark.cluster

READER = """
import json, sys, kvstore
store = kvstore.connect(sys.argv[1], **json.loads(sys.argv[2]))
print("ready")
for line in sys.stdin:
    value = store.get(line.strip())
    print("miss" if value is None else value.hex())
"""


@pytest.mark.parametrize("transport", EVERY)
def test_a_put_is_readable_by_another_process_at_once(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    options = json.dumps(client_options(transport))
    with python_process(READER, cluster.address, options) as reader:
        assert read_line(reader) == "ready"
        assert reader.stdin is not None
        for i in range(50):
            key = f"{transport}/{i}"
            assert store.put(key, proof(key, 100)) is Status.Ok
            reader.stdin.write(key + "\n")
            reader.stdin.flush()
            assert read_line(reader) == proof(key, 100).hex()


def _bytes_by_path(store: kvstore.Store) -> tuple[int, int]:
    stats: dict[str, Any] = store.stats()
    return stats["bytes_shm"], stats["bytes_tcp"]


@pytest.mark.parametrize("transport", REMOTE)
def test_a_known_placement_saves_the_lookup_and_stays_honest(
    cluster: Cluster, transport: str
) -> None:
    cluster.start_node("a")
    writer, reader = cluster.connect(), cluster.connect(transport=transport)
    assert writer.put("k", proof("1", 1000)) is Status.Ok
    assert reader.get("k") == proof("1", 1000)
    asked = reader.stats()["lookups"]
    for _ in range(10):
        assert reader.get("k") == proof("1", 1000)
    assert reader.stats()["lookups"] == asked
    # Gone, then longer, then shorter than what is remembered.
    assert writer.remove("k") is Status.Ok
    assert reader.get("k") is None
    for version, size in (("2", 5000), ("3", 10)):
        assert writer.put("k", proof(version, size)) is Status.Ok
        out = bytearray(size)
        assert reader.get_into("k", out) == size and out == proof(version, size)
        assert writer.remove("k") is Status.Ok


@pytest.mark.parametrize("transport", REMOTE)
def test_a_known_placement_on_a_dead_node_is_a_lookup(cluster: Cluster, transport: str) -> None:
    nodes = {name: cluster.start_node(name) for name in "ab"}
    writer, reader = cluster.connect(), cluster.connect(transport=transport)
    assert writer.put("k", proof("k", 1000), replicas=2) is Status.Ok
    wait_for(lambda: len(holders(writer, "k")) == 2, "the second replica")
    assert reader.get("k") == proof("k", 1000)
    nodes["a"].kill()
    assert reader.get("k") == proof("k", 1000)
    cluster.wait_state("a", "dead")
    assert reader.get("k") == proof("k", 1000)
    # What only the dead node had is a miss, and not one that hangs.
    nodes["b"].kill()
    assert reader.get("k") is None


def holders(store: kvstore.Store, key: str) -> list[Any]:
    found = store.inspect(key)
    assert found is not None
    return list(found["replicas"])


def test_same_host_reads_use_shared_memory_and_tcp_can_be_forced(cluster: Cluster) -> None:
    cluster.start_node("a")
    size = 1 << 20
    data = proof("x", size)
    local, remote = cluster.connect(), cluster.connect(transport="tcp")
    assert local.put("x", data) is Status.Ok
    before = _bytes_by_path(local)
    assert local.get("x") == data
    shm, tcp = _bytes_by_path(local)
    assert shm - before[0] == size and tcp == before[1] == 0
    assert remote.get("x") == data
    shm, tcp = _bytes_by_path(remote)
    assert shm == 0 and tcp == size
    assert remote.put("y", data) is Status.Ok
    assert local.get("y") == data


@pytest.mark.parametrize("transport", REMOTE)
def test_after_ok_a_client_of_another_node_reads_it_ten_thousand_times(
    cluster: Cluster, transport: str
) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    writer, reader = cluster.connect(), cluster.connect(transport=transport)
    for i in range(10_000):
        key = f"k{i}"
        data = proof(key, 64)
        assert writer.put(key, data) is Status.Ok
        assert reader.get(key) == data, f"{key} was not readable right after Ok"


@pytest.mark.parametrize("transport", EVERY)
def test_sizes_and_keys_at_the_edges(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    store = cluster.connect(transport=transport)
    sizes = [0, 1, 63, 64, 65, 4095, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1, 20 << 20]
    for size in sizes:
        key = f"size/{size}"
        assert store.put(key, proof(key, size)) is Status.Ok
        assert store.size(key) == size
        assert store.get(key) == proof(key, size)
    assert store.put("too large", bytes(65 << 20)) is Status.TooLarge
    assert store.get("too large") is None
    for key in ["k", "k" * 1024, "é" * 512, "日本" * 100, "a b\n\t\0c", "🦊" * 256]:
        assert store.put(key, key.encode()) is Status.Ok
        assert store.get(key) == key.encode()
        assert store.exists(key)
    for bad in ["", "k" * 1025, "é" * 513, "\ud800"]:
        with pytest.raises(kvstore.InvalidArgumentError):
            store.put(bad, b"x")


@pytest.mark.parametrize("transport", EVERY)
def test_get_into_reports_sizes_and_short_buffers(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    store = cluster.connect(transport=transport)
    store.put("into", b"0123456789")
    buffer = bytearray(16)
    assert store.get_into("into", buffer) == 10
    assert bytes(buffer[:10]) == b"0123456789"
    assert store.get_into("absent", buffer) is None
    sizes = store.batch_get_into(["into", "absent", "into"], [bytearray(4), buffer, bytearray(10)])
    assert sizes == [Status.BufferTooSmall, Status.NotFound, 10]


@pytest.mark.parametrize("transport", REMOTE)
def test_two_concurrent_puts_of_one_key_have_one_winner(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    writers = [cluster.connect(), cluster.connect(transport=transport)]
    reader = cluster.connect(transport=transport)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    for i in range(300):
        key, size = f"race/{i}", draw.choice([16, 4096, 100_000])
        values = [proof(key, size, salt=str(w)) for w in range(2)]
        outcomes: list[Status | None] = [None, None]
        start = threading.Barrier(3)
        seen: set[bytes] = set()

        def write(
            w: int,
            key: str = key,
            values: list[bytes] = values,
            outcomes: list[Status | None] = outcomes,
            start: threading.Barrier = start,
        ) -> None:
            start.wait()
            outcomes[w] = writers[w].put(key, values[w])

        threads = [threading.Thread(target=write, args=(w,)) for w in range(2)]
        for thread in threads:
            thread.start()
        start.wait()
        while any(thread.is_alive() for thread in threads):
            value = reader.get(key)
            if value is not None:
                seen.add(value)
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [Status.AlreadyExists, Status.Ok]  # type: ignore[type-var]
        winner = values[outcomes.index(Status.Ok)]
        assert seen <= {winner}, "a reader saw the loser's bytes"
        for store in (*writers, reader):
            assert store.get(key) == winner


@pytest.mark.parametrize("transport", REMOTE)
def test_batches_and_prefixes(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    cluster.start_node("b")
    store, other = cluster.connect(), cluster.connect(transport=transport)
    keys = [f"chat/{i}" for i in range(300)]
    values = [proof(key, 1000 + i) for i, key in enumerate(keys)]
    assert store.batch_put(keys[:100], values[:100]) == [Status.Ok] * 100
    assert other.batch_put(keys[100:200], values[100:200]) == [Status.Ok] * 100
    assert store.batch_put(keys[150:160], values[150:160]) == [Status.AlreadyExists] * 10
    for reader in (store, other):
        assert reader.batch_get(keys) == values[:200] + [None] * 100
        assert reader.batch_exists(keys) == [True] * 200 + [False] * 100
        assert reader.prefix_length(keys) == 200
    assert store.remove("chat/151") is Status.Ok
    for reader in (store, other):
        assert reader.prefix_length(keys) == 151
        assert reader.prefix_length(keys, stride=2) == 150
        assert reader.prefix_length(keys[151:]) == 0
    assert sorted(store.keys("chat/1")) == sorted(
        k for k in keys[:200] if k.startswith("chat/1") and k != "chat/151"
    )
    assert store.remove_prefix("chat/") == 199
    assert list(store.keys("chat/")) == []
    assert other.batch_exists(keys) == [False] * 300


@pytest.mark.parametrize("transport", REMOTE)
def test_namespaces_and_flush(cluster: Cluster, transport: str) -> None:
    cluster.start_node("a")
    one, two = cluster.connect(namespace="one"), cluster.connect(namespace="two")
    far = cluster.connect(namespace="one", transport=transport)
    one.put("k", b"1")
    assert two.get("k") is None
    two.put("k", b"2")
    assert (one.get("k"), two.get("k"), far.get("k")) == (b"1", b"2", b"1")
    assert cluster.cli("flush", "--namespace", "one")["status"] == "Ok"
    assert (one.get("k"), two.get("k"), far.get("k")) == (None, b"2", None)
    assert one.put("k", b"3") is Status.Ok
    assert (one.get("k"), far.get("k")) == (b"3", b"3")


@pytest.mark.parametrize("transport", REMOTE)
def test_ttl_expires_on_every_path(cluster: Cluster, transport: str) -> None:
    from tests.support.processes import wait_for

    cluster.start_node("a")
    store, far = cluster.connect(), cluster.connect(transport=transport)
    store.put("short", b"x", ttl_ms=300)
    store.put("long", b"y", ttl_ms=600_000)
    wait_for(lambda: store.get("short") is None, "the object to expire", 5)
    assert far.get("short") is None
    assert far.get("long") == store.get("long") == b"y"


@pytest.mark.parametrize("stripes", [1, 3])
def test_replies_of_every_length_end_when_their_last_byte_is_there(
    cluster: Cluster, stripes: int
) -> None:
    cluster.start_node("a", segment_size="128mb")
    store = cluster.connect(transport="tcp", timeout_ms=20_000, stripes=stripes)
    keys = [f"page/{i}" for i in range(1500)]
    pages = [proof(key, 4096) for key in keys]
    assert store.batch_put(keys, pages) == [Status.Ok] * len(keys)
    for count in range(1, len(keys), 23):  # 4 KiB to 6 MiB
        start = time.monotonic()
        assert store.batch_get(keys[:count]) == pages[:count], count
        assert time.monotonic() - start < 10, "it waited for more than there is"


def _cut(draw: random.Random, base: int, size: int) -> tuple[list[int], list[int]]:
    """Addresses and sizes of the pieces that a buffer is cut into, empty ones among them."""
    ends = sorted(draw.randrange(size + 1) for _ in range(draw.randrange(9)))
    starts = [0, *ends]
    return [base + at for at in starts], [b - a for a, b in pairwise([*starts, size])]


@pytest.mark.parametrize("transport", EVERY)
def test_an_object_is_gathered_from_and_scattered_to_pieces(
    cluster: Cluster, transport: str
) -> None:
    """Engines keep a page layer by layer; it is one object all the same."""
    node = cluster.start_node("a")
    store = cluster.connect(transport=transport)
    seed = 11
    print(f"seed {seed}")
    draw = random.Random(seed)
    sizes = [draw.choice([0, 1, 100, 70_000, 2_000_000]) for _ in range(24)]
    keys = [f"piece/{i}" for i in range(len(sizes))]
    values = [proof(key, size) for key, size in zip(keys, sizes, strict=True)]
    sources = [ctypes.create_string_buffer(value, max(len(value), 1)) for value in values]
    cuts = [_cut(draw, ctypes.addressof(s), n) for s, n in zip(sources, sizes, strict=True)]
    # One piece, given as numbers, may stand beside objects in several.
    whole = (ctypes.addressof(sources[0]), sizes[0])
    pointers: list[int | Sequence[int]] = [whole[0], *[c[0] for c in cuts[1:]]]
    lengths: list[int | Sequence[int]] = [whole[1], *[c[1] for c in cuts[1:]]]
    assert store.batch_put_from(keys, pointers, lengths) == [Status.Ok] * len(keys)
    assert store.batch_get(keys) == values

    targets = [ctypes.create_string_buffer(size + 100) for size in sizes]
    places = [_cut(draw, ctypes.addressof(t), len(t)) for t in targets]  # 100 bytes are left over
    found = store.batch_get_into_pointers(keys, [p[0] for p in places], [p[1] for p in places])
    assert found == sizes
    for target, value in zip(targets, values, strict=True):
        assert target.raw == value + bytes(100)
    short = [
        _cut(draw, ctypes.addressof(t), max(n - 1, 0)) for t, n in zip(targets, sizes, strict=True)
    ]
    expected = [Status.BufferTooSmall if n else 0 for n in sizes]
    assert (
        store.batch_get_into_pointers(keys, [s[0] for s in short], [s[1] for s in short])
        == expected
    )
    assert node.process.poll() is None
