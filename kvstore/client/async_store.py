"""AsyncStore: the calls of a Store for asyncio, made by a small pool of threads."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from kvstore import polling
from kvstore.client.answers import (
    check_threads,
    checked_lease,
    checked_stride,
    checked_wait,
)
from kvstore.client.async_into import (
    BatchGetInto,
    BatchGetIntoPages,
    BatchGetIntoPointers,
    GetInto,
)
from kvstore.client.call_pool import BusyError, CallPool, run_alone
from kvstore.client.connect import TracerProvider, Transport, connect
from kvstore.client.lookup import Lookup
from kvstore.client.store import Store
from kvstore.errors import MissReason, Status, error_for
from kvstore.limits import DEFAULT_TIMEOUT_MS, LIST_PAGE_KEYS

P = ParamSpec("P")
R = TypeVar("R")

_THREADS = 4
# A wait consists of such parts, so that a cancelled one soon frees its thread. Nothing is polled:
# the master ends a part at once.
_WAIT_PART_MS = 1000


def _awaited(
    method: Callable[Concatenate[Store, P], R], *, lends_memory: bool = False
) -> Callable[Concatenate[AsyncStore, P], Coroutine[Any, Any, R]]:
    """Derive a method of AsyncStore from the one of Store: same arguments, same docstring."""

    @functools.wraps(method)
    async def call(self: AsyncStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound = functools.partial(method, self._store, *args, **kwargs)
        return await self._call(bound, lends_memory=lends_memory)

    call.__qualname__ = f"AsyncStore.{method.__name__}"
    return call


class _Wait:
    """A lookup with wait_ms that runs on the waiting threads."""

    def __init__(
        self, store: Store, keys: Sequence[str], look: Callable[..., Lookup], wait_s: float
    ) -> None:
        self._store = store
        self._keys = keys
        self._look = look
        self._wait_s = wait_s
        self._now = asyncio.get_running_loop().time
        self._until = self._now() + wait_s
        self._abandoned = threading.Event()

    async def run_on(self, pool: CallPool) -> Lookup | None:
        """Wait on a thread of the pool; None when no thread became free in time."""
        try:
            return await pool.run(self._wait, patience_s=self._wait_s)
        except BusyError:
            return None
        except asyncio.CancelledError:
            self._abandoned.set()
            raise

    def _left_ms(self) -> int:
        return max(0, int((self._until - self._now()) * 1000))

    def _wait(self) -> Lookup:
        while (left_ms := self._left_ms()) > _WAIT_PART_MS and not self._abandoned.is_set():
            self._store.lookup(self._keys, wait_ms=_WAIT_PART_MS)
            if left_ms - self._left_ms() < _WAIT_PART_MS // 2:
                break  # complete, or the master is unreachable or has too many waits
        return self._look(wait_ms=min(self._left_ms(), _WAIT_PART_MS))


class AsyncLookup:
    """The present prefix of a list of keys; releases its leases at the end of ``async with``."""

    __slots__ = ("_lookup", "_store")

    def __init__(self, store: AsyncStore, lookup: Lookup) -> None:
        """Wrap a result; made by AsyncStore.lookup."""
        self._store = store
        self._lookup = lookup

    @property
    def length(self) -> int:
        """Leading keys that are present (and leased, when leases were asked for)."""
        return self._lookup.length

    @property
    def reason(self) -> MissReason:
        """Why the prefix ends where it does; as `Lookup.reason`."""
        return self._lookup.reason

    async def alive(self) -> bool:
        """Say whether every lease is still valid; as `Lookup.alive`."""
        return await self._store._tidy(lambda: self._lookup.alive)

    async def release(self) -> None:
        """Give the leases back; does nothing the second time."""
        await self._store._tidy(self._lookup.release)

    async def __aenter__(self) -> AsyncLookup:
        """Return the lookup itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the leases."""
        await self.release()

    def __len__(self) -> int:
        """Return the length of the prefix."""
        return self.length

    def __repr__(self) -> str:
        """Show the length and whether there are leases."""
        return f"Async{self._lookup!r}"


class AsyncStore:
    """A Store for asyncio; made by ``await kvstore.connect_async(…)`` or from a Store.

    Every call has the name, arguments and results of Store's, and is awaited::

        async with kvstore.AsyncStore(kvstore.open()) as store:
            await store.put("key", b"value")
            async with store.view("key") as block:  # a memoryview, or None on a miss
                ...
            async with await store.lookup(keys, lease_ms=1000, wait_ms=5000) as lookup:
                ...
            async for key in store.keys("prompt/"):
                ...

    `threads` threads make all calls, in order of arrival; each thread is started when it is first
    needed. Lookups with `wait_ms` use `waiting_threads` further threads, so that they never delay
    other calls. When all of those are busy, a lookup queues; when none becomes free within its
    `wait_ms`, it returns the pages that are present then.

    A cancelled await returns at once while the call continues in the background, except for calls
    that use the caller's memory (``put``, ``batch_put``, ``get_into``, ``batch_get_into``, their
    tensor and pointer variants): there the cancellation waits until the call has finished, within
    the store's ``timeout_ms``. Arguments are kept alive until their call has finished.
    """

    def __init__(
        self, store: Store, *, threads: int = _THREADS, waiting_threads: int = _THREADS
    ) -> None:
        """Take over an open store, which is closed with this one.

        Args:
            store: the store.
            threads: number of threads for calls, 1 to 256.
            waiting_threads: number of lookups with `wait_ms` that can wait at a time, 1 to 256.

        Raises:
            InvalidArgumentError: A number of threads is wrong.
        """
        check_threads("threads", threads)
        check_threads("waiting_threads", waiting_threads)
        self._store = store
        self._pid = os.getpid()
        self._pool = CallPool(threads, "kvstore")
        self._waiting_pool = CallPool(waiting_threads, "kvstore-wait")
        self._closing: asyncio.Future[None] | None = None

    put = _awaited(Store.put, lends_memory=True)
    batch_put = _awaited(Store.batch_put, lends_memory=True)
    batch_put_from = _awaited(Store.batch_put_from, lends_memory=True)

    get = _awaited(Store.get)
    batch_get = _awaited(Store.batch_get)
    get_into: GetInto = cast(Any, _awaited(Store.get_into, lends_memory=True))
    batch_get_into: BatchGetInto = cast(Any, _awaited(Store.batch_get_into, lends_memory=True))
    batch_get_into_pointers: BatchGetIntoPointers = cast(
        Any, _awaited(Store.batch_get_into_pointers, lends_memory=True)
    )

    batch_get_into_pages: BatchGetIntoPages = cast(
        Any, _awaited(Store.batch_get_into_pages, lends_memory=True)
    )
    batch_put_from_pages = _awaited(Store.batch_put_from_pages, lends_memory=True)

    put_tensor = _awaited(Store.put_tensor, lends_memory=True)
    batch_put_tensor = _awaited(Store.batch_put_tensor, lends_memory=True)
    get_tensor = _awaited(Store.get_tensor)
    batch_get_tensor = _awaited(Store.batch_get_tensor)
    get_tensor_into = _awaited(Store.get_tensor_into, lends_memory=True)
    batch_get_tensor_into = _awaited(Store.batch_get_tensor_into, lends_memory=True)

    exists = _awaited(Store.exists)
    batch_exists = _awaited(Store.batch_exists)
    size = _awaited(Store.size)
    batch_sizes = _awaited(Store.batch_sizes)
    prefix_length = _awaited(Store.prefix_length)
    inspect = _awaited(Store.inspect)
    explain = _awaited(Store.explain)
    prefetch = _awaited(Store.prefetch)

    remove = _awaited(Store.remove)
    batch_remove = _awaited(Store.batch_remove)
    remove_prefix = _awaited(Store.remove_prefix)
    unpin = _awaited(Store.unpin)
    flush = _awaited(Store.flush)
    peers = _awaited(Store.peers)
    register = _awaited(Store.register)
    stats = _awaited(Store.stats)

    @asynccontextmanager
    async def view(self, key: str) -> AsyncIterator[memoryview | None]:
        """Hold an object's block and read it without a copy; as `Store.view`.

        Args:
            key: of the object.

        Yields:
            A read-only memoryview, or None on a miss.

        Raises:
            InvalidArgumentError: The key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        view = await self._call(functools.partial(self._store.view, key))
        try:
            yield view.__enter__()
        finally:
            if view:
                await self._tidy(view.release)

    async def lookup(
        self,
        keys: Sequence[str],
        *,
        stride: int = 1,
        lease_ms: int | None = None,
        wait_ms: int | None = None,
        local: bool = False,
    ) -> AsyncLookup:
        """Find the present prefix and, on request, wait for it and protect it from eviction.

        Args:
            keys: a chain, head first.
            stride: as in `prefix_length`.
            lease_ms: as in `Store.lookup`.
            wait_ms: as in `Store.lookup`.
            local: as in `Store.lookup`.

        Returns:
            The lookup; its length is the longest prefix that is present, and leased if asked for.

        Raises:
            InvalidArgumentError: An argument is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        checked_stride(stride)
        checked_lease(lease_ms)
        wait_s = checked_wait(wait_ms, local) / 1000
        look = functools.partial(
            self._store.lookup, keys, stride=stride, lease_ms=lease_ms, local=local
        )
        if wait_s != 0 and not self._refuses():
            wait = _Wait(self._store, keys, look, wait_s)
            found = await wait.run_on(self._waiting_pool)
            if found is not None:
                return AsyncLookup(self, found)
        return AsyncLookup(self, await self._call(look))

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """List keys, page by page, in no particular order.

        Args:
            prefix: what they start with; "" is all of this namespace.

        Yields:
            Each key that is present throughout, once; keys put or removed meanwhile may be missing.

        Raises:
            UnavailableError: The master cannot be reached.
            ClosedError: The store is closed, or this is a forked child.
        """
        cursor = b""
        while True:
            page, cursor = await self._call(
                functools.partial(self._store._client.list_keys, prefix, cursor, LIST_PAGE_KEYS)
            )
            for key in page:
                yield key
            if not cursor:
                return

    def counters(self) -> dict[str, Any]:
        """Return what `Store.counters` does, at once: nobody is asked."""
        return self._store.counters()

    @property
    def tenant(self) -> str:
        """Whose objects these are."""
        return self._store.tenant

    @property
    def namespace(self) -> str:
        """The set of compatible objects that this store reads and writes."""
        return self._store.namespace

    @property
    def closed(self) -> bool:
        """Whether calls are refused: closed, or a forked child."""
        return self._store.closed

    async def close(self) -> None:
        """Release everything and end running calls. Does nothing the second time.

        When it returns, the store is closed and the threads have exited.
        """
        if os.getpid() != self._pid:
            return  # the store and the threads belong to the parent
        if self._closing is None:
            # On a separate thread: those of the pool may all be busy until the store is closed.
            self._closing = asyncio.ensure_future(run_alone(self._end, "kvstore-close"))
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> AsyncStore:
        """Return the store itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store."""
        await self.close()

    def __repr__(self) -> str:
        """Show address, tenant, namespace and the number of nodes."""
        return f"<kvstore.AsyncStore {self._store._shown()}>"

    def _refuses(self) -> bool:
        return self._closing is not None or self._store.closed

    async def _call(self, call: Callable[[], R], *, lends_memory: bool = False) -> R:
        if self._store.closed:
            return call()  # refused at once, or needs no thread (stats); a child has no threads
        if self._closing is not None:
            raise error_for(Status.Closed, "the store is closed")
        return await self._pool.run(call, lends_memory=lends_memory)

    async def _tidy(self, call: Callable[[], R]) -> R:
        """Make a call that releases something; also possible, and fast, after close."""
        return call() if self._refuses() else await self._pool.run(call, lends_memory=True)

    def _end(self) -> None:
        self._store.close()
        self._pool.end()
        self._waiting_pool.end()


async def connect_async(
    address: str | Sequence[str],
    *,
    tenant: str = "default",
    namespace: str = "",
    token_file: str | os.PathLike[str] | None = None,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    transport: Transport = "auto",
    stripes: int = 1,
    poll_us: int = polling.AUTO,
    ucx_settings: Mapping[str, str] | None = None,
    tracing: bool | TracerProvider = False,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    threads: int = _THREADS,
    waiting_threads: int = _THREADS,
) -> AsyncStore:
    """Connect to a cluster; as `kvstore.connect`, for asyncio.

    Args:
        address: as in `connect`.
        tenant: as in `connect`.
        namespace: as in `connect`.
        token_file: as in `connect`.
        timeout_ms: as in `connect`.
        transport: as in `connect`.
        stripes: as in `connect`.
        poll_us: as in `connect`.
        ucx_settings: as in `connect`.
        tracing: as in `connect`.
        tls_ca: as in `connect`.
        tls_cert: as in `connect`.
        tls_key: as in `connect`.
        threads: as in `AsyncStore`.
        waiting_threads: as in `AsyncStore`.

    Returns:
        An open store; close it, or use it with ``async with``.

    Raises:
        InvalidArgumentError: An argument or the token file is wrong.
        UnavailableError: No master answered in time.
        UnauthenticatedError: The token is missing or wrong.
        PermissionDeniedError: The principal may not use this tenant.
        VersionMismatchError: The master supports no protocol version of this client.
    """
    check_threads("threads", threads)
    check_threads("waiting_threads", waiting_threads)
    connecting = functools.partial(
        connect,
        address,
        tenant=tenant,
        namespace=namespace,
        token_file=token_file,
        timeout_ms=timeout_ms,
        transport=transport,
        stripes=stripes,
        poll_us=poll_us,
        ucx_settings=ucx_settings,
        tracing=tracing,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    store = await run_alone(connecting, "kvstore-connect")
    return AsyncStore(store, threads=threads, waiting_threads=waiting_threads)
