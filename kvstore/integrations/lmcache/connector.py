"""KVStoreRemoteConnector: LMCache's interface of remote storage; imports LMCache."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from lmcache.v1.protocol import RemoteMetadata
from lmcache.v1.storage_backend.connector import (
    ConnectorAdapter,
    ConnectorContext,
    extract_plugin_type,
)
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from kvstore.client.lookup import Lookup
from kvstore.client.store import Store
from kvstore.clock import monotonic_ns
from kvstore.errors import MissReason, Status
from kvstore.integrations.guard import UNREACHABLE, Guard
from kvstore.integrations.identity import namespace_of
from kvstore.integrations.link import Link
from kvstore.integrations.lmcache.options import Options
from kvstore.integrations.registered import memory_of_tensors, register

_T = TypeVar("_T")

_PLUGIN = "kvstore"
_THREADS = 4
_STORED = (Status.Ok, Status.AlreadyExists)


class KVStoreAdapter(ConnectorAdapter):
    """Creates the connector for plug-ins named "kvstore" or "kvstore.<instance>"."""

    def __init__(self) -> None:
        """Answer for the plug-in's name."""
        super().__init__(f"plugin://{_PLUGIN}")

    def can_parse(self, url: str) -> bool:
        """Say whether an address names this plug-in."""
        name = url.removeprefix("plugin://")
        return name != url and extract_plugin_type(name) == _PLUGIN

    def create_connector(self, context: ConnectorContext) -> RemoteConnector:
        """Create a connector.

        Raises:
            ValueError: The plug-in's options are wrong.
        """
        return KVStoreRemoteConnector(context)


class KVStoreRemoteConnector(RemoteConnector):
    """Keeps LMCache's chunks in a kvstore cluster.

    A chunk is one object: LMCache's description of it, unless save_chunk_meta is false, then its
    bytes, moved straight between LMCache's memory and the store. Calls run in threads: LMCache's
    loop never waits. Failures become misses.
    """

    def __init__(self, context: ConnectorContext) -> None:
        """Read the options from LMCache's context; connects when it is first used.

        Raises:
            ValueError: The plug-in's options are wrong.
        """
        super().__init__(context.config, context.metadata)
        plugin = context.plugin_name or _PLUGIN
        options = Options.of(plugin, context.config.extra_config or {})
        self._memory = context.local_cpu_backend
        self._replicas = options.replicas
        self._chunk_tokens = context.metadata.chunk_size
        self._layerwise = bool(context.config.use_layerwise)
        self._guard = Guard("LMCache", prefill_tokens_per_s=options.prefill_tokens_per_s)
        # For reads only: a master that answers lookups does not mean that no node hangs.
        self._reads = Guard("LMCache")
        namespace = self._namespace(context, options)
        self._link = Link(self._guard, lambda: self._opened(options, namespace))
        self._threads = ThreadPoolExecutor(_THREADS, "kvstore-lmcache")

    def _namespace(self, context: ConnectorContext, options: Options) -> str:
        config, metadata = context.config, context.metadata
        facts = {
            "revision": options.revision,
            "dtype": str(metadata.kv_dtype),
            "shape": list(metadata.kv_shape),
            "chunk": metadata.chunk_size,
            "ranks": metadata.world_size,
            "mla": metadata.use_mla,
            "layerwise": self._layerwise,
            "description": self.save_chunk_meta,
            "serde": config.remote_serde,
            "hash": config.pre_caching_hash_algorithm,
        }
        return namespace_of("lmcache", metadata.model_name, facts)

    def _opened(self, options: Options, namespace: str) -> Store:
        store = options.open_store(namespace)
        # Of LMCache's allocators, those that take chunks from one tensor have it under this name.
        pool = getattr(getattr(self._memory, "memory_allocator", None), "buffer", None)
        register(store, self._guard, memory_of_tensors([pool]))
        return store

    # --- asking ---

    async def exists(self, key: Any) -> bool:
        """Say whether a chunk can be read."""
        return await self._contains([key]) == 1

    def exists_sync(self, key: Any) -> bool:
        """Say whether a chunk can be read; the caller's thread waits for the store."""
        return self.batched_contains([key]) == 1

    def support_batched_contains(self) -> bool:
        """Say that a list of keys is looked up in one call."""
        return True

    def batched_contains(self, keys: list[Any]) -> int:
        """Return how many leading chunks can be read; the caller's thread waits for the store."""
        if self._reads.skips():
            return 0
        names = [key.to_string() for key in keys]
        found = self._link.call("lookup", lambda store: store.lookup(names), None, _is_unreachable)
        return len(found) if found is not None and found and self._guard.worth_fetching() else 0

    async def batched_async_contains(
        self, lookup_id: str, keys: list[Any], pin: bool = False
    ) -> int:
        """Return how many leading chunks can be read."""
        return await self._contains(keys)

    async def _contains(self, keys: list[Any]) -> int:
        return await self._in_thread(lambda: self.batched_contains(keys), _nothing)

    # --- reading ---

    async def get(self, key: Any) -> Any:
        """Read a chunk into LMCache's memory; None on a miss."""
        (found,) = await self.batched_get([key])
        return found

    def support_batched_get(self) -> bool:
        """Say that a list of chunks is read in one call."""
        return True

    async def batched_get(self, keys: list[Any]) -> list[Any]:
        """Read chunks into LMCache's memory; None for each miss."""
        if not keys:
            return []
        names = [key.to_string() for key in keys]
        return await self._in_thread(lambda: self._read(names), _give_back)

    async def batched_get_non_blocking(self, lookup_id: str, keys: list[Any]) -> list[Any]:
        """Read chunks; return those before the first miss."""
        found = await self.batched_get(keys)
        length = next((i for i, one in enumerate(found) if one is None), len(found))
        _give_back(found[length:])
        return found[:length]

    def _read(self, names: list[str]) -> list[Any]:
        began = monotonic_ns()
        found = self._read_described(names) if self.save_chunk_meta else self._read_plain(names)
        tokens = self._chunk_tokens * sum(one is not None for one in found)
        self._guard.fetched(tokens, (monotonic_ns() - began) / 1e9)
        return found

    def _read_plain(self, names: list[str]) -> list[Any]:
        """Read chunks without a description; a short one is a prompt's last."""
        chunks = self._full_chunks(len(names))
        sizes = self._get_into(
            names,
            [[chunk.data_ptr] for chunk in chunks],
            [[chunk.get_size()] for chunk in chunks],
        )
        found: list[Any] = [None] * len(names)
        for i, (chunk, size) in enumerate(zip(chunks, sizes, strict=True)):
            try:
                if size > 0:
                    found[i] = self.reshape_partial_chunk(chunk, size)
            except ValueError as error:
                self._guard.say("partial chunk", f"{names[i]} is not a chunk: {error}")
            if found[i] is None:
                chunk.ref_count_down()
        return found

    def _read_described(self, names: list[str]) -> list[Any]:
        """Read chunks with their description: full ones in place, others through a copy."""
        header_bytes = self.remote_metadata_bytes
        found: list[Any] = [None] * len(names)
        others = list(range(len(names)))
        if not self._layerwise:
            chunks = self._full_chunks(len(names))
            headers = [ctypes.create_string_buffer(header_bytes) for _ in chunks]
            sizes = self._get_into(
                names,
                [
                    [ctypes.addressof(header), chunk.data_ptr]
                    for header, chunk in zip(headers, chunks, strict=True)
                ],
                [[header_bytes, chunk.get_size()] for chunk in chunks],
            )
            others = list(range(len(chunks), len(names)))
            for i, (chunk, size) in enumerate(zip(chunks, sizes, strict=True)):
                if size == header_bytes + chunk.get_size() and _describes(headers[i].raw, chunk):
                    found[i] = chunk
                    continue
                chunk.ref_count_down()
                if size > 0 or size == Status.BufferTooSmall:
                    others.append(i)
        if others:
            wanted = [names[i] for i in others]
            no_bytes: list[bytes | None] = [None] * len(wanted)
            stored = self._link.call("load", lambda store: store.batch_get(wanted), no_bytes)
            for i, data in zip(others, stored, strict=True):
                found[i] = self._copied(names[i], data)
        return found

    def _copied(self, name: str, data: bytes | None) -> Any:
        """Copy a described chunk into memory of its own size."""
        header_bytes = self.remote_metadata_bytes
        if data is None or len(data) < header_bytes:
            return None
        try:
            described = RemoteMetadata.deserialize(data[:header_bytes])
            chunk = self._memory.allocate(
                described.shapes, described.dtypes, described.fmt, busy_loop=False
            )
        except (KeyError, ValueError) as error:  # a description of another version
            self._guard.say("description", f"{name} has an unknown description: {error}")
            return None
        if chunk is None:
            self._guard.count("no_memory")
            return None
        body = len(data) - header_bytes
        if body != described.length or body != chunk.get_size():
            self._guard.say("length", f"the length of {name} differs from its description")
            chunk.ref_count_down()
            return None
        ctypes.memmove(chunk.data_ptr, data[header_bytes:], body)
        return chunk

    def _full_chunks(self, count: int) -> list[Any]:
        """Allocate full chunks; fewer than requested when LMCache's memory is short."""
        chunks = []
        for _ in range(count):
            chunk = self._memory.allocate(
                self.meta_shapes, self.meta_dtypes, self.meta_fmt, busy_loop=False
            )
            if chunk is None:
                self._guard.count("no_memory")
                break
            chunks.append(chunk)
        return chunks

    def _get_into(
        self, names: list[str], pointers: list[list[int]], sizes: list[list[int]]
    ) -> list[int]:
        wanted = names[: len(pointers)]
        unreachable = [int(Status.Unavailable)] * len(wanted)

        def read() -> list[int]:
            return self._link.call(
                "load",
                lambda store: store.batch_get_into_pointers(wanted, pointers, sizes),
                unreachable,
                _says_unreachable,
            )

        return self._reads.call("load", read, unreachable, _says_unreachable)

    # --- writing ---

    async def put(self, key: Any, memory_obj: Any) -> None:
        """Store a chunk."""
        await self.batched_put([key], [memory_obj])

    def support_batched_put(self) -> bool:
        """Say that a list of chunks is stored in one call."""
        return True

    async def batched_put(self, keys: Sequence[Any], memory_objs: Sequence[Any]) -> None:
        """Store chunks; a chunk that could not be stored is a miss later."""
        if not keys:
            return
        names = [key.to_string() for key in keys]
        chunks = list(memory_objs)
        for chunk in chunks:  # even if this call is cancelled, a thread reads them
            chunk.ref_count_up()
        await self._in_thread(lambda: self._write(names, chunks), _nothing)

    def _write(self, names: list[str], chunks: list[Any]) -> None:
        try:
            pieces = [self._pieces(chunk) for chunk in chunks]
            pointers = [[pointer for pointer, _, _ in of] for of in pieces]
            sizes = [[size for _, size, _ in of] for of in pieces]
            no_statuses: list[Status] = []
            statuses = self._link.call(
                "save",
                lambda store: store.batch_put_from(names, pointers, sizes, replicas=self._replicas),
                no_statuses,
                _says_unreachable,
            )
            failed = sum(status not in _STORED for status in statuses)
            self._guard.count("chunks_saved", len(statuses) - failed)
            self._guard.count("chunks_not_saved", failed)
        finally:
            for chunk in chunks:
                chunk.ref_count_down()

    def _pieces(self, chunk: Any) -> list[tuple[int, int, object]]:
        """Return address, size and owner of each part of a chunk's object."""
        pieces: list[tuple[int, int, object]] = []
        if self.save_chunk_meta:
            described = RemoteMetadata(
                chunk.get_size(),
                chunk.get_shapes(),
                chunk.get_dtypes(),
                chunk.get_memory_format(),
            )
            header = ctypes.create_string_buffer(described.serialize(), self.remote_metadata_bytes)
            pieces.append((ctypes.addressof(header), self.remote_metadata_bytes, header))
        pieces.append((chunk.data_ptr, chunk.get_size(), chunk))
        return pieces

    # --- keys, health and end ---

    def remove_sync(self, key: Any) -> bool:
        """Remove a chunk; the caller's thread waits for the store."""
        name = key.to_string()
        return self._link.call("remove", lambda store: store.remove(name), None) is Status.Ok

    async def list(self) -> list[str]:
        """Return the keys of this model's chunks."""
        return await self._in_thread(
            lambda: self._link.call("list", lambda store: [*store.keys()], []), _nothing
        )

    def support_ping(self) -> bool:
        """Say that `ping` answers."""
        return True

    async def ping(self) -> int:
        """Return 0 when the store answers."""
        return await self._in_thread(self._ping, _nothing)

    def _ping(self) -> int:
        found = self._link.call("ping", lambda store: store.lookup(["ping"]), None, _is_unreachable)
        return 1 if found is None or _is_unreachable(found) else 0

    async def close(self) -> None:
        """Close the store and end running calls."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._link.close()

    async def _in_thread(self, function: Callable[[], _T], if_unwanted: Callable[[_T], None]) -> _T:
        """Run a function in a thread; its result is cleaned up if the caller was cancelled."""
        future = self._threads.submit(function)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: _clean_up(done, if_unwanted))
            raise


def _describes(header: bytes, chunk: Any) -> bool:
    """Say whether a stored description matches the full chunk that it was read into."""
    try:
        described = RemoteMetadata.deserialize(header)
    except (KeyError, ValueError):
        return False
    return bool(
        described.length == chunk.get_size()
        and described.shapes == chunk.get_shapes()
        and described.dtypes == chunk.get_dtypes()
        and described.fmt == chunk.get_memory_format()
    )


def _is_unreachable(found: Lookup | None) -> bool:
    return found is not None and not len(found) and found.reason is MissReason.Unavailable


def _says_unreachable(rows: Sequence[int]) -> bool:
    return any(row in UNREACHABLE for row in rows)


def _give_back(chunks: Sequence[Any]) -> None:
    for chunk in chunks:
        if chunk is not None:
            chunk.ref_count_down()


def _nothing(_: object) -> None:
    pass


def _clean_up(done: Future[_T], if_unwanted: Callable[[_T], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        if_unwanted(done.result())
