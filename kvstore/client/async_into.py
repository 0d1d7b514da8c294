"""Types of AsyncStore's reads into memory: a Transfer with ``stream``, else what Store returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, overload

from kvstore.client.device_buffers import MemoryKind, Verify
from kvstore.client.into_calls import Pointers
from kvstore.client.page_pools import PagePool
from kvstore.client.transfer import Transfer
from kvstore.errors import MissReason

if TYPE_CHECKING:
    from kvstore.client.buffers import BufferLike


class GetInto(Protocol):
    """`Store.get_into`, awaited."""

    @overload
    async def __call__(
        self, key: str, out: BufferLike, *, verify: Verify = "checksum", stream: None = None
    ) -> int | None: ...
    @overload
    async def __call__(
        self, key: str, out: BufferLike, *, verify: Verify = "checksum", stream: object
    ) -> Transfer: ...


class BatchGetInto(Protocol):
    """`Store.batch_get_into`, awaited."""

    @overload
    async def __call__(
        self,
        keys: Sequence[str],
        buffers: Sequence[BufferLike],
        *,
        reasons: list[MissReason] | None = None,
        verify: Verify = "checksum",
        stream: None = None,
    ) -> list[int]: ...
    @overload
    async def __call__(
        self,
        keys: Sequence[str],
        buffers: Sequence[BufferLike],
        *,
        verify: Verify = "checksum",
        stream: object,
    ) -> Transfer: ...


class BatchGetIntoPointers(Protocol):
    """`Store.batch_get_into_pointers`, awaited."""

    @overload
    async def __call__(
        self,
        keys: Sequence[str],
        pointers: Pointers,
        sizes: Pointers,
        *,
        reasons: list[MissReason] | None = None,
        memory: MemoryKind = "host",
        verify: Verify = "checksum",
        stream: None = None,
    ) -> list[int]: ...
    @overload
    async def __call__(
        self,
        keys: Sequence[str],
        pointers: Pointers,
        sizes: Pointers,
        *,
        memory: MemoryKind,
        verify: Verify = "checksum",
        stream: object,
    ) -> Transfer: ...


class BatchGetIntoPages(Protocol):
    """`Store.batch_get_into_pages`, awaited."""

    @overload
    async def __call__(
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
    async def __call__(
        self,
        keys: Sequence[str],
        pool: PagePool,
        page_ids: Sequence[int],
        *,
        memory: MemoryKind = "cuda",
        verify: Verify = "checksum",
        stream: object,
    ) -> Transfer: ...
