"""The calls for GPU memory on a real GPU: `make test-gpu`. Needs PyTorch; CuPy is used when there.

Runs by itself, because a machine with a GPU may have no pytest; test_real_device.py has the same
checks as tests.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import kvstore
from kvstore import Status
from kvstore.gpu import get_array
from tests.gpu.damage import damage
from tests.support.payloads import proof

MB = 1 << 20


def why_not() -> str:
    """What this machine lacks; empty when the checks can run."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return "" if torch.cuda.is_available() else "there is no NVIDIA GPU, or no driver"


def _on_gpu(data: bytes):  # type: ignore[no-untyped-def]
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda()


def _bytes(tensor) -> bytes:  # type: ignore[no-untyped-def]
    there = tensor.cpu()  # dense; read without NumPy, which PyTorch does not need
    return ctypes.string_at(there.data_ptr(), there.numel())


def put_and_get(store: kvstore.Store) -> None:
    """Objects of many sizes, both ways, and through the host."""
    import torch

    for size in (1, 4096, 65_537, MB, 20 * MB):
        key = f"size/{size}"
        data = proof(key, size)
        assert store.put(key, _on_gpu(data)) is Status.Ok
        assert store.get(key) == data
        out = torch.zeros(size, dtype=torch.uint8, device="cuda")
        assert store.get_into(key, out) == size
        assert _bytes(out) == data


def batches_on_a_stream(store: kvstore.Store) -> None:
    """Many small blocks: kernels that are queued behind the copies see them."""
    import torch

    keys = [f"page/{i}" for i in range(500)]
    data = [proof(key, 64 << 10) for key in keys]
    assert store.batch_put(keys, [_on_gpu(one) for one in data]) == [Status.Ok] * len(keys)
    pool = torch.zeros((len(keys), 64 << 10), dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        transfer = store.batch_get_into(keys, list(pool), stream=stream)
        copy = pool.clone()
    assert transfer.result(30_000) == [64 << 10] * len(keys)
    stream.synchronize()
    assert [_bytes(row) for row in copy] == data


def a_put_sees_what_is_queued_before(store: kvstore.Store) -> None:
    """The bytes of a put are those after the stream's kernels."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.zeros(8 * MB, dtype=torch.uint8, device="cuda")
        torch.cuda._sleep(50_000_000)
        tensor.fill_(7)
        assert store.put("after", tensor) is Status.Ok
    assert store.get("after") == b"\7" * (8 * MB)


def wrong_memory_and_streams(store: kvstore.Store) -> None:
    """What is not a device's memory is refused with a sentence."""
    import torch

    store.put("one", b"1" * 4096)
    host = torch.zeros(4096, dtype=torch.uint8)
    for pointer in (host.data_ptr(), 1 << 40):
        try:
            store.batch_get_into_pointers(["one"], [pointer], [4096], memory="cuda")
        except kvstore.InvalidArgumentError as error:
            assert "not memory of a CUDA device" in str(error)
        else:
            raise AssertionError("host memory was taken for a device's")


def arrays_of_cupy(store: kvstore.Store) -> None:
    """Arrays of CuPy, in place of tensors."""
    try:
        import cupy
    except ImportError:
        return
    source = cupy.arange(100_000, dtype=cupy.float32)
    assert store.put("cupy", source) is Status.Ok
    out = cupy.zeros(100_000, dtype=cupy.float32)
    assert store.get_into("cupy", out) == source.nbytes
    assert bool((out == source).all())
    columns_first = cupy.asfortranarray(source.reshape(100, 1000))
    assert store.put_tensor("array", columns_first) is Status.Ok
    array = get_array(store, "array")
    assert array.strides == columns_first.strides
    assert bool((array == columns_first).all())


def tensors(store: kvstore.Store) -> None:
    """Tensors with their dtype and shape."""
    import torch

    tensor = torch.randn(2, 64, 128, dtype=torch.bfloat16, device="cuda")
    assert store.put_tensor("tensor", tensor) is Status.Ok
    out = torch.empty_like(tensor)
    assert store.get_tensor_into("tensor", out)
    assert torch.equal(out, tensor)
    assert torch.equal(store.get_tensor("tensor"), tensor.cpu())


def checksums_by_a_kernel(store: kvstore.Store) -> None:
    """Every length and alignment is what the host has summed, and damage is found."""
    import torch

    pool = torch.zeros(4 * MB, dtype=torch.uint8, device="cuda")
    keys = [f"odd/{i}" for i in range(200)]
    data = [proof(key, 1 + i * i * 37 % 70_001) for i, key in enumerate(keys)]
    assert all(store.batch_put(keys, data))
    starts = [i * 9973 % (3 * MB) for i in range(len(keys))]
    for key, one, start in zip(keys, data, starts, strict=True):
        out = pool[start : start + len(one)]
        assert store.get_into(key, out) == len(one)
        assert _bytes(out) == one
        assert store.put(f"back/{key}", out) is Status.Ok
        assert store.get(f"back/{key}") == one
    (gpu,) = store.stats()["gpus"]
    assert gpu["checksums"] == "gpu", gpu["why"]
    assert store.stats()["wrong_checksums"] == 0
    damage(data[-1])
    transfer = store.get_into(keys[-1], pool, stream=torch.cuda.current_stream())
    assert transfer.result(30_000) == [Status.ChecksumMismatch]


def pages_of_every_layout(store: kvstore.Store) -> None:
    """Pages go from each layout to each other, with gaps and without, by kernels and by copies."""
    import torch

    layers, pages, tokens = 7, 24, 8
    axes: dict[Any, tuple[int, ...]] = {
        "layer_first": (0, 2, 1, 3, 4),
        "page_first": (0, 1, 3, 2, 4),
        "page_first_direct": (0, 1, 2, 3, 4),
    }
    for parts, token_bytes in ((2, 256), (1, 1152), (2, 24)):
        pools = {}
        for layout, order in axes.items():
            shape = [(parts, pages, layers, tokens, token_bytes)[axis] for axis in order]
            memory = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
            count = parts * (layers if layout == "layer_first" else 1)
            each = memory.numel() // count
            buffers = [memory.data_ptr() + i * each for i in range(count)]
            pool = kvstore.PagePool(layout, buffers, layers, pages, tokens, token_bytes, parts)
            pools[layout] = (memory, order, pool)
        for source, (from_memory, from_order, there) in pools.items():
            for target, (to_memory, to_order, here) in pools.items():
                keys = [f"{parts}/{token_bytes}/{source}/{target}/{page}" for page in range(pages)]
                torch.cuda.synchronize()
                assert all(store.batch_put_from_pages(keys, there, range(pages)))
                ids = [(page * 7) % pages for page in range(pages)]
                found = store.batch_get_into_pages(keys, here, ids)
                assert found == [there.page_bytes] * pages
                wanted = from_memory.permute(_inverse(from_order))
                now = to_memory.permute(_inverse(to_order))
                if source != target:
                    assert torch.equal(now[:, ids], wanted), (source, target, parts)
                assert all(store.batch_remove(keys))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


def blocks_of_vllm(store: kvstore.Store) -> None:
    """The connector's memory on real tensors and streams."""
    import torch

    from kvstore.integrations.vllm.gpu_memory import GpuMemory
    from kvstore.integrations.vllm.memory import memory_of

    shape = (64, 2, 16, 8, 64)  # blocks first
    caches = {f"l{i}": torch.randn(shape, dtype=torch.float16, device="cuda") for i in range(4)}
    memory = memory_of(caches, {0: list(caches)}, 64)
    assert isinstance(memory, GpuMemory)
    keys, ids, groups = [f"block/{i}" for i in range(20)], list(range(20)), [0] * 20
    for cache in caches.values():
        cache += 1  # queued on the engine's stream: the put is behind it
    after = memory.mark()
    put = memory.put(store, keys, groups, ids, parent=None, replicas=1, after=after)
    assert all(put)
    there = [block + 30 for block in ids]
    sizes = memory.get(store, keys, groups, there)
    assert sizes == [memory.block_bytes(0)] * 20
    for cache in caches.values():
        assert torch.equal(cache[there], cache[ids])


CHECKS: tuple[Callable[[kvstore.Store], None], ...] = (
    put_and_get,
    batches_on_a_stream,
    a_put_sees_what_is_queued_before,
    wrong_memory_and_streams,
    arrays_of_cupy,
    tensors,
    checksums_by_a_kernel,
    pages_of_every_layout,
    blocks_of_vllm,
)


def run(check: Callable[[kvstore.Store], None]) -> None:
    """Run a check on a store of its own."""
    with kvstore.open(segment_size="256mb", timeout_ms=30_000) as store:
        check(store)


def main() -> int:
    """Run all checks."""
    if reason := why_not():
        print(f"skipped: {reason}")
        return 1
    for check in CHECKS:
        started = time.monotonic()
        run(check)
        print(f"{check.__name__}: passed in {time.monotonic() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
