"""Gets and puts by UCX, over its software transports: real processes, without an RDMA device."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status, ucx
from tests.cluster.test_reload import node_file, reloads, wait_reload
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import Daemon, python_process, read_line, wait_for
from tests.support.transports import AT_CLIENT, moved, node_config
from tests.support.wire import Connection, column, keys_field, number, text

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not ucx.libraries(), reason="UCX is not installed (libucx0)"),
]

MIB = 1 << 20
UCX_PUT = 0x66


def start_node(cluster: Cluster, node_id: str = "a", **config: Any) -> Daemon:
    """A node whose memory can be read by UCX."""
    node = cluster.start_node(node_id, **{**node_config("ucx"), **config})
    wait_for(lambda: served_by(node), "its UCX process")
    return node


def connect(cluster: Cluster, **options: Any) -> kvstore.Store:
    return cluster.connect(**{"transport": "ucx", **options})


def served_by(node: Daemon) -> list[int]:
    """Pids of a node's UCX processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if b"ucx_process" in command and int(parent) == node.process.pid:
                found.append(int(folder.name))
    return found


def by_ucx(store: kvstore.Store, key: str, size: int = 100_000) -> bool:
    """Whether a put and a get go by UCX now; both have to succeed on whatever way."""
    before = moved(store)
    assert store.put(key, proof(key, size)) is Status.Ok
    assert store.get(key) == proof(key, size)
    after = moved(store)
    return (
        after["put_bytes_ucx"] - before["put_bytes_ucx"] == size
        and after["bytes_ucx"] - before["bytes_ucx"] == size
    )


def wait_by_ucx(store: kvstore.Store, prefix: str = "w") -> None:
    count = iter(range(10_000))
    wait_for(lambda: by_ucx(store, f"{prefix}/{next(count)}"), "UCX to be used", 60)


def test_every_size_and_no_byte_by_tcp(cluster: Cluster) -> None:
    start_node(cluster, segment_size="256mb")
    store = connect(cluster)
    wait_by_ucx(store)
    before = moved(store)
    sizes = [0, 1, 100, 4096, 65536, MIB - 1, MIB + 1, 9 * MIB, 40 * MIB]
    keys = [f"k/{size}" for size in sizes]
    for key, size in zip(keys, sizes, strict=True):
        assert store.put(key, proof(key, size)) is Status.Ok
        assert store.get(key) == proof(key, size)
        assert store.put(key, b"other") is Status.AlreadyExists
    assert store.batch_get([*keys, "missing"]) == [
        *(proof(key, size) for key, size in zip(keys, sizes, strict=True)),
        None,
    ]
    after = moved(store)
    assert after["bytes_ucx"] - before["bytes_ucx"] == 2 * sum(sizes)
    assert after["put_bytes_ucx"] - before["put_bytes_ucx"] == sum(sizes)
    assert (after["bytes_tcp"], after["put_bytes_tcp"]) == (
        before["bytes_tcp"],
        before["put_bytes_tcp"],
    )
    assert store.peers()[0]["path"] == "ucx"


def test_batches_pieces_and_registered_memory(cluster: Cluster) -> None:
    start_node(cluster, segment_size="128mb")
    store = connect(cluster)
    wait_by_ucx(store)
    count, size = 600, 50_000  # more than a lane's own memory holds
    keys = [f"b/{i}" for i in range(count)]
    pool = bytearray(count * size)
    with store.register(pool), store.register(pool) as again:
        assert (
            again.size == len(pool) and store._client.ucx_state()["registered_bytes"] == again.size
        )
        view = memoryview(pool)
        rows = [view[i * size : (i + 1) * size] for i in range(count)]
        for key, row in zip(keys, rows, strict=True):
            row[:] = proof(key, size)
        assert store.batch_put(keys, rows) == [Status.Ok] * count
        pool[:] = bytes(len(pool))
        before = moved(store)
        assert store.batch_get_into(keys, rows) == [size] * count
        assert all(row == proof(key, size) for key, row in zip(keys, rows, strict=True))
        assert moved(store)["bytes_ucx"] - before["bytes_ucx"] == count * size
        # An object in pieces: gathered and scattered through the lane's memory.
        whole = ctypes.create_string_buffer(3 * size)
        at = ctypes.addressof(whole)
        pieces, lengths = [at, at + 2 * size], [size, size]
        with store.register(at, len(whole)):  # into each piece, then through the lane's memory
            check_pieces(store, keys[0], whole, size)
        check_pieces(store, keys[0], whole, size)
        assert store.batch_put_from(["pieces"], [pieces], [lengths]) == [Status.Ok]
        assert store.get("pieces") == whole.raw[:size] + whole.raw[2 * size :]
        del rows, view
    assert store._client.ucx_state()["registered_bytes"] == 0
    # And without registration.
    assert store.batch_get(keys) == [proof(key, size) for key in keys]


def test_pieces_of_every_kind(cluster: Cluster) -> None:
    """Registered, small, large, and more than a lane's own memory holds, in one object or alone."""
    start_node(cluster, segment_size="256mb")
    store = connect(cluster, timeout_ms=20_000)
    wait_by_ucx(store)
    lengths = [5000, 3 * MIB, 70_000, 1, 900_000]
    many = [900_000] * 12  # none of them large, and together more than a lane has
    memory = ctypes.create_string_buffer(sum(many))
    at = ctypes.addressof(memory)
    with store.register(at, 4 * MIB):  # the last piece of `lengths` reaches out of it
        assert put_and_read(store, "mixed", lengths, at) == sum(lengths)
    assert put_and_read(store, "many", many, at) == 0


def put_and_read(store: kvstore.Store, name: str, sizes: list[int], at: int) -> int:
    """Return how much of a put came by UCX; put and get go to and from the same pieces."""
    data = proof(name, sum(sizes))
    places = [at + sum(sizes[:i]) for i in range(len(sizes))]
    before, began = moved(store), time.monotonic()
    ctypes.memmove(at, data, len(data))
    assert store.batch_put_from([name], [places], [sizes]) == [Status.Ok]
    ctypes.memset(at, 0, len(data))
    assert store.batch_get_into_pointers([name], [places], [sizes]) == [len(data)]
    assert time.monotonic() - began < 10, "it waited for room that never comes"
    assert ctypes.string_at(at, len(data)) == data
    assert store.get(name) == data
    return moved(store)["put_bytes_ucx"] - before["put_bytes_ucx"]


def check_pieces(
    store: kvstore.Store, key: str, whole: ctypes.Array[ctypes.c_char], size: int
) -> None:
    ctypes.memset(whole, 0, len(whole))
    at = ctypes.addressof(whole)
    before = moved(store)
    pointers, lengths = [[at, at + 2 * size]], [[size // 2, size]]
    assert store.batch_get_into_pointers([key], pointers, lengths) == [size]
    assert whole.raw[: size // 2] == proof(key, size)[: size // 2]
    assert whole.raw[2 * size : 2 * size + size // 2] == proof(key, size)[size // 2 :]
    assert moved(store)["bytes_ucx"] - before["bytes_ucx"] == size


def test_where_ucx_is_refused_tcp_serves_and_says_why(cluster: Cluster) -> None:
    cluster.start_node("plain")
    start_node(cluster, "a", shm_write=["somebody"])
    store = connect(cluster)
    assert not any(by_ucx(store, f"k/{i}") for i in range(20))
    why = {peer["node_id"]: (peer["path"], peer["why"]) for peer in store.peers()}
    assert why["plain"] == ("tcp", "the node does not offer UCX")
    assert why["a"][0] == "tcp" and "shm_write" in why["a"][1]
    # A client without UCX is served by TCP at a node with it.
    plain = cluster.connect(transport="tcp")
    assert plain.put("p", b"x" * 50_000) is Status.Ok and plain.get("p") == b"x" * 50_000


def test_the_end_of_a_ucx_process_costs_its_speed_and_nothing_else(cluster: Cluster) -> None:
    node = start_node(cluster, segment_size="128mb")
    stores = [connect(cluster) for _ in range(2)]
    for i, store in enumerate(stores):
        wait_by_ucx(store, f"w{i}")
    stop, failures, done = threading.Event(), list[str](), [0, 0]

    def load(which: int) -> None:
        store, round_ = stores[which], 0
        while not stop.is_set():
            key, round_ = f"{which}/{round_}", round_ + 1
            size = random.Random(key).choice([1000, 70_000, 3 * MIB])
            if store.put(key, proof(key, size)) is not Status.Ok:
                failures.append(f"put {key}")
            found = store.get(key)
            if found is not None and found != proof(key, size):
                failures.append(f"wrong bytes of {key}")
            done[which] += 1

    def wait_load() -> None:
        least = [count + 10 for count in done]
        wait_for(lambda: all(d >= t for d, t in zip(done, least, strict=True)), "load", 60)

    def kill_process() -> None:
        (pid,) = wait_for(lambda: served_by(node), "a UCX process")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: served_by(node) not in ([], [pid]), "another UCX process", 60)

    threads = [threading.Thread(target=load, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            wait_load()
            kill_process()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:5]
    wait_by_ucx(stores[0], "after")
    assert stores[0].stats()["wrong_checksums"] == 0


def test_a_ucx_process_that_hangs_is_passed_over_within_the_deadline(cluster: Cluster) -> None:
    node = start_node(cluster)
    store = connect(cluster, timeout_ms=6000)
    wait_by_ucx(store)
    (pid,) = served_by(node)
    os.kill(pid, signal.SIGSTOP)
    try:
        for i in range(3):
            begun = time.monotonic()
            assert not by_ucx(store, f"hung/{i}")
            assert time.monotonic() - begun < 12  # two calls
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_by_ucx(store, "again")


def test_a_tenant_that_loses_shm_write_loses_its_keys(cluster: Cluster) -> None:
    node = start_node(cluster)
    store = connect(cluster)
    wait_by_ucx(store)
    (pid,) = served_by(node)
    before = reloads(node, "applied")
    node_file(cluster, "a").change(shm_write=["other"])
    wait_reload(node, "applied", before)
    wait_for(lambda: pid not in served_by(node), "the process with the old keys to end")
    assert not by_ucx(store, "after")
    wait_for(lambda: served_by(node), "another UCX process")
    assert not by_ucx(store, "later")


def test_a_hostile_address_ends_the_ucx_process_and_not_the_node(cluster: Cluster) -> None:
    node = start_node(cluster)
    store = connect(cluster)
    wait_by_ucx(store)
    (pid,) = served_by(node)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    with Connection(node.ports["tcp"]) as client:
        client.handshake()
        for i in range(30):
            body = (
                keys_field(1, [f"h/{i}".encode()])
                + column(2, "Q", [1000])
                + column(8, "I", [7])
                + column(9, "Q", [draw.randrange(1 << 64)])
                + text(11, draw.randbytes(draw.randrange(1, 300)))
                + keys_field(12, [draw.randbytes(60)])
                + number(13, 200, 4)
                + number(40, 2000, 4)
            )
            assert client.statuses(UCX_PUT, body) != [0]
            if pid not in served_by(node):
                break
    assert node.process.poll() is None
    assert store.get("w/0") is not None
    wait_by_ucx(store, "after")


def test_a_node_killed_with_its_ucx_process_at_work_keeps_its_objects(cluster: Cluster) -> None:
    node = start_node(cluster, segment_size="128mb")
    store = connect(cluster)
    wait_by_ucx(store)
    keys = [f"k/{i}" for i in range(50)]
    assert store.batch_put(keys, [proof(key, 200_000) for key in keys]) == [Status.Ok] * 50
    stop = threading.Event()

    def load() -> None:
        for i in range(100_000):
            if stop.is_set():
                return
            with suppress(kvstore.KvstoreError):
                store.put(f"l/{i}", proof(f"l/{i}", MIB))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        time.sleep(0.3)
        node.process.kill()
        node.process.wait()
        wait_for(lambda: not served_by(node), "the UCX process to end with its node")
        start_node(cluster, segment_size="128mb")
    finally:
        stop.set()
        thread.join()
    assert store.batch_get(keys) == [proof(key, 200_000) for key in keys]
    found = store.batch_get([f"l/{i}" for i in range(100)])
    assert all(value in (None, proof(f"l/{i}", MIB)) for i, value in enumerate(found))
    wait_by_ucx(store, "after")


KILLED = """
import sys, kvstore
store = kvstore.connect(sys.argv[1], transport="ucx", ucx_settings=eval(sys.argv[2]))
print("ready")
for i in range(100000):
    store.put(f"{sys.argv[3]}/{i}", bytes(1 << 20))
    print(i)
"""


def test_killed_clients_leave_nothing_behind(cluster: Cluster) -> None:
    node = start_node(cluster)
    store = connect(cluster)
    wait_by_ucx(store)
    for cycle in range(3):
        with python_process(KILLED, cluster.address, repr(AT_CLIENT), str(cycle)) as client:
            assert read_line(client) == "ready"
            for _ in range(5):
                read_line(client)
            client.kill()
    wait_for(lambda: metric(node, "kvstore_reservations") == 0, "their reservations to end", 30)
    assert metric(node, "kvstore_quarantined_bytes") == 0
    wait_by_ucx(store, "after")


def test_readers_of_evicted_blocks_never_get_other_bytes(cluster: Cluster) -> None:
    start_node(cluster, segment_size="16mb")
    writer, reader = connect(cluster), connect(cluster)
    wait_by_ucx(writer)
    stop, wrong, hits = threading.Event(), list[str](), [0]

    def read() -> None:
        draw = random.Random(1)
        while not stop.is_set():
            key = f"e/{draw.randrange(400)}"
            value = reader.get(key)
            hits[0] += value is not None
            if value is not None and value != proof(key, 300_000):
                wrong.append(key)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for round_ in range(3):
            for i in range(400):
                assert writer.put(f"e/{i}", proof(f"e/{i}", 300_000)) in (
                    Status.Ok,
                    Status.AlreadyExists,
                ), round_
    finally:
        stop.set()
        thread.join()
    assert not wrong and hits[0] > 0
    assert reader.stats()["wrong_checksums"] == 0
    assert reader.stats()["bytes_ucx"] > 0


def test_objects_on_nvme_come_by_tcp(cluster: Cluster, tmp_path: Path) -> None:
    start_node(cluster, segment_size="16mb", nvme_dir=str(tmp_path / "nvme"), nvme_size="256mb")
    store = connect(cluster)
    wait_by_ucx(store)
    keys = [f"n/{i}" for i in range(60)]
    for key in keys:
        assert store.put(key, proof(key, MIB)) is Status.Ok
        if key == keys[4]:
            cluster.cli("snapshot", "a")  # so that what is evicted behind it is on NVMe
    assert store.get(keys[-1]) == proof(keys[-1], MIB)
    for key in keys:
        value = store.get(key)
        assert value is None or value == proof(key, MIB)
    assert store.get(keys[0]) == proof(keys[0], MIB)
    assert moved(store)["bytes_tcp"] > 0


def test_a_node_without_the_library_says_so(cluster: Cluster) -> None:
    cluster.start_node(
        "a",
        transports=["shm", "tcp", "ucx"],
        environment={ucx.LIBRARY_VARIABLE: "/nonexistent/libucp.so"},
    )
    store = connect(cluster)
    assert not by_ucx(store, "k")
    wait_for(lambda: "/nonexistent/libucp.so" in cluster.logs(), "the log line")
