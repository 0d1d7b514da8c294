"""SGLang's whole storage interface, without SGLang: failures become misses, nothing is raised.

An exception in one of SGLang's storage threads ends them, and with them this cache level, for the
life of the process. Every call therefore goes through the guard: failures are counted, logged once,
and become misses; an unreachable store is tried again every few seconds by one call.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvstore.client.store import Store
from kvstore.clock import monotonic_ns
from kvstore.errors import ClosedError, MissReason, Status, UnavailableError
from kvstore.integrations.guard import UNREACHABLE, Guard
from kvstore.integrations.identity import UNKNOWN_PARENT, peers_that_share_no_key
from kvstore.integrations.registered import register
from kvstore.integrations.sglang import hits
from kvstore.integrations.sglang.naming import Ranks, pages_namespace
from kvstore.integrations.sglang.options import Options
from kvstore.integrations.sglang.pools import FLAT, KV, Pool, exact, on_host, span, total
from kvstore.limits import MAX_BATCH_KEYS

_BATCH_PAGES = 128  # as many as SGLang moves at a time: each call's deadline covers these
_KEPT_TRANSFERS = 1000  # of each kind, in case SGLang never collects them

_log = logging.getLogger("kvstore.integrations")


@dataclass
class _Answer:
    """Result of a batch of reads or writes."""

    pages: list[bool]
    nbytes: int = 0
    unreachable: bool = False


class HiCacheBackend:
    """A HiCache storage backend on kvstore; thread-safe.

    Pages of host memory layouts with known addresses are moved without a copy, all others as flat
    pages.
    """

    def __init__(self, storage_config: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        """Check the options; the store is opened when the host pool is registered.

        Args:
            storage_config: SGLang's HiCacheStorageConfig.
            kwargs: SGLang's further arguments, none so far.

        Raises:
            InvalidArgumentError: The extra config has an unknown key or a wrong value.
        """
        self.options = Options.of(storage_config.extra_config)
        self._ranks = Ranks.of(storage_config)
        self._model = str(storage_config.model_name or "")
        self._guard = Guard("sglang", prefill_tokens_per_s=self.options.prefill_tokens_per_s)
        # Separate breakers: the master may answer every lookup while no node can be reached.
        self._moves = {"get": Guard("sglang"), "set": Guard("sglang")}
        self._pools: dict[str, Pool] = {}
        self._namespace = ""
        self._opening = threading.Lock()  # held while connecting, which may take long
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._closed = False
        self._transfers = _no_transfers()

    # --- provided by the subclass that imports SGLang ---

    def weights(self) -> dict[str, object]:
        """Return facts that distinguish this engine's weights from others of the same name."""
        return {"revision": self.options.weights_revision}

    def probe(self) -> str:
        """Return the engine's own hash of an agreed list of tokens."""
        return ""

    # --- start and end ---

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Register the host pool of the model's KV and open the store.

        The engine starts even if the store cannot be reached; it is tried again later.

        Args:
            mem_pool_host: SGLang's HostKVCache, whose memory stays where it is.

        Raises:
            KvstoreError: The operator has to fix something: address, token, tenant or version.
        """
        self.mem_pool_host = mem_pool_host
        self._pools[KV] = Pool(KV, mem_pool_host, self._ranks)
        self._pools[FLAT] = Pool(FLAT, mem_pool_host, self._ranks)
        self._namespace = pages_namespace(
            self._model, self.weights(), mem_pool_host, self._ranks, self.options.interface_v1
        )
        try:
            self._open()
        except UnavailableError as error:
            self._guard.count("connect_failures")
            self._guard.say("connect", f"starting without the store: {error}")

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Register a further pool of a hybrid model; the KV's own is already registered."""
        name = _name_of(host_pool_name)
        if name == KV:
            return
        pool = Pool(name, host_pool, self._ranks)
        with self._opening:
            self._pools[name] = pool
            if self._store is not None:
                register(self._store, self._guard, pool.memory())

    @property
    def namespace(self) -> str:
        """Namespace of this engine's pages, for `kvstore flush --namespace`."""
        return self._namespace

    def close(self) -> None:
        """Close the store; later calls are misses. Does nothing the second time."""
        with self._lock:
            closed, self._closed = self._closed, True
            store, self._store = self._store, None
        if not closed:
            _log.info("sglang: closed %s %s", self._namespace, self.counters())
        if store is not None:
            store.close()

    def clear(self) -> bool:
        """Flush this engine's namespace; return whether all nodes have applied it."""
        status = self._guard.call("clear", lambda: self._open().flush(), Status.Unavailable)
        if status != Status.Ok:
            self._guard.say("clear", f"clear: {status}, some pages may still be found")
        return status == Status.Ok

    def counters(self) -> dict[str, int | float]:
        """Return the counters since the start: pages, bytes, failures, the guard's state."""
        counted = Counter(self._guard.stats())
        rate = counted.pop("fetched_tokens_per_s")
        for guard in self._moves.values():
            counted.update(guard.stats())
        open_breakers = counted.pop("breaker_open")
        return {**counted, "breaker_open": min(1, open_breakers), "fetched_tokens_per_s": rate}

    def take_transfers(self) -> dict[str, deque[tuple[int, float]]]:
        """Return pages and GB/s of each batch since the last call, under "get" and "set"."""
        with self._lock:
            taken, self._transfers = self._transfers, _no_transfers()
        return taken

    # --- lookups ---

    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """Count the leading pages that can be read now.

        Args:
            keys: SGLang's hashes, a chain.
            extra_info: the pages before them; not needed.

        Returns:
            Pages; 0 also when the store is unreachable or slower than computing.
        """
        if not keys or not self._may_fetch():
            return 0
        found, _ = self._guard.call(
            "exists", lambda: self._prefix(self._kv_pool(), keys), (0, False), lambda a: a[1]
        )
        self._guard.count("pages_looked_up", len(keys))
        self._guard.count("pages_found", found)
        return found

    def exists(self, key: str) -> bool:
        """Say whether one page can be read now."""
        return self.batch_exists([key]) == 1

    def prefixes_v2(
        self, keys: Sequence[str], transfers: Sequence[Any] | None
    ) -> tuple[int, dict[Any, int], list[int]]:
        """Find where a hybrid model can be resumed: `batch_exists_v2` in plain values.

        Args:
            keys: SGLang's hashes, a chain.
            transfers: SGLang's PoolTransfer for each further pool: name, hit policy, keys.

        Returns:
            The longest prefix that every pool can serve, in pages; by pool the longest that it can,
            unless that is 0; all lengths that every pool can serve.
        """
        nothing: tuple[int, dict[Any, int], list[int]] = (0, {}, [])
        if not keys or not self._may_fetch():
            return nothing
        found, _ = self._guard.call(
            "exists",
            lambda: self._resumable(keys, transfers or ()),
            (nothing, False),
            lambda a: a[1],
        )
        self._guard.count("pages_looked_up", len(keys))
        self._guard.count("pages_found", found[0])
        return found

    # --- pages to and from the host pool ---

    def batch_get_v1(
        self, keys: Sequence[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        """Read pages straight into the host pool.

        Args:
            keys: SGLang's hashes.
            host_indices: of the tokens there, a page size for each key.
            extra_info: the pages before them; not needed.

        Returns:
            For each page whether it was read, whole and verified; the memory of the others is
            undefined.
        """
        if self._is_logical():
            return [True] * len(keys)
        return self._read(KV, keys, host_indices)

    def batch_set_v1(
        self, keys: Sequence[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        """Store pages straight from the host pool.

        Args:
            keys: SGLang's hashes, a chain.
            host_indices: of the tokens there, a page size for each key.
            extra_info: `prefix_keys` names the pages before them.

        Returns:
            For each page whether every client of the cluster can read it now, including pages
            stored before.
        """
        if self._is_logical():
            return [True] * len(keys)
        return self._write(KV, keys, host_indices, extra_info)

    def batch_get_v2(
        self, transfers: Sequence[Any], extra_info: Any = None
    ) -> dict[Any, list[bool]]:
        """Read pages of several pools; as `batch_get_v1` for each of SGLang's PoolTransfer."""
        return {
            transfer.name: self._read(
                _name_of(transfer.name), transfer.keys or (), transfer.host_indices
            )
            for transfer in transfers
        }

    def batch_set_v2(
        self, transfers: Sequence[Any], extra_info: Any = None
    ) -> dict[Any, list[bool]]:
        """Store pages of several pools; as `batch_set_v1` for each of SGLang's PoolTransfer."""
        return {
            transfer.name: self._write(
                _name_of(transfer.name), transfer.keys or (), transfer.host_indices, extra_info
            )
            for transfer in transfers
        }

    # --- the old interface: flat pages in the caller's tensors ---

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """Read one page into a tensor, or to an address; returns the target, or None on a miss."""
        sizes = None if target_sizes is None else [target_sizes]
        return self.batch_get([key], [target_location], sizes)[0]

    def batch_get(
        self,
        keys: Sequence[str],
        target_locations: Sequence[Any] | None = None,
        target_sizes: Sequence[int] | None = None,
    ) -> list[Any]:
        """Read pages into tensors, or to addresses.

        Args:
            keys: SGLang's hashes.
            target_locations: a contiguous tensor in host memory for each, or an address.
            target_sizes: bytes at each address; not needed with tensors.

        Returns:
            For each page its target, or None on a miss.
        """
        targets = list(target_locations or ())

        def read(pages: Sequence[str], first: int) -> tuple[list[int], int]:
            names = self._pools[FLAT].keys(pages)
            pointers, sizes = self._spans(targets, target_sizes, first, len(names))
            return exact(self._open().batch_get_into_pointers(names, pointers, sizes), sizes)

        there = self._batched(
            "get", FLAT, keys, lambda pages, first: self._got(FLAT, *read(pages, first))
        )
        return [targets[i] if here else None for i, here in enumerate(there)]

    def set(
        self,
        key: str,
        value: Any = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Store one page from a tensor, or from an address."""
        given = None if value is None else [value]
        places = None if target_location is None else [target_location]
        return self.batch_set([key], given, places, None if places is None else [target_sizes])

    def batch_set(
        self,
        keys: Sequence[str],
        values: Sequence[Any] | None = None,
        target_locations: Sequence[Any] | None = None,
        target_sizes: Sequence[int] | None = None,
    ) -> bool:
        """Store pages from tensors, or from addresses.

        Args:
            keys: SGLang's hashes, a chain.
            values: a tensor for each.
            target_locations: instead of `values`, an address for each, or a tensor.
            target_sizes: bytes at each address.

        Returns:
            Whether every client of the cluster can read all of them now.
        """

        def write(pages: Sequence[str], first: int) -> _Answer:
            names = self._pools[FLAT].keys(pages)
            last = first + len(names)
            sources = list(values if values is not None else target_locations or ())
            held = [one if isinstance(one, int) else on_host(one) for one in sources[first:last]]
            own_sizes = None if target_sizes is None else target_sizes[first:last]
            pointers, sizes = self._spans(held, own_sizes, 0, len(names))
            statuses = self._open().batch_put_from(names, pointers, sizes, **self._how(FLAT, None))
            return self._put(FLAT, statuses, sizes)

        return all(self._batched("set", FLAT, keys, write))

    # --- internals ---

    def _may_fetch(self) -> bool:
        """Say whether found pages would be fetched; otherwise a lookup is useless."""
        if self._moves["get"].skips():
            self._guard.count("skipped")
            return False
        return self._guard.worth_fetching()

    def _open(self) -> Store:
        """Return the store; connect if that has not succeeded yet."""
        store = self._store
        if store is not None:
            return store
        with self._opening:
            if self._store is not None:
                return self._store
            if self._closed:
                raise ClosedError("the backend is closed")
            store = self.options.open_store(self._namespace)
            pools = [pool for name, pool in self._pools.items() if name != FLAT]
            register(store, self._guard, [span for pool in pools for span in pool.memory()])
            with self._lock:
                if not self._closed:
                    self._store = store
            if self._store is None:
                store.close()
                raise ClosedError("the backend is closed")
        _log.info("sglang: pages are in namespace %s", self._namespace)
        if self._ranks.first:
            self._warn_of_strangers()
        return store

    def _warn_of_strangers(self) -> None:
        try:
            strangers = peers_that_share_no_key(
                self.options.open_store, self._model, self._namespace, self.probe()
            )
        except Exception as error:  # only a warning is lost
            self._guard.count("peers_failures")
            self._guard.say("peers", f"cannot look for other engines of this model: {error}")
            return
        for stranger in strangers:
            self._guard.count("peers_that_share_no_key")
            self._guard.say(
                stranger, f"no pages are shared with another engine of this model: {stranger}"
            )

    def _kv_pool(self) -> Pool:
        return self._pools[KV if self.options.interface_v1 else FLAT]

    def _is_logical(self) -> bool:
        return KV in self._pools and self._pools[KV].logical

    def _prefix(self, pool: Pool, pages: Sequence[str]) -> tuple[int, bool]:
        """Return the number of leading pages, and whether the store was unreachable."""
        keys = pool.keys(pages)
        stride = pool.objects_per_page
        step = MAX_BATCH_KEYS // stride * stride
        found = 0
        for first in range(0, len(keys), step):
            batch = keys[first : first + step]
            lookup = self._open().lookup(batch, stride=stride)
            found += lookup.length
            if lookup.length < len(batch):
                return found // stride, found == 0 and lookup.reason == MissReason.Unavailable
        return found // stride, False

    def _resumable(
        self, pages: Sequence[str], transfers: Sequence[Any]
    ) -> tuple[tuple[int, dict[Any, int], list[int]], bool]:
        """Compute `prefixes_v2`, and say whether the store was unreachable."""
        longest, unreachable = (
            (len(pages), False) if self._is_logical() else self._prefix(self._kv_pool(), pages)
        )
        by_pool: dict[Any, int] = {KV: longest} if longest else {}
        lengths = list(range(1, longest + 1))
        for transfer in transfers:
            policy = _name_of(transfer.hit_policy)
            if policy == hits.BLOCK_GROUPS:
                continue
            if not lengths:
                break
            pool = self._pools[_name_of(transfer.name)]
            if policy == hits.ALL_PAGES:
                reached, pool_unreachable = self._prefix(pool, pages[:longest])
                present = [i < reached for i in range(longest)]
                unreachable = unreachable or pool_unreachable
            else:
                present = self._present(pool, pages[:longest])
            window = max(1, len(transfer.keys or ()))
            able = hits.resumable(policy, window, present)
            if able:
                by_pool[transfer.name] = able[-1]
            lengths = sorted(set(lengths) & set(able))
        return (lengths[-1] if lengths else 0, by_pool, lengths), unreachable

    def _present(self, pool: Pool, pages: Sequence[str]) -> list[bool]:
        keys = pool.keys(pages)
        there: list[bool] = []
        for first in range(0, len(keys), MAX_BATCH_KEYS):
            there += self._open().batch_exists(keys[first : first + MAX_BATCH_KEYS])
        return _by_page(there, len(pages))

    def _read(self, name: str, keys: Sequence[str], indices: Any) -> list[bool]:
        def read(pages: Sequence[str], first: int) -> _Answer:
            pool = self._pools[name]
            return self._got(
                name, *pool.read(self._open(), pages, _of(indices, pool, pages, first))
            )

        return self._batched("get", name, keys, read)

    def _write(self, name: str, keys: Sequence[str], indices: Any, extra_info: Any) -> list[bool]:
        prefix = getattr(extra_info, "prefix_keys", None) or ()
        before = prefix[-1] if prefix and isinstance(prefix[-1], str) else None

        def write(pages: Sequence[str], first: int) -> _Answer:
            pool = self._pools[name]
            how = self._how(name, keys[first - 1] if first else before)
            own = _of(indices, pool, pages, first)
            return self._put(name, *pool.write(self._open(), pages, own, how))

        return self._batched("set", name, keys, write)

    def _batched(
        self,
        what: str,
        name: str,
        keys: Sequence[str],
        move: Callable[[Sequence[str], int], _Answer],
    ) -> list[bool]:
        """Move pages in guarded batches; once the store is unreachable all others are misses."""
        there: list[bool] = []
        for first in range(0, len(keys), _BATCH_PAGES):
            pages = keys[first : first + _BATCH_PAGES]
            lost = _Answer([False] * len(pages), unreachable=True)
            started = monotonic_ns()
            answer = self._moves[what].call(
                what, partial(move, pages, first), lost, lambda a: a.unreachable
            )
            self._measure(what, name, answer, monotonic_ns() - started)
            there += answer.pages
            if answer.unreachable:
                break
        return there + [False] * (len(keys) - len(there))

    def _measure(self, what: str, name: str, answer: _Answer, took_ns: int) -> None:
        moved = sum(answer.pages)
        if moved == 0 or took_ns <= 0:
            return
        if what == "get" and name in (KV, FLAT):
            self._guard.fetched(moved * self._pools[name].page_size, took_ns / 1e9)
        with self._lock:
            self._transfers[what].append((moved, answer.nbytes / took_ns))

    def _got(self, name: str, found: list[int], nbytes: int) -> _Answer:
        """Count the result of reading whole pages."""
        stride = self._pools[name].objects_per_page
        pages = _by_page([size >= 0 for size in found], len(found) // stride)
        self._guard.count("pages_read", sum(pages))
        self._guard.count("pages_missed", len(pages) - sum(pages))
        self._guard.count("bytes_read", nbytes)
        if Status.BufferTooSmall in found:
            self._guard.count("wrong_size")
            self._guard.say(
                "size", f"pool {name!r}: a stored page has another size and counts as a miss"
            )
        return _Answer(pages, nbytes, _all_unreachable(found))

    def _put(self, name: str, statuses: Sequence[Status], sizes: Sequence[Any]) -> _Answer:
        """Count the result of writing whole pages."""
        stride = self._pools[name].objects_per_page
        pages = _by_page([status.ok for status in statuses], len(statuses) // stride)
        written = [total(size) for size, s in zip(sizes, statuses, strict=True) if s == Status.Ok]
        self._guard.count("pages_written", sum(pages))
        self._guard.count("pages_not_written", len(pages) - sum(pages))
        self._guard.count("objects_existing", statuses.count(Status.AlreadyExists))
        self._guard.count("bytes_written", sum(written))
        for status in set(statuses) - UNREACHABLE - {Status.Ok, Status.AlreadyExists}:
            self._guard.say(f"set: {status}", f"pages could not be stored: {status}")
        return _Answer(pages, sum(written), _all_unreachable(statuses))

    def _how(self, name: str, before: str | None) -> dict[str, Any]:
        """Return the put options of a batch of pages that follow the page `before`."""
        # SGLang names the page before it only with hicache_storage_pass_prefix_keys.
        parent = self._pools[name].keys([before])[-1] if before else UNKNOWN_PARENT
        return {
            "replicas": self.options.replicas,
            "ttl_ms": self.options.ttl_ms or None,
            "parent": parent,
        }

    @staticmethod
    def _spans(
        places: Sequence[Any], sizes: Sequence[int] | None, first: int, count: int
    ) -> tuple[list[int], list[int]]:
        """Return addresses and sizes of tensors, or of addresses with their sizes."""
        if len(places) < first + count:
            raise ValueError(f"{first + count} pages but {len(places)} targets")
        spans = []
        for i in range(first, first + count):
            if isinstance(places[i], int):
                if sizes is None or not isinstance(sizes[i], int):
                    raise ValueError("an address needs a size")
                spans.append((places[i], sizes[i]))
            else:
                spans.append(span(places[i]))
        return [pointer for pointer, _ in spans], [size for _, size in spans]


def _no_transfers() -> dict[str, deque[tuple[int, float]]]:
    return {"get": deque(maxlen=_KEPT_TRANSFERS), "set": deque(maxlen=_KEPT_TRANSFERS)}


def _name_of(name: Any) -> str:
    """Return SGLang's enumerations of str, or a str, as its value."""
    return str(getattr(name, "value", name))


def _of(indices: Any, pool: Pool, pages: Sequence[str], first: int) -> Any:
    """Return the indices of a batch that starts at page `first`."""
    if indices is None:
        raise ValueError(f"pool {pool.name!r}: no indices")
    start = first * pool.page_size
    last = first + len(pages) >= len(indices) // pool.page_size
    return indices[start:] if last else indices[start : start + len(pages) * pool.page_size]


def _by_page(objects: Sequence[bool], pages: int) -> list[bool]:
    """Say for each page whether all of its objects are present."""
    stride = len(objects) // pages if pages else 1
    return [all(objects[i * stride : (i + 1) * stride]) for i in range(pages)]


def _all_unreachable(answers: Sequence[int]) -> bool:
    """Say whether the store is unreachable: any other status proves that it is not."""
    return bool(answers) and all(answer in UNREACHABLE for answer in answers)
