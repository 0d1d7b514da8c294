"""The Mooncake drop-in against a real cluster: every call, its numbers, its failures."""

from __future__ import annotations

import asyncio
import ctypes
import random
from collections.abc import Iterator
from typing import Any

import pytest

from kvstore.compat.mooncake import (
    ErrorCode,
    MooncakeDistributedStore,
    MooncakeDistributedStoreAsync,
    ReplicateConfig,
)
from kvstore.compat.mooncake.memory import Addresses
from kvstore.compat.mooncake.tensors import metadata_size
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster


def set_up(store: MooncakeDistributedStore, address: str, segment: int = 0, **more: Any) -> None:
    code = store.setup("localhost", "P2PHANDSHAKE", segment, 16 << 20, "tcp", "", address, **more)
    assert code == 0


TENANTS = [f"t{number}" for number in range(32)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of all tests that do it no harm; each has a tenant of its own."""
    running = Cluster(tmp_path_factory.mktemp("shared"))
    try:
        for node in ("a", "b"):
            running.start_node(node, shm_write=["default", *TENANTS])
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def tenants() -> Iterator[str]:
    return iter(TENANTS)


@pytest.fixture
def tenant(tenants: Iterator[str]) -> str:
    return next(tenants)


@pytest.fixture
def store(shared: Cluster, tenant: str) -> Iterator[MooncakeDistributedStore]:
    made = MooncakeDistributedStoreAsync()
    set_up(made, shared.address, tenant_id=tenant)
    yield made
    assert made.close() == 0


def test_bytes_go_in_and_come_back(store: MooncakeDistributedStore) -> None:
    assert store.put("k", b"value") == 0
    assert store.put("k", b"another") == 0, "an existing key is a silent success"
    assert store.get("k") == b"value"
    assert store.get("nobody") == b""
    assert store.put_batch(["a", "b"], [b"1", bytearray(b"22")]) == 0
    assert store.get_batch(["a", "nobody", "b"]) == [b"1", b"", b"22"]
    assert store.put_parts("parts", b"one ", bytearray(b"two "), memoryview(b"three")) == 0
    assert store.get("parts") == b"one two three"
    assert store.batch_is_exist(["a", "nobody", "parts"]) == [1, 0, 1]
    assert store.is_exist("a") == 1 and store.is_exist("nobody") == 0
    assert store.get_size("b") == 2
    assert store.get_size("nobody") == ErrorCode.OBJECT_NOT_FOUND
    assert type(store.get_size("nobody")) is int, "vLLM asks for exactly that type"
    assert store.get_hostname() == "localhost"
    assert store.health_check() == 0


def test_an_upsert_replaces(store: MooncakeDistributedStore) -> None:
    assert store.upsert("k", b"one") == 0
    assert store.upsert("k", b"three") == 0
    assert store.get("k") == b"three"
    assert store.upsert_parts("k", b"fo", b"ur") == 0
    assert store.upsert_batch(["k", "l"], [b"five", b"six"]) == 0
    assert store.get_batch(["k", "l"]) == [b"five", b"six"]
    with Addresses([b"seven", b"eight"]) as at:
        assert store.upsert_from("k", at.pointers[0], 5) == 0
        assert store.batch_upsert_from(["l"], at.pointers[1:], at.sizes[1:]) == [0]
    assert store.get_batch(["k", "l"]) == [b"seven", b"eight"]


def test_memory_by_address(store: MooncakeDistributedStore) -> None:
    sizes = [1, 4096, 100_000]
    keys = [f"k{size}" for size in sizes]
    source = [proof(key, size) for key, size in zip(keys, sizes, strict=True)]
    targets = [bytearray(size) for size in sizes]
    with Addresses(source) as of, Addresses(targets) as to:
        assert [store.register_buffer(p, s) for p, s in zip(to.pointers, sizes, strict=True)] == [
            0,
            0,
            0,
        ]
        assert store.batch_put_from(keys, of.pointers, of.sizes, ReplicateConfig()) == [0, 0, 0]
        found = store.batch_get_into([*keys, "nobody"], [*to.pointers, 4096], [*sizes, 1])
        assert found == [*sizes, ErrorCode.OBJECT_NOT_FOUND]
        assert targets == source
        assert store.get_into(keys[1], to.pointers[1], 4095) == ErrorCode.INVALID_PARAMS
        assert store.put_from("one", of.pointers[0], 1) == 0
        assert store.get_into("one", to.pointers[0], 1) == 1
        assert store.unregister_buffer(to.pointers[0]) == 0
        assert store.unregister_buffer(to.pointers[0]) == ErrorCode.INVALID_PARAMS
        code = store.put_from_with_metadata("meta", of.pointers[1], of.pointers[0], 4096, 1)
        assert code == 0
    assert store.get("meta") == source[0] + source[1]
    assert store.register_buffer(0, 10) == ErrorCode.INVALID_PARAMS


def test_one_object_in_several_buffers(store: MooncakeDistributedStore) -> None:
    pieces = [proof(str(i), 1000 + i) for i in range(6)]
    keys = ["x", "y"]
    targets = [bytearray(len(piece)) for piece in pieces]
    with Addresses(pieces) as of, Addresses(targets) as to:
        pointers, sizes = [of.pointers[:3], of.pointers[3:]], [of.sizes[:3], of.sizes[3:]]
        assert store.batch_put_from_multi_buffers(keys, pointers, sizes) == [0, 0]
        assert store.get("x") == b"".join(pieces[:3])
        pointers = [to.pointers[:3], to.pointers[3:], [1]]
        found = store.batch_get_into_multi_buffers([*keys, "z"], pointers, [*sizes, [1]], True)
        assert found == [sum(sizes[0]), sum(sizes[1]), ErrorCode.OBJECT_NOT_FOUND]
    assert targets == pieces


def test_handles_are_memory_of_their_own(store: MooncakeDistributedStore) -> None:
    assert store.put("k", proof("k", 70_000)) == 0
    handle = store.get_buffer("k")
    assert handle is not None and handle.size() == len(handle) == 70_000
    assert bytes(memoryview(handle)) == proof("k", 70_000)
    assert ctypes.string_at(handle.ptr(), 4) == proof("k", 4)
    assert store.remove("k") == 0
    assert bytes(handle) == proof("k", 70_000)
    assert store.batch_get_buffer(["k", "nobody"]) == [None, None]


def test_ranges_of_several_objects(store: MooncakeDistributedStore) -> None:
    objects = {key: proof(key, 50_000) for key in ("p", "q")}
    for key, data in objects.items():
        assert store.put(key, data) == 0
    first, second = bytearray(32), bytearray(32)
    with Addresses([first, second]) as at:
        for pointer in at.pointers:
            assert store.register_buffer(pointer, 32) == 0
        found = store.get_into_ranges(
            at.pointers,
            [["p", "q", "nobody"], ["q"]],
            [[[0, 20], [8], [0]], [[4]]],
            [[[1, 30], [2], [0]], [[49_990]]],
            [[[4, 3], [5], [1]], [[10]]],
        )
        gone, wrong = ErrorCode.OBJECT_NOT_FOUND, ErrorCode.INVALID_PARAMS
        assert found == [[[4, 3], [5], [gone]], [[10]]]
        assert first[0:4] == objects["p"][1:5] and first[20:23] == objects["p"][30:33]
        assert first[8:13] == objects["q"][2:7] and second[4:14] == objects["q"][49_990:]
        over = store.get_into_ranges(
            at.pointers[:1], [["p", "p"]], [[[30], [0]]], [[[0], [49_999]]], [[[3], [2]]]
        )
        assert over == [[[wrong], [wrong]]], "past the buffer, past the object"
        lists = store.get_into_ranges(at.pointers[:1], [["p"]], [[[0, 1]]], [[[0]]], [[[1]]])
        assert lists == [[[wrong]]]


def test_removing(store: MooncakeDistributedStore) -> None:
    keys = [f"model-{i % 2}/page/{i}" for i in range(40)]
    assert store.put_batch(keys, [b"x"] * 40) == 0
    assert store.remove(keys[0]) == 0
    assert store.remove(keys[0]) == ErrorCode.OBJECT_NOT_FOUND
    assert store.batch_remove([keys[1], "nobody"]) == [0, ErrorCode.OBJECT_NOT_FOUND]
    assert store.remove_by_regex(r"^model-0/") == 19
    assert store.remove_by_regex(r"page/(3|5)$") == 2
    assert store.remove_by_regex(r"(unfinished") == ErrorCode.INVALID_PARAMS
    assert store.remove_by_regex(r"(a*)*b" * 20) == 0, "linear time"
    assert store.remove_all() == 17
    assert store.remove_all(force=True) == 0
    assert store.batch_is_exist(keys) == [0] * 40


def test_a_get_session(store: MooncakeDistributedStore) -> None:
    data = proof("k", 10_000)
    assert store.put("k", data) == 0
    assert store.batch_get_session_start(["k", "nobody"]) == [0, ErrorCode.OBJECT_NOT_FOUND]
    assert store.remove("k") == ErrorCode.OBJECT_HAS_LEASE
    target = bytearray(3000)
    with Addresses([target]) as at:
        base = at.pointers[0]
        read = store.batch_get_into_multi_buffer_ranges
        assert read(["k"], [[base, base + 1000]], [[1000, 2000]], [[5000, 0]]) == [3000]
        assert target == data[5000:6000] + data[:2000]
        assert read(["k"], [[base]], [[2]], [[9999]]) == [ErrorCode.INVALID_PARAMS]
        assert store.remove("k", force=True) == 0
        assert read(["k"], [[base]], [[1000]], [[9000]]) == [1000], "held until the end"
        assert target[:1000] == data[9000:]
        assert store.batch_get_session_end(["k"]) == 0
        assert read(["k"], [[base]], [[1]], [[0]]) == [ErrorCode.OBJECT_NOT_FOUND]


def test_a_put_session(store: MooncakeDistributedStore) -> None:
    data = proof("k", 3000)
    assert store.put("old", b"x") == 0
    started = store.batch_put_session_start(["k", "old", "given-up"], [3000, 1, 5])
    assert started == [0, ErrorCode.OBJECT_ALREADY_EXISTS, 0]
    assert store.batch_put_session_start(["k"], [1]) == [ErrorCode.OBJECT_ALREADY_EXISTS]
    with Addresses([data]) as at:
        base = at.pointers[0]
        write = store.batch_put_from_multi_buffer_ranges
        assert write(["k"], [[base + 2000, base]], [[1000, 1000]], [[2000, 0]]) == [0]
        assert store.is_exist("k") == 0
        assert write(["k"], [[base + 1000]], [[1000]], [[1000]]) == [0]
        assert write(["k"], [[base]], [[2]], [[2999]]) == [ErrorCode.INVALID_PARAMS]
    assert store.batch_put_session_end(["k", "nobody"]) == [0, ErrorCode.OBJECT_NOT_FOUND]
    assert store.get("k") == data
    assert store.batch_put_session_revoke(["given-up"]) == [0]
    assert store.batch_put_session_revoke(["given-up"]) == [ErrorCode.OBJECT_NOT_FOUND]
    assert store.is_exist("given-up") == 0


def test_replicas_and_tasks(store: MooncakeDistributedStore) -> None:
    two = ReplicateConfig(replica_num=2)
    assert store.put("two", proof("two", 5000), two) == 0
    wait_for(lambda: len(store.get_replica_desc("two")) == 2, "the second replica")
    for one in store.get_replica_desc("two"):
        assert one.is_memory_replica() and not one.is_disk_replica()
        found = one.get_memory_descriptor().buffer_descriptor
        assert found.size == 5000 and found.transport_endpoint in ("a", "b")
    assert store.batch_get_replica_desc(["two", "nobody"]).keys() == {"two"}
    assert store.put("one", proof("one", 5000)) == 0
    here = {one.node_id for one in store.get_replica_desc("one")}
    other = "b" if here == {"a"} else "a"
    task, code = store.create_copy_task("one", [other])
    assert code == 0

    def ended() -> bool:
        known, status = store.query_task(task)
        assert status == 0 and known is not None
        return known.status.name in ("SUCCESS", "FAILED")

    wait_for(ended, "the task")
    known, _ = store.query_task(task)
    assert known is not None and known.status.name == "SUCCESS", known
    assert {one.node_id for one in store.get_replica_desc("one")} == {"a", "b"}
    assert store.get("one") == proof("one", 5000)
    assert store.create_copy_task("nobody", ["a"])[1] == ErrorCode.OBJECT_NOT_FOUND
    assert store.create_copy_task("one", ["nowhere"])[1] == ErrorCode.SEGMENT_NOT_FOUND
    assert store.create_move_task("nobody", "a", "b")[1] == ErrorCode.OBJECT_NOT_FOUND
    assert store.query_task((1, 2)) == (None, ErrorCode.TASK_NOT_FOUND)


def test_pins(shared: Cluster, store: MooncakeDistributedStore, tenant: str) -> None:
    assert store.put("hard", b"x", ReplicateConfig(with_hard_pin=True)) == 0
    assert store.put("soft", b"x", ReplicateConfig(with_soft_pin=True)) == 0
    native = shared.connect(namespace="mooncake", tenant=tenant)
    pins = [(native.inspect(key) or {})["pin"] for key in ("hard", "soft")]
    assert pins == ["hard", "soft"]


def test_every_call_has_an_awaitable_twin(store: MooncakeDistributedStoreAsync) -> None:
    async def use() -> list[bytes]:
        codes = await asyncio.gather(*(store.async_put(str(i), b"%d" % i) for i in range(8)))
        assert codes == [0] * 8
        assert await store.async_batch_is_exist(["1", "nobody"]) == [1, 0]
        found: list[bytes] = await store.async_get_batch(["0", "7"])
        return found

    assert asyncio.run(use()) == [b"0", b"7"]
    with pytest.raises(AttributeError):
        store.async_nothing  # noqa: B018


def test_no_space_is_minus_200(cluster: Cluster) -> None:
    cluster.start_node("small", segment_size="8mb")
    store = MooncakeDistributedStore()
    set_up(store, cluster.address)
    hard = ReplicateConfig(with_hard_pin=True)
    data = random.Random(1).randbytes(1 << 20)
    with Addresses([data]) as at:
        codes = [store.put_from(f"k{i}", at.pointers[0], 1 << 20, hard) for i in range(12)]
    assert set(codes) == {0, ErrorCode.NO_AVAILABLE_HANDLE}
    assert store.put("large", bytes(16 << 20)) == ErrorCode.INVALID_PARAMS
    store.close()


def test_setup_takes_both_forms_and_both_spellings(shared: Cluster) -> None:
    both = [
        {"master_server_addr": shared.address, "rdma_devices": ""},
        {"master_server_address": shared.address, "device_name": ""},
    ]
    for spelling in both:
        store = MooncakeDistributedStore()
        values = {"local_hostname": "h", "metadata_server": "m", "global_segment_size": "0"}
        assert store.setup({**values, **spelling, "protocol": "tcp"}) == 0
        assert store.setup({**values, **spelling}) == ErrorCode.INVALID_PARAMS, "twice"
        assert store.put("k", b"v") == 0
        store.close()
    store = MooncakeDistributedStore()
    set_up(store, shared.address, engine=None, tenant_id="default")
    store.close()


def test_tenants_do_not_see_each_other(shared: Cluster, tenant: str) -> None:
    one, two = MooncakeDistributedStore(), MooncakeDistributedStore()
    set_up(one, shared.address)
    set_up(two, shared.address, tenant_id=tenant)
    assert one.put("k", b"mine") == 0
    assert two.get("k") == b"" and two.is_exist("k") == 0
    one.close()
    two.close()


def test_a_lost_cluster_is_numbers_not_exceptions(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = MooncakeDistributedStore()
    assert store.setup({
        "local_hostname": "h", "metadata_server": "", "global_segment_size": 0,
        "master_server_addr": cluster.address, "timeout_ms": 500,
    }) == 0  # fmt: skip
    assert store.put("k", b"v") == 0
    cluster.nodes["a"].kill()
    cluster.master.kill()
    buffer = bytearray(8)
    with Addresses([buffer]) as at:
        for _ in range(4):
            assert store.put("l", b"v") == ErrorCode.RPC_FAIL
            assert store.get("nobody") == b""
            assert store.batch_get_into(["m"], at.pointers, at.sizes)[0] < 0
            assert store.batch_is_exist(["m", "n"]) == [ErrorCode.RPC_FAIL] * 2
            assert store.remove("m") == ErrorCode.RPC_FAIL
            assert store.remove_all() == ErrorCode.RPC_FAIL
    assert store.health_check() == 2
    assert store.close() == 0
    assert store.put("l", b"v") == ErrorCode.INVALID_PARAMS
    assert store.health_check() == 1
    other = MooncakeDistributedStore()
    assert other.setup("h", "m", 0, 0, "tcp", "", cluster.address) == ErrorCode.RPC_FAIL


def test_tensors(store: MooncakeDistributedStore) -> None:
    numpy = pytest.importorskip("numpy")
    grid = numpy.arange(24, dtype="float32").reshape(4, 6)
    assert store.put_tensor("t", grid) == 0
    assert numpy.array_equal(store.get_tensor("t"), grid)
    assert store.upsert_tensor("t", grid[:, ::2]) == 0
    assert numpy.array_equal(store.get_tensor("t"), grid[:, ::2])
    assert store.batch_put_tensor(["a", "b"], [grid, grid.T]) == [0, 0]
    found = store.batch_get_tensor(["b", "nobody", "a"])
    assert numpy.array_equal(found[0], grid.T) and found[1] is None
    assert store.put("bytes", b"no tensor") == 0
    assert store.get_tensor("bytes") is None
    assert store.put_tensor("c", "text") == ErrorCode.INVALID_PARAMS
    config = ReplicateConfig(with_soft_pin=True)
    assert store.pub_tensor("p", grid, config) == 0
    assert store.batch_pub_tensor(["q"], [grid], config) == [0]
    assert store.upsert_pub_tensor("p", grid + 1, config) == 0
    assert store.batch_upsert_pub_tensor(["q"], [grid + 2]) == [0]
    assert store.batch_upsert_tensor(["b"], [grid + 3]) == [0]
    for key, more in (("p", 1), ("q", 2), ("b", 3)):
        assert numpy.array_equal(store.get_tensor(key), grid + more)


def test_tensors_as_shards(store: MooncakeDistributedStore) -> None:
    numpy = pytest.importorskip("numpy")
    grid = numpy.arange(48, dtype="int16").reshape(4, 12)
    assert store.put_tensor_with_tp("t", grid, tp_size=3, split_dim=1) == 0
    for rank in range(3):
        shard = store.get_tensor_with_tp("t", rank, 3, 1)
        assert numpy.array_equal(shard, grid[:, 4 * rank : 4 * rank + 4])
    assert store.is_exist("t_tp_2") == 1 and store.is_exist("t") == 0
    assert store.put_tensor_with_tp("u", grid, tp_size=5) == ErrorCode.INVALID_PARAMS
    assert store.batch_put_tensor_with_tp(["x", "y"], [grid, grid + 1], tp_size=2) == [0, 0]
    found = store.batch_get_tensor_with_tp(["x", "y", "z"], 1, 2)
    assert numpy.array_equal(found[1], grid[2:] + 1) and found[2] is None
    assert store.pub_tensor_with_tp("v", grid, ReplicateConfig(), tp_size=1) == 0
    assert numpy.array_equal(store.get_tensor_with_tp("v"), grid)
    assert store.batch_pub_tensor_with_tp(["w"], [grid], tp_size=4) == [0]
    assert numpy.array_equal(store.get_tensor_with_tp("w", 3, 4), grid[3:])


def test_tensors_by_address(store: MooncakeDistributedStore) -> None:
    numpy = pytest.importorskip("numpy")
    grid = numpy.arange(24, dtype="float64").reshape(2, 3, 4)
    assert store.put_tensor("t", grid) == 0
    room = metadata_size() + grid.nbytes
    memory = bytearray(room)
    with Addresses([memory]) as at:
        pointer = at.pointers[0]
        assert numpy.array_equal(store.get_tensor_into("t", pointer, room), grid)
        assert store.put_tensor_from("copy", pointer, room) == 0
        assert store.upsert_tensor_from("copy", pointer, room) == 0
        assert store.put_tensor_with_tp_from("tp", pointer, room, tp_size=2) == 0
        shard = store.get_tensor_with_tp_into("tp", pointer, room, 1, 2)
        assert numpy.array_equal(shard, grid[1:])
        assert store.get_tensor_into("t", pointer, 100) is None, "it does not fit"
        memory[:8] = b"rubbish!"
        assert store.put_tensor_from("bad", pointer, room) == ErrorCode.INVALID_PARAMS
    assert numpy.array_equal(store.get_tensor("copy"), grid)
    assert store.get_size("copy") == store.get_size("t")
