"""PageCalls: the part of a Store that moves whole pages of a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from kvstore.client.answers import PinLevel, kept_as, statuses_of
from kvstore.client.device_buffers import (
    LEGACY_STREAM,
    MemoryKind,
    Verify,
    checked_verify,
    is_cuda,
    stream_handle,
)
from kvstore.client.into_calls import IntoCalls, rows_of
from kvstore.client.page_pools import PagePool
from kvstore.client.transfer import Transfer
from kvstore.errors import MissReason, Status


class PageCalls(IntoCalls):
    """Pages of an engine's pool, one object each, in all layers at once."""

    @overload
    def batch_get_into_pages(
        self,
        keys: Sequence[str],
        pool: PagePool,
        page_ids: Sequence[int],
        *,
        reasons: list[MissReason] | None = None,
        memory: MemoryKind = "cuda",
        verify: Verify = "checksum",
        stream: None = None,
    ) -> list[int]: ...

    @overload
    def batch_get_into_pages(
        self,
        keys: Sequence[str],
        pool: PagePool,
        page_ids: Sequence[int],
        *,
        memory: MemoryKind = "cuda",
        verify: Verify = "checksum",
        stream: object,
    ) -> Transfer: ...

    def batch_get_into_pages(
        self,
        keys: Sequence[str],
        pool: PagePool,
        page_ids: Sequence[int],
        *,
        reasons: list[MissReason] | None = None,
        memory: MemoryKind = "cuda",
        verify: Verify = "checksum",
        stream: Any = None,
    ) -> list[int] | Transfer:
        """Read pages into a pool: each object into all layers of its page.

        Args:
            keys: of the objects.
            pool: where the pages lie.
            page_ids: the page that each object goes to; a page whose read failed is undefined.
            reasons: as in `Store.batch_get`.
            memory: what the pool's addresses belong to: "cuda" for one CUDA device, or "host".
            verify: as in `Store.get_into`.
            stream: as in `Store.get_into`; None: behind the legacy default stream.

        Returns:
            As `Store.batch_get_into`.

        Raises:
            InvalidArgumentError: As in `Store.batch_get_into`, or a page is not in the pool.
            UnsupportedError: As in `Store.get_into`.
            IoError: As in `Store.get_into`.
            ClosedError: The store is closed, or this is a forked child.
        """
        verified = checked_verify(verify)
        if is_cuda(memory):
            native = self._client.device_get_pages(
                keys,
                pool.grid(),
                page_ids,
                stream=LEGACY_STREAM if stream is None else stream_handle(stream),
                queued=stream is not None,
                verify_checksum=verified,
            )
            return Transfer(native, None) if stream is not None else rows_of(native, reasons)
        pointers, sizes = pool.pieces(page_ids)
        return self.batch_get_into_pointers(
            keys, pointers, sizes, reasons=reasons, memory=memory, verify=verify, stream=stream
        )

    def batch_put_from_pages(
        self,
        keys: Sequence[str],
        pool: PagePool,
        page_ids: Sequence[int],
        *,
        replicas: int = 1,
        pin: PinLevel | None = None,
        ttl_ms: int | None = None,
        parent: str | None = None,
        upsert: bool = False,
        memory: MemoryKind = "cuda",
        stream: Any = None,
    ) -> list[Status]:
        """Store pages of a pool: all layers of each as one object.

        Args:
            keys: of the objects.
            pool: where the pages lie.
            page_ids: the page that becomes each object.
            replicas: as in `Store.put`.
            pin: as in `Store.put`.
            ttl_ms: as in `Store.put`.
            parent: as in `Store.batch_put`.
            upsert: as in `Store.put`.
            memory: what the pool's addresses belong to: "cuda" for one CUDA device, or "host".
            stream: as in `Store.put`; None: the legacy default stream.

        Returns:
            One status per key, as in `Store.put`.

        Raises:
            InvalidArgumentError: An argument is wrong; nothing was written.
            ClosedError: The store is closed, or this is a forked child.
        """
        how = (*kept_as(replicas, pin, ttl_ms), parent, upsert)
        if is_cuda(memory):
            handle = LEGACY_STREAM if stream is None else stream_handle(stream)
            return statuses_of(
                self._client.device_put_pages(keys, pool.grid(), page_ids, *how, stream=handle)
            )
        pointers, sizes = pool.pieces(page_ids)
        return statuses_of(self._put_pointers((keys, pointers, sizes), how, memory, stream))
