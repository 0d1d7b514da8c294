"""Mooncake Store through its Python library; registered buffers, protocol tcp."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from bench.drivers import Blocks, Call, WrongAnswer

_REMOVE_KEYS = 2048


def connect(
    host: str, metadata: str, master: str, segment_bytes: int = 0, buffer_bytes: int = 64 << 20
) -> MooncakeDriver:
    """A pure client (`segment_bytes` 0), or one that is also a store."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    code = store.setup(host, metadata, segment_bytes, buffer_bytes, "tcp", "", master)
    if code != 0:
        raise WrongAnswer(f"mooncake setup answered {code}")
    return MooncakeDriver(store)


class MooncakeDriver:
    def __init__(self, store: Any) -> None:
        self._store = store

    def register(self, address: int, size_bytes: int) -> None:
        code = self._store.register_buffer(address, size_bytes)
        if code != 0:
            raise WrongAnswer(f"mooncake register_buffer answered {code}")

    def bind(self, operation: str, blocks: Blocks) -> Call | None:
        store = self._store
        one = len(blocks.keys) == 1
        if operation == "put_from":
            if one:
                return partial(store.put_from, blocks.keys[0], blocks.pointers[0], blocks.sizes[0])
            return partial(store.batch_put_from, blocks.keys, blocks.pointers, blocks.sizes)
        if operation == "put":
            if one:
                return partial(store.put, blocks.keys[0], blocks.views[0])
            return partial(store.put_batch, blocks.keys, blocks.views)
        if operation == "get":
            if one:
                return partial(store.get_into, blocks.keys[0], blocks.pointers[0], blocks.sizes[0])
            return partial(store.batch_get_into, blocks.keys, blocks.pointers, blocks.sizes)
        if one:
            return partial(store.is_exist, blocks.keys[0])
        return partial(store.batch_is_exist, blocks.keys)

    def check(self, operation: str, blocks: Blocks, result: Any) -> None:
        answers = result if isinstance(result, list) else [result]
        wanted = {
            "put_from": [0] * len(answers),
            "put": [0] * len(answers),
            "get": blocks.sizes,
            "exists": [1] * len(blocks.keys),
        }[operation]
        if answers != wanted:
            wrong = {str(answer) for answer in answers}
            raise WrongAnswer(f"mooncake {operation} answered {', '.join(sorted(wrong)[:5])}")

    def absent(self, result: Any) -> bool:
        return all(answer == 0 for answer in (result if isinstance(result, list) else [result]))

    def remove(self, keys: Sequence[str]) -> None:
        # Forced, because a read leaves a lease that otherwise keeps the object for seconds.
        for first in range(0, len(keys), _REMOVE_KEYS):
            self._store.batch_remove(list(keys[first : first + _REMOVE_KEYS]), True)

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._store.close()
