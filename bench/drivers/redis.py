"""Redis through redis-py: one pipeline per batch, over TCP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.drivers import Blocks, Call, WrongAnswer

_REMOVE_KEYS = 2048


def connect(host: str, port: int) -> RedisDriver:
    import redis

    client = redis.Redis(host=host, port=port)
    client.ping()
    return RedisDriver(client)


class RedisDriver:
    def __init__(self, client: Any) -> None:
        self._client = client

    def register(self, address: int, size_bytes: int) -> None:
        pass

    def bind(self, operation: str, blocks: Blocks) -> Call | None:
        client = self._client
        if operation == "put_from":
            return None  # it takes no addresses

        def put() -> Any:
            with client.pipeline(transaction=False) as pipe:
                for key, view in zip(blocks.keys, blocks.views, strict=True):
                    pipe.set(key, view)
                return pipe.execute()

        def get() -> Any:
            # The values arrive as new bytes objects; an engine wants them in its own buffer.
            with client.pipeline(transaction=False) as pipe:
                for key in blocks.keys:
                    pipe.get(key)
                values = pipe.execute()
            for view, value in zip(blocks.views, values, strict=True):
                view[:] = value
            return [len(value) for value in values]

        def exists() -> Any:
            with client.pipeline(transaction=False) as pipe:
                for key in blocks.keys:
                    pipe.exists(key)
                return pipe.execute()

        return {"put": put, "get": get, "exists": exists}[operation]

    def check(self, operation: str, blocks: Blocks, result: Any) -> None:
        wanted = {
            "put": [True] * len(blocks.keys),
            "get": blocks.sizes,
            "exists": [1] * len(blocks.keys),
        }[operation]
        if result != wanted:
            raise WrongAnswer(f"redis {operation} answered {result[:5]}")

    def absent(self, result: Any) -> bool:
        return not any(result)

    def remove(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _REMOVE_KEYS):
            self._client.delete(*keys[first : first + _REMOVE_KEYS])

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._client.close()
