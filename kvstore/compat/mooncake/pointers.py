"""Objects by address: the engines' own memory, read and written in place."""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Sequence

from kvstore.client.registration import Registration
from kvstore.client.store import Store
from kvstore.client.view import View
from kvstore.compat.mooncake.codes import ErrorCode, size_or_code
from kvstore.compat.mooncake.objects import Objects
from kvstore.compat.mooncake.values import ReplicateConfig
from kvstore.errors import KvstoreError


class Pointers(Objects):
    """Calls that take addresses."""

    def __init__(self) -> None:
        """Start without registered memory."""
        super().__init__()
        self._registered: list[tuple[int, int]] = []
        """Address and size, ascending: what limits `get_into_ranges`."""
        self._registrations: dict[int, list[Registration]] = {}
        """By address: for RDMA."""

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Announce memory that later calls read or write.

        Returns:
            0, or INVALID_PARAMS for an invalid range.
        """
        if not (isinstance(buffer_ptr, int) and isinstance(size, int)) or min(buffer_ptr, size) < 1:
            self._guard.say("register", f"register_buffer({buffer_ptr!r}, {size!r}): invalid range")
            return int(ErrorCode.INVALID_PARAMS)
        registration = self._register(buffer_ptr, size)
        with self._lock:
            bisect.insort(self._registered, (buffer_ptr, size))
            if registration is not None:
                self._registrations.setdefault(buffer_ptr, []).append(registration)
        return int(ErrorCode.OK)

    def _register(self, address: int, size: int) -> Registration | None:
        """Register memory with the store, which spares RDMA a copy; None where it is refused."""
        store = self._store
        if store is None:
            return None
        try:
            return store.register(address, size)
        except KvstoreError as error:
            self._guard.say("rdma", f"register_buffer({address:#x}, {size}): {error}")
            return None

    def unregister_buffer(self, buffer_ptr: int) -> int:
        """Revoke a `register_buffer`.

        Returns:
            0, or INVALID_PARAMS for an unknown address.
        """
        with self._lock:
            row = bisect.bisect_left(self._registered, (buffer_ptr, 0))
            if row == len(self._registered) or self._registered[row][0] != buffer_ptr:
                return int(ErrorCode.INVALID_PARAMS)
            del self._registered[row]
            registrations = self._registrations.get(buffer_ptr)
            registration = registrations.pop() if registrations else None
        if registration is not None:
            registration.release()
        return int(ErrorCode.OK)

    def _room_at(self, pointer: int) -> int:
        """Return the bytes of registered memory from an address on; 0 for none."""
        with self._lock:
            row = bisect.bisect_right(self._registered, (pointer, 1 << 64)) - 1
            if row < 0:
                return 0
            start, size = self._registered[row]
        return max(start + size - pointer, 0)

    # --- writing ---

    def put_from(
        self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig | None = None
    ) -> int:
        """Store the bytes at an address."""
        return self.batch_put_from([key], [buffer_ptr], [size], config)[0]

    def upsert_from(
        self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig | None = None
    ) -> int:
        """Store, or publish as a new version, the bytes at an address."""
        return self.batch_upsert_from([key], [buffer_ptr], [size], config)[0]

    def put_from_with_metadata(
        self,
        key: str,
        buffer_ptr: int,
        metadata_buffer_ptr: int,
        size: int,
        metadata_size: int,
        config: ReplicateConfig | None = None,
    ) -> int:
        """Store one object: the metadata's bytes, then the data's."""
        pointers, sizes = [metadata_buffer_ptr, buffer_ptr], [metadata_size, size]
        return self._gather("put_from_with_metadata", [key], [pointers], [sizes], config)[0]

    def batch_put_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig | None = None,
    ) -> list[int]:
        """Store several objects whose bytes lie at addresses; 0 or a negative code for each."""
        return self._gather("batch_put_from", keys, buffer_ptrs, sizes, config)

    def batch_upsert_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig | None = None,
    ) -> list[int]:
        """Store or replace several objects whose bytes lie at addresses."""
        return self._gather("batch_upsert_from", keys, buffer_ptrs, sizes, config, upsert=True)

    def batch_put_from_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        config: ReplicateConfig | None = None,
    ) -> list[int]:
        """Store several objects, each gathered from several addresses, in their order."""
        what = "batch_put_from_multi_buffers"
        return self._gather(what, keys, all_buffer_ptrs, all_sizes, config)

    def _gather(
        self,
        what: str,
        keys: Sequence[str],
        pointers: Sequence[int] | Sequence[Sequence[int]],
        sizes: Sequence[int] | Sequence[Sequence[int]],
        config: ReplicateConfig | None,
        upsert: bool = False,
    ) -> list[int]:
        return self._codes(
            what,
            lambda store: self._put_gathered(
                store, keys, pointers, sizes, self._kept(config), upsert
            ),
            keys,
        )

    # --- reading ---

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Read an object to an address where `size` bytes fit; the bytes read, or negative."""
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_get_into(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """Read several objects, each to an address; the bytes read, or a negative code."""
        return self._scatter("batch_get_into", keys, buffer_ptrs, sizes)

    def batch_get_into_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:
        """Read several objects, each scattered over several addresses, in their order."""
        return self._scatter("batch_get_into_multi_buffers", keys, all_buffer_ptrs, all_sizes)

    def _scatter(
        self,
        what: str,
        keys: Sequence[str],
        pointers: Sequence[int] | Sequence[Sequence[int]],
        sizes: Sequence[int] | Sequence[Sequence[int]],
    ) -> list[int]:
        def call(store: Store) -> list[int]:
            found = store.batch_get_into_pointers(keys, pointers, sizes)
            return [size_or_code(number) for number in found]

        return self._codes(what, call, keys)

    # --- parts of objects ---

    def get_into_ranges(
        self,
        buffer_ptrs: Sequence[int],
        all_keys: Sequence[Sequence[str]],
        all_dst_offsets: Sequence[Sequence[Sequence[int]]],
        all_src_offsets: Sequence[Sequence[Sequence[int]]],
        all_sizes: Sequence[Sequence[Sequence[int]]],
    ) -> list[list[list[int]]]:
        """Read parts of objects into several buffers.

        Fragment k of key j of buffer i consists of the `all_sizes[i][j][k]` bytes from
        `all_src_offsets[i][j][k]` of object `all_keys[i][j]`; they go to
        `all_dst_offsets[i][j][k]` of the registered buffer at `buffer_ptrs[i]`.

        Returns:
            In the same shape the bytes read, or a negative code: OBJECT_NOT_FOUND, or
            INVALID_PARAMS where the lists' shapes differ or a fragment exceeds the object or the
            registered buffer.
        """
        wrong = int(ErrorCode.INVALID_PARAMS)
        shape = [
            [[wrong] * _length(sizes) for sizes in (rows if _is_list(rows) else [])]
            for rows in all_sizes
        ]
        lists = (all_keys, all_dst_offsets, all_src_offsets, all_sizes)
        if any(len(one) != len(buffer_ptrs) for one in lists):
            return shape

        def call(store: Store) -> list[list[list[int]]]:
            answer = []
            with Views(store) as views:
                for pointer, keys, to, of, sizes in zip(buffer_ptrs, *lists, strict=True):
                    answer.append(self._ranges_of(views, pointer, keys, to, of, sizes))
            return answer

        def failed(code: int) -> list[list[list[int]]]:
            return [[[code] * len(sizes) for sizes in rows] for rows in shape]

        return self._ask("get_into_ranges", call, failed)

    def _ranges_of(
        self,
        views: Views,
        pointer: int,
        keys: Sequence[str],
        to: Sequence[Sequence[int]],
        of: Sequence[Sequence[int]],
        sizes: Sequence[Sequence[int]],
    ) -> list[list[int]]:
        room = self._room_at(pointer)
        wrong = int(ErrorCode.INVALID_PARAMS)
        if not len(keys) == len(to) == len(of) == len(sizes):
            return [[wrong] * _length(one) for one in sizes]
        return [
            [
                views.copy(key, start, pointer + offset, size)
                if _fits(offset, size, room)
                else wrong
                for start, offset, size in zip(starts, offsets, lengths, strict=True)
            ]
            if len(starts) == len(offsets) == len(lengths)
            else [wrong] * len(lengths)
            for key, starts, offsets, lengths in zip(keys, of, to, sizes, strict=True)
        ]


class Views:
    """Objects held for partial reads; each is opened once."""

    def __init__(self, store: Store) -> None:
        """Start without holds."""
        self._store = store
        self._open: dict[str, memoryview | None] = {}
        self._holds: list[View] = []

    def look(self, key: str) -> memoryview | None:
        """Return an object's bytes, read-only; None on a miss."""
        if key not in self._open:
            view = self._store.view(key)
            self._holds.append(view)
            self._open[key] = view.__enter__()
        return self._open[key]

    def copy(self, key: str, start: int, pointer: int, size: int) -> int:
        """Copy a part of an object to an address; the bytes, or a negative code."""
        block = self.look(key)
        if block is None:
            return int(ErrorCode.OBJECT_NOT_FOUND)
        if not _fits(start, size, len(block)):
            return int(ErrorCode.INVALID_PARAMS)
        if size:
            target = memoryview((ctypes.c_ubyte * size).from_address(pointer)).cast("B")
            target[:] = block[start : start + size]
        return size

    def release(self) -> None:
        """Release every hold."""
        holds, self._holds = self._holds, []
        self._open.clear()
        for view in holds:
            view.release()

    def __enter__(self) -> Views:
        """Return it."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Release every hold."""
        self.release()


def _fits(offset: int, size: int, room: int) -> bool:
    return offset >= 0 and size >= 0 and offset + size <= room


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _length(value: Sequence[int]) -> int:
    return len(value) if _is_list(value) else 0
