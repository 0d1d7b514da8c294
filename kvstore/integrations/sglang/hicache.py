"""KVStoreHiCache: the class that SGLang's dynamic backend loader loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.mem_cache import hicache_storage as sglang_storage

from kvstore.integrations.sglang.backend import HiCacheBackend

_PROBE_TOKENS = list(range(1, 17))


class KVStoreHiCache(HiCacheBackend, sglang_storage.HiCacheStorage):  # type: ignore[misc]
    """SGLang's HiCacheStorage on kvstore, for SGLang 0.5.6 to 0.5.23.

    All calls are HiCacheBackend's; this class adds what needs SGLang's own modules.
    """

    def weights(self) -> dict[str, object]:
        """Return facts that distinguish this engine's weights from others of the same name."""
        if self.options.weights_revision:
            return super().weights()
        arguments = _server_args()
        names = ("model_path", "revision", "quantization")
        return {name: str(getattr(arguments, name, "") or "") for name in names}

    def probe(self) -> str:
        """Return SGLang's hash of an agreed list of tokens, two pages chained."""
        hash_page = _hash_function()
        return str(hash_page(_PROBE_TOKENS, hash_page(_PROBE_TOKENS)))

    def batch_exists_v2(
        self, keys: Sequence[str], pool_transfers: Any = None, extra_info: Any = None
    ) -> Any:
        """Return SGLang's PoolTransferResult of `prefixes_v2`."""
        longest, by_pool, lengths = self.prefixes_v2(keys, pool_transfers)
        return sglang_storage.PoolTransferResult(longest, by_pool, lengths)

    def get_stats(self) -> Any:
        """Return SGLang's StorageMetrics since the last call: pages and GB/s of each batch.

        None where this version of SGLang has other metrics.
        """
        taken = self.take_transfers()
        try:
            metrics = _storage_metrics()()
            metrics.prefetch_pgs.extend(pages for pages, _ in taken["get"])
            metrics.prefetch_bandwidth.extend(rate for _, rate in taken["get"])
            metrics.backup_pgs.extend(pages for pages, _ in taken["set"])
            metrics.backup_bandwidth.extend(rate for _, rate in taken["set"])
        except (ImportError, AttributeError):
            return None
        return metrics


def _hash_function() -> Any:
    try:
        from sglang.srt.mem_cache.utils import get_hash_str
    except ImportError:  # 0.5.6
        from sglang.srt.mem_cache.hicache_storage import get_hash_str
    return get_hash_str


def _storage_metrics() -> Any:
    try:
        from sglang.srt.observability.metrics_collector import StorageMetrics
    except ImportError:  # 0.5.6
        from sglang.srt.metrics.collector import StorageMetrics
    return StorageMetrics


def _server_args() -> Any:
    """Return the server's arguments; None without a server (tests)."""
    try:
        from sglang.srt.runtime_context import get_server_args as given
    except ImportError:  # 0.5.6
        from sglang.srt.server_args import get_global_server_args as given
    try:
        return given()
    except Exception:  # SGLang raises various exceptions when there are none
        return None
