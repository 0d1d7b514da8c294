"""TensorCalls: the part of a Store that reads and writes tensors."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any

from kvstore import _native
from kvstore.client.answers import PinLevel, answer, kept_as, statuses_of
from kvstore.client.device_buffers import one_stream
from kvstore.client.device_tensors import device_memories_of
from kvstore.client.tensor_format import (
    Layout,
    Memory,
    TensorKind,
    header_bytes,
    memory_of,
    parse_header,
    tensor_in,
)
from kvstore.errors import InvalidArgumentError, Status, UnsupportedError, error_for
from kvstore.options import one_of


class TensorCalls:
    """Tensors of PyTorch and NumPy, and of anything with DLPack or ``__cuda_array_interface__``.

    A tensor is stored with its dtype, shape and strides; its elements are copied once (a tensor
    with gaps between them is first made dense), those on a GPU directly, behind its library's
    current stream. Neither library is needed until one of its tensors is written or read.
    """

    _client: _native.Client

    def put_tensor(
        self,
        key: str,
        tensor: Any,
        *,
        replicas: int = 1,
        pin: PinLevel | None = None,
        ttl_ms: int | None = None,
        parent: str | None = None,
        upsert: bool = False,
    ) -> Status:
        """Store a tensor; as `Store.put`.

        Args:
            key: of the object.
            tensor: a torch.Tensor, a NumPy array, or anything with ``__dlpack__`` or
                ``__cuda_array_interface__``; bool, integers, floats (bfloat16 and float8 too) and
                complex numbers.
            replicas: as in `Store.put`.
            pin: as in `Store.put`.
            ttl_ms: as in `Store.put`.
            parent: as in `Store.put`.
            upsert: as in `Store.put`.

        Returns:
            As `Store.put`.

        Raises:
            InvalidArgumentError: An argument is wrong, or the tensor is not supported.
            ClosedError: The store is closed, or this is a forked child.
        """
        how = kept_as(replicas, pin, ttl_ms)
        return answer(self._put_tensors([key], [tensor], how, parent, upsert)[0])

    def batch_put_tensor(
        self,
        keys: Sequence[str],
        tensors: Sequence[Any],
        *,
        replicas: int = 1,
        pin: PinLevel | None = None,
        ttl_ms: int | None = None,
        parent: str | None = None,
        upsert: bool = False,
    ) -> list[Status]:
        """Store several tensors; as `Store.batch_put`.

        Args:
            keys: of the objects.
            tensors: one for each key, as in `put_tensor`.
            replicas: as in `Store.put`.
            pin: as in `Store.put`.
            ttl_ms: as in `Store.put`.
            parent: as in `Store.batch_put`.
            upsert: as in `Store.put`.

        Returns:
            One status per key.

        Raises:
            InvalidArgumentError: An argument is wrong; nothing was written.
            ClosedError: The store is closed, or this is a forked child.
        """
        how = kept_as(replicas, pin, ttl_ms)
        return statuses_of(self._put_tensors(keys, tensors, how, parent, upsert))

    def get_tensor(self, key: str, *, kind: TensorKind | None = None) -> Any:
        """Read a tensor.

        Args:
            key: of the object.
            kind: "torch" or "numpy"; None: as it was written.

        Returns:
            A new tensor in host memory, with the dtype, shape and strides that were written; None
            on a miss.

        Raises:
            InvalidArgumentError: The key is wrong, the object is not a tensor, or the library of
                its kind is not installed.
            ClosedError: The store is closed, or this is a forked child.
        """
        return self.batch_get_tensor([key], kind=kind)[0]

    def batch_get_tensor(self, keys: Sequence[str], *, kind: TensorKind | None = None) -> list[Any]:
        """Read several tensors; as `get_tensor` for each key.

        Args:
            keys: of the objects.
            kind: as in `get_tensor`.

        Returns:
            A tensor or None for each key.

        Raises:
            InvalidArgumentError: As in `get_tensor`.
            ClosedError: The store is closed, or this is a forked child.
        """
        one_of("kind", kind, (None, "numpy", "torch"))
        stored = self._client.batch_get_bytearrays(keys)
        return [None if one is None else tensor_in(one, kind) for one in stored]

    def get_tensor_into(self, key: str, out: Any) -> bool:
        """Read a tensor into one of the same dtype, shape and strides, without another copy.

        Args:
            key: of the object.
            out: a tensor without gaps, in host memory or on a GPU; its contents are undefined
                unless True is returned.

        Returns:
            Whether it was found.

        Raises:
            InvalidArgumentError: An argument is wrong, or the object is another kind of tensor.
            ClosedError: The store is closed, or this is a forked child.
        """
        return self.batch_get_tensor_into([key], [out])[0]

    def batch_get_tensor_into(self, keys: Sequence[str], outs: Sequence[Any]) -> list[bool]:
        """Read several tensors, each into its own; as `get_tensor_into` for each key.

        Args:
            keys: of the objects.
            outs: a tensor for each key, as in `get_tensor_into`: all in host memory, or all on one
                GPU.

        Returns:
            Whether each was found.

        Raises:
            InvalidArgumentError: As in `get_tensor_into`; those before the first wrong one have
                been read.
            ClosedError: The store is closed, or this is a forked child.
        """
        device = device_memories_of(outs)
        places = [memory_of(out) for out in outs] if device is None else device[0]
        if not all(place.is_own for place in places):
            raise InvalidArgumentError(
                "out must be writable, without gaps, and in host memory or with all others on a GPU"
            )
        headers = [bytearray(header_bytes(len(place.layout.shape))) for place in places]
        pointers, capacities = _pieces(headers, places)
        if device is None:
            sizes = self._client.batch_get_into_pointers(keys, pointers, capacities)
        else:
            sizes = self._client.device_get(
                keys,
                pointers,
                capacities,
                header_on_host=True,
                stream=one_stream(device[1]),
                queued=False,
                verify_checksum=True,
            ).results()
        for key, size, header, place in zip(keys, sizes, headers, places, strict=True):
            _check_fit(key, size, header, place.layout)
        return [size >= 0 for size in sizes]

    def _put_tensors(
        self,
        keys: Sequence[str],
        tensors: Sequence[Any],
        how: tuple[int, int, int],
        parent: str | None,
        upsert: bool,
    ) -> list[int]:
        device = device_memories_of(tensors)
        if device is not None:
            # Without a CUDA driver (on a GPU of another maker) the library copies to the host.
            with contextlib.suppress(UnsupportedError):
                memories, streams = device
                headers = [memory.layout.header() for memory in memories]
                pointers, sizes = _pieces(headers, memories)
                return self._client.device_put(
                    keys,
                    pointers,
                    sizes,
                    *how,
                    parent,
                    upsert,
                    header_on_host=True,
                    stream=one_stream(streams),
                )
        memories = [memory_of(tensor) for tensor in tensors]
        headers = [memory.layout.header() for memory in memories]
        pointers, sizes = _pieces(headers, memories)
        return self._client.batch_put_from(keys, pointers, sizes, *how, parent, upsert)


def _pieces(
    headers: Sequence[bytearray], memories: Sequence[Memory]
) -> tuple[list[list[int]], list[list[int]]]:
    """Addresses and sizes of each tensor's header and elements."""
    pointers, sizes = [], []
    for header, memory in zip(headers, memories, strict=True):
        start = ctypes.addressof(ctypes.c_char.from_buffer(header))
        pointers.append([start, memory.pointer])
        sizes.append([len(header), memory.layout.size_bytes])
    return pointers, sizes


def _check_fit(key: str, size: int, header: bytearray, wanted: Layout) -> None:
    """Raise unless the object that was read matches `out`."""
    if size == Status.BufferTooSmall:
        raise error_for(size, f"out is smaller than the tensor under {key!r}")
    if size < 0:
        return
    found = parse_header(header)
    if found is None or size != len(header) + wanted.size_bytes:
        raise InvalidArgumentError(f"the object under {key!r} is not a tensor of out's size")
    there = found[0]
    if there.elements() != wanted.elements():
        raise InvalidArgumentError(
            f"the tensor under {key!r} is {there.dtype} {there.shape} with strides "
            f"{there.strides}; out has {wanted.dtype} {wanted.shape} and {wanted.strides}"
        )
