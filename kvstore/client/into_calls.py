"""IntoCalls: the part of a Store that reads into the caller's memory, and all that is a GPU's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from kvstore import _native
from kvstore.client.answers import REASONS, name_reasons
from kvstore.client.device_buffers import (
    LEGACY_STREAM,
    MemoryKind,
    Verify,
    any_on_device,
    checked_verify,
    common_stream,
    device_buffer,
    is_cuda,
    on_device,
    stream_handle,
)
from kvstore.client.transfer import Transfer
from kvstore.errors import InvalidArgumentError, MissReason, Status, error_for

if TYPE_CHECKING:
    from kvstore.client.buffers import BufferLike

Pointers: TypeAlias = Sequence[int | Sequence[int]]
# Keys, and where their bytes are: addresses and sizes.
Where: TypeAlias = tuple[Sequence[str], Pointers, Pointers]
# Replicas, pin level, time to live, parent, upsert.
How: TypeAlias = tuple[int, int, int, str | None, bool]


def rows_of(done: _native.Transfer, reasons: list[MissReason] | None) -> list[int]:
    """Return the sizes or statuses of a call that has waited; `reasons` receives why."""
    if reasons is not None:
        reasons[:] = [REASONS[number] for number in done.reasons()]
    return done.results()


class IntoCalls:
    """Reads into buffers and addresses, in host memory or on a GPU.

    Without ``stream`` a call returns when the bytes are there. With it, a get returns as soon as
    its copies are queued on that CUDA stream, and gives a `Transfer`.
    """

    _client: _native.Client

    @overload
    def get_into(
        self, key: str, out: BufferLike, *, verify: Verify = "checksum", stream: None = None
    ) -> int | None: ...

    @overload
    def get_into(
        self, key: str, out: BufferLike, *, verify: Verify = "checksum", stream: object
    ) -> Transfer: ...

    def get_into(
        self, key: str, out: BufferLike, *, verify: Verify = "checksum", stream: Any = None
    ) -> int | Transfer | None:
        """Read an object into a buffer.

        Args:
            key: of the object.
            out: a writable C-contiguous buffer, or memory of a CUDA device; its contents are
                undefined after a miss.
            verify: how bytes are proven that go to a CUDA device: by their "checksum", or by the
                block's "generation" alone, which saves the processor a pass over them.
            stream: for memory of a CUDA device: queue the copy on this CUDA stream (a handle, or a
                stream of PyTorch or CuPy), and return. None: copy behind the current stream of the
                buffer's library, and return when the bytes are there.

        Returns:
            Bytes written, or None on a miss; with `stream` a `Transfer`.

        Raises:
            InvalidArgumentError: An argument is wrong, `out` is shorter than the object, or memory
                or stream do not belong to one CUDA device that is whole.
            UnsupportedError: `out` lies on a CUDA device, and its driver cannot be loaded.
            IoError: The device failed; `out` is undefined.
            ClosedError: The store is closed, or this is a forked child.
        """
        if stream is not None:
            return self._queue_into([key], [out], verify, stream)
        verified = checked_verify(verify)
        try:
            size = self._client.get_into(key, out)
        except InvalidArgumentError:
            if not on_device(out):
                raise
            where, handle = self._places([key], [out], None)
            size = self._get_device(where, handle, verified, None)[0]
        if size >= 0:
            return size
        if size == Status.BufferTooSmall:
            raise error_for(size, f"out is shorter than the object under {key!r}")
        return None

    @overload
    def batch_get_into(
        self,
        keys: Sequence[str],
        buffers: Sequence[BufferLike],
        *,
        reasons: list[MissReason] | None = None,
        verify: Verify = "checksum",
        stream: None = None,
    ) -> list[int]: ...

    @overload
    def batch_get_into(
        self,
        keys: Sequence[str],
        buffers: Sequence[BufferLike],
        *,
        verify: Verify = "checksum",
        stream: object,
    ) -> Transfer: ...

    def batch_get_into(
        self,
        keys: Sequence[str],
        buffers: Sequence[BufferLike],
        *,
        reasons: list[MissReason] | None = None,
        verify: Verify = "checksum",
        stream: Any = None,
    ) -> list[int] | Transfer:
        """Read several objects, each into its buffer.

        Args:
            keys: of the objects.
            buffers: one for each key, as in `get_into`: all in host memory, or all of one CUDA
                device. The contents of those whose read failed are undefined.
            reasons: as in `Store.batch_get`.
            verify: as in `get_into`.
            stream: as in `get_into`.

        Returns:
            For each key the size (0 for an empty object), or a negative status: NotFound,
            BufferTooSmall, ChecksumMismatch, Unavailable, …; with `stream` a `Transfer`.

        Raises:
            InvalidArgumentError: As in `get_into`, but for a buffer that is too short.
            UnsupportedError: As in `get_into`.
            IoError: As in `get_into`.
            ClosedError: The store is closed, or this is a forked child.
        """
        if stream is not None:
            return self._queue_into(keys, buffers, verify, stream)
        verified = checked_verify(verify)
        try:
            sizes = self._client.batch_get_into(keys, buffers, reasons)
        except InvalidArgumentError:
            if not any_on_device(buffers):
                raise
            where, handle = self._places(keys, buffers, None)
            return self._get_device(where, handle, verified, reasons)
        name_reasons(reasons)
        return sizes

    @overload
    def batch_get_into_pointers(
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
    def batch_get_into_pointers(
        self,
        keys: Sequence[str],
        pointers: Pointers,
        sizes: Pointers,
        *,
        memory: MemoryKind,
        verify: Verify = "checksum",
        stream: object,
    ) -> Transfer: ...

    def batch_get_into_pointers(
        self,
        keys: Sequence[str],
        pointers: Pointers,
        sizes: Pointers,
        *,
        reasons: list[MissReason] | None = None,
        memory: MemoryKind = "host",
        verify: Verify = "checksum",
        stream: Any = None,
    ) -> list[int] | Transfer:
        """Read several objects to the given addresses.

        Args:
            keys: of the objects.
            pointers: addresses of writable memory that stays valid during the call; a list of them
                for an object that is scattered over several pieces.
            sizes: capacity at each address in bytes, in the same form.
            reasons: as in `Store.batch_get`.
            memory: what the addresses belong to: "host", or "cuda" for one CUDA device.
            verify: as in `get_into`.
            stream: as in `get_into`; None: behind the legacy default stream.

        Returns:
            As `batch_get_into`.

        Raises:
            InvalidArgumentError: As in `batch_get_into`.
            UnsupportedError: As in `get_into`.
            IoError: As in `get_into`.
            ClosedError: The store is closed, or this is a forked child.
        """
        verified = checked_verify(verify)
        where = (keys, pointers, sizes)
        if is_cuda(memory):
            if stream is not None:
                return self._queue_device(where, stream_handle(stream), verified, None)
            return self._get_device(where, LEGACY_STREAM, verified, reasons)
        if stream is not None:
            raise InvalidArgumentError('stream is for addresses of memory="cuda"')
        found = self._client.batch_get_into_pointers(*where, reasons)
        name_reasons(reasons)
        return found

    # --- memory of a GPU ---

    def _places(
        self, keys: Sequence[str], buffers: Sequence[Any], stream: Any, writable: bool = True
    ) -> tuple[Where, int]:
        found = [device_buffer(buffer) for buffer in buffers]
        if writable and not all(one.is_writable for one in found):
            raise InvalidArgumentError("a buffer on a GPU is read-only")
        where = (keys, [one.pointer for one in found], [one.size_bytes for one in found])
        return where, common_stream(found, stream)

    def _queue_into(
        self, keys: Sequence[str], buffers: Sequence[Any], verify: Verify, stream: Any
    ) -> Transfer:
        verified = checked_verify(verify)
        where, handle = self._places(keys, buffers, stream)
        return self._queue_device(where, handle, verified, buffers)

    def _queue_device(self, where: Where, stream: int, verified: bool, keep: object) -> Transfer:
        native = self._client.device_get(
            *where, header_on_host=False, stream=stream, queued=True, verify_checksum=verified
        )
        return Transfer(native, keep)

    def _get_device(
        self,
        where: Where,
        stream: int,
        verified: bool,
        reasons: list[MissReason] | None,
    ) -> list[int]:
        done = self._client.device_get(
            *where,
            header_on_host=False,
            stream=stream,
            queued=False,
            verify_checksum=verified,
        )
        return rows_of(done, reasons)

    def _put_device(
        self, keys: Sequence[str], buffers: Sequence[Any], how: How, stream: Any
    ) -> list[int]:
        where, handle = self._places(keys, buffers, stream, writable=False)
        return self._put_places(where, how, handle)

    def _put_pointers(self, where: Where, how: How, memory: MemoryKind, stream: Any) -> list[int]:
        if is_cuda(memory):
            handle = LEGACY_STREAM if stream is None else stream_handle(stream)
            return self._put_places(where, how, handle)
        if stream is not None:
            raise InvalidArgumentError('stream is for addresses of memory="cuda"')
        keys, pointers, sizes = where
        return self._client.batch_put_from(keys, pointers, sizes, *how)

    def _put_places(self, where: Where, how: How, stream: int) -> list[int]:
        keys, pointers, sizes = where
        return self._client.device_put(
            keys, pointers, sizes, *how, header_on_host=False, stream=stream
        )
