"""Two versions of SGLang's storage interface, reduced to their shape: names, fields, defaults.

SGLang itself is tested in tests/engines; its older version cannot be imported without the kernels
of a GPU.
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from types import ModuleType
from typing import Any

import pytest

OLD = "0.5.6"
NEW = "0.5.23"
_HICACHE = "sglang.srt.mem_cache.hicache_storage"


class _Storage(ABC):
    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        self.mem_pool_host = mem_pool_host

    @abstractmethod
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any: ...

    @abstractmethod
    def batch_get(
        self, keys: Any, target_locations: Any = None, target_sizes: Any = None
    ) -> Any: ...

    @abstractmethod
    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool: ...

    @abstractmethod
    def batch_set(
        self, keys: Any, values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool: ...

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    def get_stats(self) -> Any:
        return None


def _config(version: str) -> type:
    fields: list[Any] = [("tp_rank", int), ("tp_size", int)]
    if version == NEW:
        fields += [("pp_rank", int, 0), ("pp_size", int, 1)]
        fields += [("attn_cp_rank", int, 0), ("attn_cp_size", int, 1)]
        fields += [("enable_storage_metrics", bool, False), ("tp_lcm_size", Any, None)]
        fields += [("should_split_heads", bool, False), ("dp_rank", int, 0)]
        fields += [("dcp_size", int, 1), ("dcp_rank", int, 0), ("logical_page_size", Any, None)]
    fields += [("is_mla_model", bool, False), ("is_page_first_layout", bool, False)]
    fields += [("model_name", Any, None), ("extra_config", Any, None)]
    return make_dataclass("HiCacheStorageConfig", fields)


@dataclass
class Metrics:
    prefetch_pgs: list[int] = field(default_factory=list)
    backup_pgs: list[int] = field(default_factory=list)
    prefetch_bandwidth: list[float] = field(default_factory=list)
    backup_bandwidth: list[float] = field(default_factory=list)


@dataclass
class PoolTransferResult:
    kv_hit_pages: int
    extra_pool_hit_pages: dict[str, int]
    restorable_prefix_pages: list[int] | None = None


@dataclass
class PoolTransfer:
    name: str
    host_indices: Any = None
    keys: list[str] | None = None
    hit_policy: str = "all_pages"


def hash_of(tokens: list[int], prior_hash: str | None = None) -> str:
    return hashlib.sha256(bytes.fromhex(prior_hash or "") + bytes(tokens)).hexdigest()


def no_server() -> Any:
    raise ValueError("there is no server")


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> ModuleType:
    """Let `import sglang…` find a version's shape; returns its hicache_storage."""
    modules: dict[str, ModuleType] = {}

    def put(path: str, **names: Any) -> ModuleType:
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in modules:
                modules[name] = ModuleType(name)
                monkeypatch.setitem(sys.modules, name, modules[name])
                if end > 1:
                    setattr(modules[".".join(parts[: end - 1])], parts[end - 1], modules[name])
        for key, value in names.items():
            setattr(modules[path], key, value)
        return modules[path]

    storage = put(_HICACHE, HiCacheStorage=_Storage, HiCacheStorageConfig=_config(version))
    hash_function: Callable[..., str] = hash_of
    if version == OLD:
        put(_HICACHE, get_hash_str=hash_function)
        put("sglang.srt.metrics.collector", StorageMetrics=Metrics)
        put("sglang.srt.server_args", get_global_server_args=no_server)
    else:
        put(_HICACHE, PoolTransferResult=PoolTransferResult, PoolTransfer=PoolTransfer)
        put("sglang.srt.mem_cache.utils", get_hash_str=hash_function)
        put("sglang.srt.observability.metrics_collector", StorageMetrics=Metrics)
        put("sglang.srt.runtime_context", get_server_args=no_server)
    name = "kvstore.integrations.sglang.hicache"  # derives from whichever version is there
    monkeypatch.delitem(sys.modules, name, raising=False)
    return storage
