"""Drives LMCache's own storage backend over a remote storage plug-in, without a GPU.

usage: lmcache_driver.py write|read|absent EXTRA-CONFIG-JSON

Writes chunks (the last one is a prompt's end, shorter than a chunk), or reads them and compares
every byte; prints "ok" as the last line when all is as it should be.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

CHUNK, LAYERS, HEADS, HEAD = 16, 2, 2, 32
LENGTHS = [CHUNK, CHUNK, CHUNK, CHUNK - 6]


def chunk_of(number: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn((2, LAYERS, tokens, HEADS * HEAD), generator=generator)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8).flatten()


def backends(extra: dict[str, Any], loop: asyncio.AbstractEventLoop) -> tuple[Any, Any]:
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK,
        local_cpu=True,
        max_local_cpu_size=0.05,
        remote_storage_plugins=["kvstore"],
        remote_serde="naive",
        extra_config=extra,
    )
    metadata = LMCacheMetadata(
        model_name="tiny",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=torch.float32,
        kv_shape=(LAYERS, 2, CHUNK, HEADS, HEAD),
        chunk_size=CHUNK,
    )
    memory = LocalCPUBackend(config, metadata, dst_device="cpu")
    return memory, RemoteBackend(config, metadata, loop, memory, "cpu", plugin_name="kvstore")


def write(memory: Any, remote: Any, keys: list[CacheEngineKey]) -> None:
    chunks = []
    for number, tokens in enumerate(LENGTHS):
        values = chunk_of(number, tokens)
        chunk = memory.allocate(values.shape, torch.float32, MemoryFormat.KV_2LTD)
        chunk.raw_tensor.view(torch.uint8).flatten()[: values.nbytes].copy_(bytes_of(values))
        chunks.append(chunk)
    left = threading.Semaphore(0)
    # A list and a single one: LMCache has a call for either.
    remote.batched_submit_put_task(
        keys[:-1], chunks[:-1], on_complete_callback=lambda key: left.release()
    )
    remote.submit_put_task(keys[-1], chunks[-1], on_complete_callback=lambda key: left.release())
    for _ in keys:
        assert left.acquire(timeout=30), "a put does not end"
    assert [chunk.get_ref_count() for chunk in chunks] == [1] * len(chunks)
    assert all(remote.contains(key) for key in keys)


def read(remote: Any, keys: list[CacheEngineKey], loop: asyncio.AbstractEventLoop) -> None:
    absent = CacheEngineKey("tiny", 1, 0, 5555, torch.float32)
    assert remote.batched_contains([*keys, absent, keys[0]]) == len(keys)
    asked = remote.batched_async_contains("lookup", [keys[0], absent])
    assert asyncio.run_coroutine_threadsafe(asked, loop).result(30) == 1
    several = remote.batched_get_blocking([*keys, absent])
    assert several.pop() is None
    single = [remote.get_blocking(key) for key in keys]
    asked = remote.batched_get_non_blocking("lookup", [keys[0], keys[1], absent, keys[2]])
    prefix = asyncio.run_coroutine_threadsafe(asked, loop).result(30)
    assert len(prefix) == 2
    for found in (several, single, prefix):
        for number, chunk in enumerate(found):
            values = chunk_of(number, LENGTHS[number])
            assert chunk is not None, f"chunk {number} did not come"
            assert chunk.get_shapes() == [values.shape] or chunk.get_shape() == values.shape
            got = chunk.raw_tensor.view(torch.uint8).flatten()[: values.nbytes]
            assert chunk.get_size() == values.nbytes
            assert torch.equal(got, bytes_of(values)), f"chunk {number} has other bytes"
            chunk.ref_count_down()


def main() -> None:
    mode, extra = sys.argv[1], json.loads(sys.argv[2])
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    memory, remote = backends(extra, loop)
    keys = [CacheEngineKey("tiny", 1, 0, 1000 + n, torch.float32) for n in range(len(LENGTHS))]
    if mode == "write":
        write(memory, remote, keys)
    elif mode == "read":
        read(remote, keys, loop)
    else:
        assert remote.batched_contains(keys) == 0
        assert remote.batched_get_blocking(keys) == [None] * len(keys)
    remote.close()
    loop.call_soon_threadsafe(loop.stop)
    print("ok", flush=True)


if __name__ == "__main__":
    main()
