"""SGLang 0.5.23's own HiCache controller on a CPU, told what to do line by line.

    python -m tests.engines.sglang_driver

A line of JSON on stdin is a command, a line of JSON on stdout its answer, the first one says that
all is imported; the end of stdin ends the process. {"do": "open", "backend": "dynamic",
"extra": {…}} makes an engine, of any backend that SGLang knows, in place of the one before it.
Pages are filled with bytes derived from their hash, pool and rank: any page tells whose it is.
"""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import torch

from tests.engines import torchvision_ops  # noqa: F401 - before SGLang imports torchvision
from tests.engines.driver_loop import serve
from tests.engines.sglang_pages import LAYERS, PAGE, PAGES, Pages, tokens_of

# ruff: isort: split
import sglang.srt.managers.cache_controller as controllers
import sglang.srt.mem_cache.pool_host.base as pool_host_base
from sglang.srt.disaggregation.decode_kvcache_offload_manager import DecodeKVCacheOffloadManager
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.group import HostPoolGroup, PoolEntry
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang.srt.runtime_context import get_parallel

HEADS = 4
SWA_WINDOW = 2  # pages
WAIT_S = 60


def device_pool(kind: str, heads: int) -> Any:
    common = {
        "size": PAGE * PAGES,
        "page_size": PAGE,
        "dtype": torch.bfloat16,
        "layer_num": LAYERS,
        "device": "cpu",
        "enable_memory_saver": False,
    }
    if kind == "mla":
        return MLATokenToKVPool(kv_lora_rank=32, qk_rope_head_dim=8, **common)
    return MHATokenToKVPool(head_num=heads, head_dim=16, **common)


def host_pool(device: Any, layout: str) -> Any:
    info = device.get_device_pool_infos()[0].buffer_info
    where = {"device_capacity_tokens": PAGE * PAGES, "start_layer": 0, "end_layer": LAYERS}
    if isinstance(device, MLATokenToKVPool):
        where["target_layer_num"] = LAYERS
        return MLATokenToKVPoolHost(info, 2.0, 0, PAGE, layout, pin_memory=False, **where)
    return MHATokenToKVPoolHost(info, 2.0, 0, PAGE, layout, pin_memory=False, **where)


def mamba_pool(layout: str) -> Any:
    from sglang.srt.mem_cache import device_pool_info

    info = device_pool_info.MambaStateBufferInfo(
        conv=[torch.zeros(LAYERS, 8, 3, 5)], temporal=torch.zeros(LAYERS, 8, 4, 6)
    )
    return MambaPoolHost(info, 2.0, 0, device_capacity=8, pin_memory=False, layout=layout)


class Engine:
    """One rank of an engine: its pools and its controller."""

    def __init__(self, config: dict[str, Any]) -> None:
        ranks = {name: config.get(name, default) for name, default in _RANKS.items()}
        get_parallel().override_permanently(**ranks)
        controllers.is_dp_attention_enabled = lambda: False  # it would ask a server's context
        pool_host_base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # a test's pools are small
        rank = ranks["tp_rank"] if config["pool"] != "mla" else 0
        layout = config.get("layout", "page_first")
        share = (0, 1)
        if "tp_lcm_size" in config["extra"]:  # ranks share the heads of one model
            rank, share = 0, (ranks["tp_rank"], ranks["tp_size"])
        device = device_pool(config["pool"], HEADS // share[1])
        allocator = PagedTokenToKVPoolAllocator(
            PAGE * PAGES, PAGE, torch.bfloat16, "cpu", device, need_sort=False
        )
        self.host = host_pool(device, layout)
        hosts = {"kv": self.host}
        # As SGLang reads its command line's flag.
        parse = HybridCacheController.parse_storage_backend_extra_config
        extra = parse(json.dumps(config["extra"]))[0]
        storage = {
            "tp_group": None,
            "load_cache_event": threading.Event(),
            "write_policy": "write_through",
            "io_backend": "direct",
            "storage_backend": config.get("backend", "dynamic"),
            "prefetch_threshold": PAGE,
            "model_name": config.get("model", "tiny/llama"),
            "storage_backend_extra_config": extra,
            "enable_storage_metrics": True,
        }
        self.hybrid = config["pool"] == "hybrid"
        if self.hybrid:
            hosts["mamba"] = mamba_pool(layout)
            hosts["swa"] = host_pool(device, layout)
            hosts["draft"] = host_pool(device, layout)
            entries = [
                PoolEntry(PoolName(name), pool, device, lambda layer: layer, name == "kv")
                for name, pool in hosts.items()
            ]
            group = HostPoolGroup(entries)
            self.controller = HybridCacheController(allocator, group, PAGE, **storage)
        else:
            self.controller = controllers.HiCacheController(allocator, self.host, PAGE, **storage)
        self.pools = {name: Pages(name, pool, rank, share) for name, pool in hosts.items()}
        backend = self.controller.storage_backend
        self.backend = getattr(backend, "_backend", backend)  # behind SGLang's failure injection

    # --- commands ---

    def write(self, chain: str, pages: int, first: int = 0) -> dict[str, Any]:
        """Store the pages first … first + pages - 1 of a chain, as a backup of SGLang does."""
        tokens, hashes = chained(chain, first + pages)
        part = hashes[first:]
        indices = self.host.alloc(PAGE * pages)
        self.pools["kv"].fill(indices, part)
        more: dict[str, Any] = {"prefix_keys": hashes[:first]}
        if self.hybrid:
            more["extra_pools"] = transfers = self.transfers(part)
            for transfer in transfers:
                if transfer.host_indices is not None:
                    self.pools[str(transfer.name)].fill(transfer.host_indices, transfer.keys)
            self.pools["draft"].fill(indices, part)
        self.controller.write_storage(indices, tokens[first * PAGE :], hash_value=part, **more)
        done = self.controller.ack_backup_queue.get(timeout=WAIT_S)
        self.host.free(indices)
        self.release(more.get("extra_pools", []))
        return {"stored": done.completed_tokens // PAGE}

    def offload(self, chain: str, pages: int, first: int) -> dict[str, Any]:
        """Store pages after the first ones as a decode instance does, by SGLang's own manager."""
        tokens, hashes = chained(chain, first + pages)
        indices = self.host.alloc(PAGE * pages)
        self.pools["kv"].fill(indices, hashes[first:])
        manager = DecodeKVCacheOffloadManager.__new__(DecodeKVCacheOffloadManager)
        manager.cache_controller, manager.decode_host_mem_pool = self.controller, self.host
        manager.page_size, manager.ongoing_backup = PAGE, {}
        request = SimpleNamespace(rid="request", extra_key=None, cache_salt=None)
        last = manager._trigger_backup(
            request, indices, tokens[first * PAGE :], 0.0, hashes[first - 1]
        )
        manager._check_backup_progress(1)
        return {"last": last == hashes[-1]}

    def transfers(self, hashes: list[str]) -> list[Any]:
        """Return the side pools' part of an operation on these pages."""
        tail = hashes[-SWA_WINDOW:]
        trailing = PoolHitPolicy.TRAILING_PAGES
        return [
            PoolTransfer(
                PoolName.MAMBA,
                host_indices=self.pools["mamba"].host_pool.alloc(1),
                keys=hashes[-1:],
                hit_policy=trailing,
            ),
            PoolTransfer(
                PoolName.SWA,
                host_indices=self.pools["swa"].host_pool.alloc(PAGE * len(tail)),
                keys=tail,
                hit_policy=trailing,
            ),
            PoolTransfer(
                PoolName.DRAFT,
                hit_policy=PoolHitPolicy.ALL_PAGES,
                indices_from_pool=PoolName.KV,
            ),
        ]

    def prefetch(self, chain: str, pages: int) -> dict[str, Any]:
        """Look for the first pages of a chain and load what is there, as a request does."""
        tokens, hashes = chained(chain, pages)
        side: list[Any] = []
        if self.hybrid:
            side = self.transfers(hashes)
            handle = CacheRequestHandle("request", 0)
            self.controller.prefetch(handle, tokens, extra_pools=side)
        else:
            self.controller.prefetch("request", tokens)
        operation = self.controller.prefetch_hit_queue.get(timeout=WAIT_S)
        found = operation.storage_hit_count // PAGE
        answer = {"found": found, "loaded": 0, "same": 0}
        if not found:
            self.release(side)
            return answer
        indices = self.host.alloc(operation.storage_hit_count)
        self.pools["kv"].poison(indices)
        operation.host_indices = indices
        for transfer in side:
            if transfer.host_indices is not None:
                self.pools[str(transfer.name)].poison(transfer.host_indices)
        if side:
            self.pools["draft"].poison(indices)
        self.controller.prefetch_buffer.put(operation)
        loaded, pool_hits = self.wait()
        answer["loaded"] = loaded
        answer["same"] = self.pools["kv"].same(indices, hashes[:loaded])
        for transfer in side:
            name = str(transfer.name)
            where = indices if transfer.host_indices is None else transfer.host_indices
            wanted = hashes[:loaded] if name == "draft" else transfer.keys
            hits = loaded if name == "draft" else pool_hits.get(name, 0)
            answer[name] = {"loaded": hits, "same": self.pools[name].same(where, wanted[:hits])}
        self.host.free(indices)
        self.release(side)
        return answer

    def release(self, transfers: list[Any]) -> None:
        for transfer in transfers:
            if transfer.indices_from_pool is None:
                self.pools[str(transfer.name)].host_pool.free(transfer.host_indices)

    def wait(self) -> tuple[int, dict[str, int]]:
        """Wait for the end of a prefetch; returns pages loaded, and pages by side pool."""
        loaded = 0
        by_pool: dict[str, int] = {}
        while True:
            ack = self.controller.ack_prefetch_queue.get(timeout=WAIT_S)
            if ack.completed_tokens is not None:
                loaded = ack.completed_tokens // PAGE
            by_pool.update(ack.pool_hits or {})
            if ack.completed_req:
                return loaded, by_pool

    def alive(self) -> dict[str, Any]:
        """Say whether every storage thread is running: one that raised has stopped."""
        prefetch = ("prefetch_thread", "prefetch_io_aux_thread", "prefetch_sync_thread")
        names = (*prefetch, "backup_thread")
        return {"alive": all(getattr(self.controller, name).is_alive() for name in names)}

    def counters(self) -> dict[str, Any]:
        return dict(self.backend.counters())

    def stats(self) -> dict[str, Any]:
        stats = self.controller.storage_backend.get_stats()
        return {"prefetched": list(stats.prefetch_pgs), "stored": list(stats.backup_pgs)}

    def close(self) -> dict[str, Any]:
        self.controller.detach_storage_backend()
        return {}

    def clear(self) -> dict[str, Any]:
        self.controller.storage_backend.clear()
        return {}

    def about(self) -> dict[str, Any]:
        return {
            "backend": type(self.backend).__name__,
            "injected": self.backend is not self.controller.storage_backend,
            "get": self.controller.page_get_func.__name__,
            "namespace": getattr(self.backend, "namespace", None),
            "page_bytes": self.pools["kv"].page_bytes,
        }


_RANKS = {
    **{"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1},
    **{"attn_dcp_rank": 0, "attn_dcp_size": 1, "attn_tp_rank": 0, "attn_tp_size": 1},
    **{"attn_dp_rank": 0},
}


def chained(chain: str, pages: int) -> tuple[list[int], list[str]]:
    """Return the tokens of a chain's first pages and SGLang's hashes of these pages."""
    tokens = tokens_of(chain, pages)
    return tokens, get_storage_hash_str(tokens, None, page_size=PAGE)


if __name__ == "__main__":
    serve(Engine)
