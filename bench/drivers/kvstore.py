"""kvstore through its Python library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import kvstore
from bench.drivers import Blocks, Call, WrongAnswer
from kvstore.errors import Status
from kvstore.polling import AUTO

_REMOVE_KEYS = 2048


def connect(
    address: str = "",
    transport: Literal["auto", "tcp"] = "auto",
    embedded_bytes: int = 0,
    namespace: str = "bench",
    poll_us: int = AUTO,
    tls_ca: str | None = None,
) -> KvstoreDriver:
    """A client of the cluster at `address`, or a store inside this process."""
    if embedded_bytes:
        return KvstoreDriver(kvstore.open(segment_size=embedded_bytes, timeout_ms=60_000))
    return KvstoreDriver(
        kvstore.connect(
            address,
            transport=transport,
            namespace=namespace,
            timeout_ms=60_000,
            poll_us=poll_us,
            tls_ca=tls_ca,
        )
    )


class KvstoreDriver:
    def __init__(self, store: kvstore.Store) -> None:
        self._store = store

    def register(self, address: int, size_bytes: int) -> None:
        pass

    def bind(self, operation: str, blocks: Blocks) -> Call | None:
        store = self._store
        one = len(blocks.keys) == 1
        if operation == "put_from":
            return partial(store.batch_put_from, blocks.keys, blocks.pointers, blocks.sizes)
        if operation == "put":
            if one:
                return partial(store.put, blocks.keys[0], blocks.views[0])
            return partial(store.batch_put, blocks.keys, blocks.views)
        if operation == "get":
            if one:
                return partial(store.get_into, blocks.keys[0], blocks.views[0])
            return partial(
                store.batch_get_into_pointers, blocks.keys, blocks.pointers, blocks.sizes
            )
        if one:
            return partial(store.exists, blocks.keys[0])
        return partial(store.batch_exists, blocks.keys)

    def check(self, operation: str, blocks: Blocks, result: Any) -> None:
        answers: list[Any] = result if isinstance(result, list) else [result]
        right: dict[str, list[Any]] = {
            "put_from": [Status.Ok] * len(blocks.keys),
            "put": [Status.Ok] * len(blocks.keys),
            "get": list(blocks.sizes),
            "exists": [True] * len(blocks.keys),
        }
        wanted = right[operation]
        if answers != wanted:
            wrong = {str(a) for a, w in zip(answers, wanted, strict=True) if a != w}
            raise WrongAnswer(f"kvstore {operation} answered {', '.join(sorted(wrong))}")

    def absent(self, result: Any) -> bool:
        return not any(result if isinstance(result, list) else [result])

    def remove(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _REMOVE_KEYS):
            self._store.batch_remove(keys[first : first + _REMOVE_KEYS])

    def counters(self) -> dict[str, int]:
        stats = self._store.stats()
        return {
            name: stats[name]
            for name in ("hits_shm", "hits_tcp", "wrong_checksums", "retries", "evictions")
        }

    def close(self) -> None:
        self._store.close()
