"""Objects by their bytes: put, upsert, get, exist, remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvstore.client.store import Store
from kvstore.compat.mooncake.calls import Calls, worst
from kvstore.compat.mooncake.codes import ErrorCode, code_of, presence, size_or_code
from kvstore.compat.mooncake.memory import Addresses, BufferHandle
from kvstore.compat.mooncake.values import ReplicateConfig
from kvstore.errors import Status
from kvstore.limits import LIST_PAGE_KEYS

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Objects(Calls):
    """Calls that read and write bytes."""

    # --- writing ---

    def put(self, key: str, value: Buffer, config: ReplicateConfig | None = None) -> int:
        """Store an object; 0 also when the key already has one, which then stays unchanged."""
        return worst(self._put("put", [key], [value], config, False))

    def upsert(self, key: str, value: Buffer, config: ReplicateConfig | None = None) -> int:
        """Store an object, or publish a new version of it."""
        return worst(self._put("upsert", [key], [value], config, True))

    def put_batch(
        self, keys: Sequence[str], values: Sequence[Buffer], config: ReplicateConfig | None = None
    ) -> int:
        """Store several objects; 0, or the code of the first that failed."""
        return worst(self._put("put_batch", keys, values, config, False))

    def upsert_batch(
        self, keys: Sequence[str], values: Sequence[Buffer], config: ReplicateConfig | None = None
    ) -> int:
        """Store or replace several objects; 0, or the code of the first that failed."""
        return worst(self._put("upsert_batch", keys, values, config, True))

    def put_parts(self, key: str, *parts: Buffer, config: ReplicateConfig | None = None) -> int:
        """Store one object concatenated from several buffers."""
        return self._put_parts("put_parts", key, parts, config, False)

    def upsert_parts(self, key: str, *parts: Buffer, config: ReplicateConfig | None = None) -> int:
        """Store or replace one object concatenated from several buffers."""
        return self._put_parts("upsert_parts", key, parts, config, True)

    def _put(
        self,
        what: str,
        keys: Sequence[str],
        values: Sequence[Buffer],
        config: ReplicateConfig | None,
        upsert: bool,
    ) -> list[int]:
        def call(store: Store) -> list[int]:
            how = self._kept(config)
            statuses = store.batch_put(
                keys, values, replicas=how.replicas, pin=how.pin, upsert=upsert
            )
            return [code_of(status) for status in statuses]

        return self._codes(what, call, keys)

    def _put_parts(
        self,
        what: str,
        key: str,
        parts: Sequence[Buffer],
        config: ReplicateConfig | None,
        upsert: bool,
    ) -> int:
        def call(store: Store) -> list[int]:
            with Addresses(parts) as at:
                return self._put_gathered(
                    store, [key], [at.pointers], [at.sizes], self._kept(config), upsert
                )

        return worst(self._codes(what, call, [key]))

    @staticmethod
    def _put_gathered(
        store: Store,
        keys: Sequence[str],
        pointers: Sequence[int] | Sequence[Sequence[int]],
        sizes: Sequence[int] | Sequence[Sequence[int]],
        how: ReplicateConfig,
        upsert: bool,
    ) -> list[int]:
        statuses = store.batch_put_from(
            keys, pointers, sizes, replicas=how.replicas, pin=how.pin, upsert=upsert
        )
        return [code_of(status) for status in statuses]

    # --- reading ---

    def get(self, key: str) -> bytes:
        """Read an object; b"" when it is absent, or cannot be read."""
        return self._ask("get", lambda store: store.get(key) or b"", lambda code: b"")

    def get_batch(self, keys: Sequence[str]) -> list[bytes]:
        """Read several objects; b"" for each that is absent."""
        return self._ask(
            "get_batch",
            lambda store: [found or b"" for found in store.batch_get(keys)],
            lambda code: [b""] * len(keys),
        )

    def get_buffer(self, key: str) -> BufferHandle | None:
        """Read an object into private memory; None when it is absent."""
        return self.batch_get_buffer([key])[0]

    def batch_get_buffer(self, keys: Sequence[str]) -> list[BufferHandle | None]:
        """Read several objects, each into private memory; None for those that are absent."""
        nothing: list[BufferHandle | None] = [None] * len(keys)

        def call(store: Store) -> list[BufferHandle | None]:
            handles = [
                BufferHandle(size) if size >= 0 else None for size in store.batch_sizes(keys)
            ]
            rows = [row for row, handle in enumerate(handles) if handle is not None]
            found = list(nothing)
            sizes = store.batch_get_into(
                [keys[row] for row in rows], [handle for handle in handles if handle is not None]
            )
            for row, size in zip(rows, sizes, strict=True):
                handle = handles[row]
                # A concurrent version of another size is a miss, as if it had been evicted.
                if handle is not None and size == len(handle):
                    found[row] = handle
            return found

        return self._ask("batch_get_buffer", call, lambda code: nothing)

    # --- asking ---

    def is_exist(self, key: str) -> int:
        """Say whether an object can be read: 1, 0, or negative when the store was unreachable."""
        return self.batch_is_exist([key])[0]

    def batch_is_exist(self, keys: Sequence[str]) -> list[int]:
        """Say for each key whether its object can be read; as `is_exist`."""
        return self._codes(
            "batch_is_exist",
            lambda store: [presence(number) for number in store.batch_sizes(keys)],
            keys,
        )

    def get_size(self, key: str) -> int:
        """Return an object's size, or a negative code."""
        return self._codes(
            "get_size",
            lambda store: [size_or_code(number) for number in store.batch_sizes([key])],
            [key],
        )[0]

    # --- removing ---

    def remove(self, key: str, force: bool = False) -> int:
        """Remove an object.

        Args:
            key: of the object.
            force: also one that an open get session of this store protects.
        """
        return self.batch_remove([key], force)[0]

    def batch_remove(self, keys: Sequence[str], force: bool = False) -> list[int]:
        """Remove several objects; as `remove` for each key."""

        def call(store: Store) -> list[int]:
            kept = [False if force else self._in_session(key) for key in keys]
            free = [key for key, held in zip(keys, kept, strict=True) if not held]
            codes = iter([code_of(status) for status in store.batch_remove(free)])
            return [int(ErrorCode.OBJECT_HAS_LEASE) if held else next(codes) for held in kept]

        return self._codes("batch_remove", call, keys)

    def _in_session(self, key: str) -> bool:
        """Whether an open get session protects a key."""
        return False

    def remove_all(self, force: bool = False) -> int:
        """Remove every object of this tenant that came through the drop-in.

        Returns:
            Number of removed objects, or a negative code. Takes constant time.
        """

        def call(store: Store) -> int:
            count = sum(1 for _ in store.keys(""))
            status = store.flush()
            return count if status in (Status.Ok, Status.Partial) else code_of(status)

        return self._ask("remove_all", call, lambda code: code)

    def remove_by_regex(self, regex_pattern: str, force: bool = False) -> int:
        """Remove the objects whose key matches a pattern.

        Args:
            regex_pattern: in RE2's syntax, which guarantees linear time; it may match anywhere in
                a key unless it contains ^ or $.
            force: as in `remove`.

        Returns:
            Number of removed objects, or a negative code.
        """

        def call(store: Store) -> int:
            pattern = _compiled(regex_pattern)
            removed = 0
            page: list[str] = []
            for key in store.keys(""):
                if pattern.search(key) and (force or not self._in_session(key)):
                    page.append(key)
                if len(page) == LIST_PAGE_KEYS:
                    removed += _count_removed(store, page)
                    page = []
            return removed + _count_removed(store, page)

        return self._ask("remove_by_regex", call, lambda code: code)


def _count_removed(store: Store, keys: list[str]) -> int:
    statuses = store.batch_remove(keys) if keys else []
    return sum(status in (Status.Ok, Status.Partial) for status in statuses)


def _compiled(pattern: str) -> Any:
    try:
        import re2
    except ImportError:
        raise TypeError(
            "remove_by_regex needs google-re2: pip install 'kvcache-store[compat]'"
        ) from None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        raise TypeError(f"not a valid RE2 pattern: {pattern!r}: {error}") from None
