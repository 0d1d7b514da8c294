"""SGLang 0.5.6's own HiCache controller on a CPU: as sglang_driver, for what that version has.

No command here makes it copy between device and host, which takes the kernels of a GPU.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import torch

from tests.engines import no_sgl_kernel, torchvision_ops  # noqa: F401 - what SGLang imports
from tests.engines.driver_loop import serve
from tests.engines.sglang_pages import LAYERS, PAGE, PAGES, Pages, tokens_of

# ruff: isort: split
import sglang.srt.managers.cache_controller as controllers
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.hicache_storage import get_hash_str
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.memory_pool_host import MHATokenToKVPoolHost, MLATokenToKVPoolHost

WAIT_S = 60


def pools(kind: str, layout: str) -> tuple[Any, Any]:
    """Return a pool on the device, which is the CPU, and one on the host."""
    common = {
        "size": PAGE * PAGES,
        "page_size": PAGE,
        "dtype": torch.bfloat16,
        "layer_num": LAYERS,
        "device": "cpu",
        "enable_memory_saver": False,
    }
    if kind == "mla":
        device = MLATokenToKVPool(kv_lora_rank=32, qk_rope_head_dim=8, **common)
        return device, MLATokenToKVPoolHost(device, 2.0, 0, PAGE, layout, pin_memory=False)
    device = MHATokenToKVPool(head_num=4, head_dim=16, **common)
    return device, MHATokenToKVPoolHost(device, 2.0, 0, PAGE, layout, pin_memory=False)


class Engine:
    """One rank of an engine: its pools and its controller."""

    def __init__(self, config: dict[str, Any]) -> None:
        controllers.is_dp_attention_enabled = lambda: False
        controllers.get_tensor_model_parallel_rank = lambda: config.get("tp_rank", 0)
        controllers.get_tensor_model_parallel_world_size = lambda: config.get("tp_size", 1)
        torch.distributed.get_world_size = lambda group=None: 1  # no other rank is there to agree
        device, self.host = pools(config["pool"], config.get("layout", "page_first"))
        rank = config.get("tp_rank", 0) if config["pool"] != "mla" else 0
        self.pages = Pages("kv", self.host, rank)
        allocator = PagedTokenToKVPoolAllocator(
            PAGE * PAGES, PAGE, torch.bfloat16, "cpu", device, need_sort=False
        )
        self.controller = controllers.HiCacheController(
            allocator,
            self.host,
            PAGE,
            tp_group=None,
            load_cache_event=threading.Event(),
            write_policy="write_through",
            io_backend="direct",
            storage_backend=config.get("backend", "dynamic"),
            prefetch_threshold=PAGE,
            model_name=config.get("model", "tiny/llama"),
            storage_backend_extra_config=dict(config["extra"]),
        )
        self.backend = self.controller.storage_backend

    def write(self, chain: str, pages: int, first: int = 0) -> dict[str, Any]:
        """Store the pages first … first + pages - 1 of a chain, as a backup of SGLang does."""
        tokens, hashes = chained(chain, first + pages)
        part = hashes[first:]
        indices = self.host.alloc(PAGE * pages)
        self.pages.fill(indices, part)
        self.controller.write_storage(
            indices, tokens[first * PAGE :], hash_value=part, prefix_keys=hashes[:first]
        )
        done = self.controller.ack_backup_queue.get(timeout=WAIT_S)
        self.host.free(indices)
        return {"stored": done.completed_tokens // PAGE}

    def prefetch(self, chain: str, pages: int) -> dict[str, Any]:
        """Look for the first pages of a chain and load what is there, as a request does."""
        tokens, hashes = chained(chain, pages)
        indices = self.host.alloc(PAGE * pages)
        self.pages.poison(indices)
        operation = self.controller.prefetch("request", indices, tokens)
        # Pages that were not loaded are released one by one; then nothing is in progress any more.
        released, deadline = 0, time.monotonic() + WAIT_S
        while released + operation.completed_tokens // PAGE < pages:
            if time.monotonic() > deadline:
                raise queue.Empty
            try:
                self.controller.host_mem_release_queue.get(timeout=0.02)
                released += 1
            except queue.Empty:
                continue
        loaded = operation.completed_tokens // PAGE
        same = self.pages.same(indices, hashes[:loaded])
        self.host.free(indices)
        return {"found": len(operation.hash_value), "loaded": loaded, "same": same}

    def alive(self) -> dict[str, Any]:
        threads = (self.controller.prefetch_thread, self.controller.backup_thread)
        return {"alive": all(thread.is_alive() for thread in threads)}

    def counters(self) -> dict[str, Any]:
        return dict(self.backend.counters())

    def stats(self) -> dict[str, Any]:
        stats = self.backend.get_stats()
        return {"prefetched": list(stats.prefetch_pgs), "stored": list(stats.backup_pgs)}

    def about(self) -> dict[str, Any]:
        return {
            "backend": type(self.backend).__name__,
            "get": self.controller.page_get_func.__name__,
            "namespace": self.backend.namespace,
            "page_bytes": self.pages.page_bytes,
        }

    def close(self) -> dict[str, Any]:
        self.controller.stop_event.set()
        self.controller.prefetch_thread.join(WAIT_S)
        self.controller.backup_thread.join(WAIT_S)
        self.backend.close()
        return {}


def chained(chain: str, pages: int) -> tuple[list[int], list[str]]:
    """Return the tokens of a chain's first pages and SGLang's hashes of these pages."""
    tokens = tokens_of(chain, pages)
    hashes: list[str] = []
    for start in range(0, len(tokens), PAGE):
        hashes.append(get_hash_str(tokens[start : start + PAGE], hashes[-1] if hashes else None))
    return tokens, hashes


if __name__ == "__main__":
    serve(Engine)
