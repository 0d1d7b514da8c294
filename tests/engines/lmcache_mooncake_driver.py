"""LMCache's own Mooncake connector on a CPU, told what to do line by line.

    python -m tests.engines.lmcache_mooncake_driver EXTRA-CONFIG-JSON

A line of JSON on stdin is a command, a line of JSON on stdout its answer; the first answer tells
what the connector is. Chunks are filled with numbers drawn from their own number.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import traceback
from collections.abc import Coroutine
from typing import Any

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.connector.mooncakestore_connector import MooncakestoreConnector
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

CHUNK = 16  # tokens
WAIT_S = 60


class Engine:
    """The connector, with the host memory of an engine."""

    def __init__(self, extra: dict[str, Any]) -> None:
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK, local_cpu=True, max_local_cpu_size=0.05, extra_config=extra
        )
        metadata = LMCacheMetadata(
            model_name="tiny",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.float32,
            kv_shape=(2, 2, CHUNK, 2, 32),
            chunk_size=CHUNK,
        )
        self.memory = LocalCPUBackend(config, metadata, dst_device="cpu")
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.connector = MooncakestoreConnector(self.loop, self.memory, config)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def keys(self, numbers: list[int]) -> list[CacheEngineKey]:
        return [CacheEngineKey("tiny", 1, 0, 1000 + number, torch.float32) for number in numbers]

    def chunk(self, number: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(number)
        return torch.randn(self.connector.meta_shapes[0], generator=draw)

    def about(self) -> dict[str, Any]:
        return {
            "connector": type(self.connector).__name__,
            "store": type(self.connector.store).__module__,
            "save_chunk_meta": self.connector.save_chunk_meta,
            "registered": self.connector.registered_buffer_ptr is not None,
        }

    def write(self, numbers: list[int]) -> dict[str, Any]:
        """Store chunks."""
        connector, chunks = self.connector, []
        for number in numbers:
            chunk = self.memory.allocate(
                connector.meta_shapes, connector.meta_dtypes, connector.meta_fmt
            )
            bytes_of = self.chunk(number).contiguous().view(torch.uint8).flatten()
            chunk.raw_tensor.view(torch.uint8).copy_(bytes_of)
            chunks.append(chunk)
        keys = self.keys(numbers)
        self.run(connector.batched_put(keys, chunks))
        return {"exist": sum(bool(connector.exists_sync(key)) for key in keys)}

    def read(self, numbers: list[int]) -> dict[str, Any]:
        """Look for chunks and load them: how many are there, loaded, and as they were written."""
        connector, keys = self.connector, self.keys(numbers)
        there = self.run(connector.batched_async_contains("lookup", keys))
        loaded = self.run(connector.batched_get(keys))
        same = 0
        for number, chunk in zip(numbers, loaded, strict=True):
            if chunk is not None:
                wanted = self.chunk(number).view(torch.uint8).flatten()
                stored = chunk.raw_tensor.view(torch.uint8).flatten()[: wanted.numel()]
                same += torch.equal(stored, wanted)
        return {"found": there, "loaded": sum(c is not None for c in loaded), "same": same}

    def close(self) -> dict[str, Any]:
        self.run(self.connector.close())
        return {}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what the engine prints is no answer
    engine = Engine(json.loads(sys.argv[1]))
    print(json.dumps(engine.about()), file=answers, flush=True)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        try:
            answer = getattr(engine, order.pop("do"))(**order)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    engine.close()


if __name__ == "__main__":
    main()
