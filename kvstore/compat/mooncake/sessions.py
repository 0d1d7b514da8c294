"""Mooncake's get and put sessions: objects read or written in parts over several calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from kvstore.client.lookup import Lookup
from kvstore.client.store import Store
from kvstore.compat.mooncake.codes import ErrorCode, code_of, presence
from kvstore.compat.mooncake.pointers import Pointers, Views
from kvstore.compat.mooncake.values import ReplicateConfig

_LEASE_MS = 60_000


class _Reading:
    """One object of a get session: leased at the start, held from the first read on."""

    def __init__(self, store: Store, lease: Lookup) -> None:
        self.views = Views(store)
        self.lease = lease
        self.sessions = 1
        """Number of get sessions of this store that have it open."""

    def end(self) -> None:
        self.views.release()
        self.lease.release()


class _Writing:
    """One object of a put session, whose bytes are collected until its end publishes them."""

    def __init__(self, size: int, how: ReplicateConfig) -> None:
        self.memory = bytearray(size)
        self.how = how

    def copy(self, pointer: int, size: int, offset: int) -> int:
        if min(offset, size) < 0 or offset + size > len(self.memory):
            return int(ErrorCode.INVALID_PARAMS)
        if size:
            source = (ctypes.c_ubyte * size).from_address(pointer)
            self.memory[offset : offset + size] = memoryview(source).cast("B")
        return int(ErrorCode.OK)


class Sessions(Pointers):
    """Calls of get and put sessions."""

    def __init__(self) -> None:
        """Start without sessions."""
        super().__init__()
        self._reading: dict[str, _Reading] = {}
        self._writing: dict[str, _Writing] = {}

    # --- reading ---

    def batch_get_session_start(self, keys: Sequence[str]) -> list[int]:
        """Protect objects from eviction until the session ends.

        Returns:
            For each key 0, or a negative code; keys with a negative code are not in the session.
        """

        def call(store: Store) -> list[int]:
            codes = []
            for key in keys:
                with self._lock:
                    known = self._reading.get(key)
                    if known is not None:
                        known.sessions += 1
                        codes.append(0)
                        continue
                lease = store.lookup([key], lease_ms=_LEASE_MS)
                if lease.length == 0:
                    lease.release()
                    answer = presence(store.batch_sizes([key])[0])
                    codes.append(answer if answer < 0 else int(ErrorCode.OBJECT_NOT_FOUND))
                    continue
                with self._lock:
                    known = self._reading.setdefault(key, _Reading(store, lease))
                    known.sessions += known.lease is not lease  # another thread won the race
                codes.append(0)
            return codes

        return self._codes("batch_get_session_start", call, keys)

    def batch_get_into_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        all_src_offsets: Sequence[Sequence[int]],
    ) -> list[int]:
        """Read parts of the session's objects to addresses.

        Returns:
            For each key the total bytes read, or a negative code: OBJECT_NOT_FOUND where it is not
            in the session, INVALID_PARAMS where a part exceeds the object.
        """

        def read(key: str, pointers: Sequence[int], sizes: Sequence[int], of: Sequence[int]) -> int:
            with self._lock:
                found = self._reading.get(key)
            if found is None:
                return int(ErrorCode.OBJECT_NOT_FOUND)
            total = 0
            for pointer, size, offset in zip(pointers, sizes, of, strict=True):
                copied = found.views.copy(key, offset, pointer, size)
                if copied < 0:
                    return copied
                total += copied
            return total

        what = "batch_get_into_multi_buffer_ranges"
        return self._each(what, read, keys, all_buffer_ptrs, all_sizes, all_src_offsets)

    def batch_get_session_end(self, keys: Sequence[str]) -> int:
        """End the session of these objects; 0, also for objects without a session."""
        for key in keys:
            with self._lock:
                found = self._reading.get(key)
                if found is None:
                    continue
                found.sessions -= 1
                if found.sessions > 0:
                    continue
                del self._reading[key]
            found.end()
        return int(ErrorCode.OK)

    def _in_session(self, key: str) -> bool:
        with self._lock:
            return key in self._reading

    # --- writing ---

    def batch_put_session_start(
        self, keys: Sequence[str], sizes: Sequence[int], config: ReplicateConfig | None = None
    ) -> list[int]:
        """Start objects that are written in parts.

        Returns:
            For each key 0, OBJECT_ALREADY_EXISTS where it has an object or is being written by
            this store, or another negative code.
        """

        def call(store: Store) -> list[int]:
            how = self._kept(config)
            codes = []
            for key, size, there in zip(keys, sizes, store.batch_sizes(keys), strict=True):
                code = presence(there)
                with self._lock:
                    if code == 1 or key in self._writing:
                        code = int(ErrorCode.OBJECT_ALREADY_EXISTS)
                    elif code == 0 and size < 0:
                        code = int(ErrorCode.INVALID_PARAMS)
                    elif code == 0:
                        self._writing[key] = _Writing(size, how)
                codes.append(code)
            return codes

        return self._codes("batch_put_session_start", call, keys)

    def batch_put_from_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        all_dst_offsets: Sequence[Sequence[int]],
    ) -> list[int]:
        """Write parts of the session's objects.

        Returns:
            For each key 0, or a negative code: OBJECT_NOT_FOUND where it is not in the session,
            INVALID_PARAMS where a part exceeds the size given at its start.
        """

        def write(
            key: str, pointers: Sequence[int], sizes: Sequence[int], to: Sequence[int]
        ) -> int:
            with self._lock:
                found = self._writing.get(key)
            if found is None:
                return int(ErrorCode.OBJECT_NOT_FOUND)
            for pointer, size, offset in zip(pointers, sizes, to, strict=True):
                code = found.copy(pointer, size, offset)
                if code < 0:
                    return code
            return int(ErrorCode.OK)

        what = "batch_put_from_multi_buffer_ranges"
        return self._each(what, write, keys, all_buffer_ptrs, all_sizes, all_dst_offsets)

    def batch_put_session_end(self, keys: Sequence[str]) -> list[int]:
        """Publish the session's objects; for each key 0 or a negative code.

        Bytes that no part wrote are zero. Objects that could not be published leave the session.
        """

        def call(store: Store) -> list[int]:
            with self._lock:
                written = [self._writing.pop(key, None) for key in keys]
            codes = [int(ErrorCode.OBJECT_NOT_FOUND)] * len(keys)
            for row, one in enumerate(written):
                if one is not None:
                    status = store.put(
                        keys[row], one.memory, replicas=one.how.replicas, pin=one.how.pin
                    )
                    codes[row] = code_of(status)
            return codes

        return self._codes("batch_put_session_end", call, keys)

    def batch_put_session_revoke(self, keys: Sequence[str]) -> list[int]:
        """Discard the session's objects; for each key 0, or OBJECT_NOT_FOUND."""
        with self._lock:
            return [
                0 if self._writing.pop(key, None) is not None else int(ErrorCode.OBJECT_NOT_FOUND)
                for key in keys
            ]

    # --- both ---

    def _each(
        self,
        what: str,
        transfer: Callable[[str, Sequence[int], Sequence[int], Sequence[int]], int],
        keys: Sequence[str],
        *columns: Sequence[Sequence[int]],
    ) -> list[int]:
        """Run a transfer for each key; INVALID_PARAMS where the lengths of its lists differ."""

        def call(store: Store) -> list[int]:
            codes = []
            for key, pointers, sizes, offsets in zip(keys, *columns, strict=True):
                if len(pointers) == len(sizes) == len(offsets):
                    codes.append(transfer(key, pointers, sizes, offsets))
                else:
                    codes.append(int(ErrorCode.INVALID_PARAMS))
            return codes

        return self._codes(what, call, keys)

    def _end_sessions(self) -> None:
        with self._lock:
            reading, self._reading = self._reading, {}
            self._writing.clear()
        for one in reading.values():
            one.end()
