"""Tensors with a descriptive header, whole or as shards of tensor parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvstore.client.store import Store
from kvstore.client.tensor_format import header_bytes, memory_of, parse_header, tensor_in
from kvstore.compat.mooncake.memory import Addresses, BufferHandle, bytes_at
from kvstore.compat.mooncake.pointers import Pointers
from kvstore.compat.mooncake.values import ReplicateConfig
from kvstore.errors import InvalidArgumentError

_USUAL_DIMENSIONS = 8


def shard_key(key: str, rank: int) -> str:
    """Name the object of one rank's shard."""
    return f"{key}_tp_{rank}"


class Tensors(Pointers):
    """Calls about torch's tensors and NumPy's arrays.

    Shards: a `*_with_tp` call with `tp_size` above 1 stores the tensor as `tp_size` objects, split
    evenly along `split_dim`; a put stores all of them regardless of its `tp_rank`, a get reads the
    one of its `tp_rank`.
    """

    # --- writing ---

    def put_tensor(self, key: str, tensor: Any) -> int:
        """Store a tensor."""
        return self._put_tensors("put_tensor", [key], [tensor])[0]

    def batch_put_tensor(self, keys: Sequence[str], tensors_list: Sequence[Any]) -> list[int]:
        """Store several tensors."""
        return self._put_tensors("batch_put_tensor", keys, tensors_list)

    def upsert_tensor(self, key: str, tensor: Any) -> int:
        """Store or replace a tensor."""
        return self._put_tensors("upsert_tensor", [key], [tensor], upsert=True)[0]

    def batch_upsert_tensor(self, keys: Sequence[str], tensors_list: Sequence[Any]) -> list[int]:
        """Store or replace several tensors."""
        return self._put_tensors("batch_upsert_tensor", keys, tensors_list, upsert=True)

    def pub_tensor(self, key: str, tensor: Any, config: ReplicateConfig | None = None) -> int:
        """Store a tensor, kept as `config` says."""
        return self._put_tensors("pub_tensor", [key], [tensor], config)[0]

    def batch_pub_tensor(
        self,
        keys: Sequence[str],
        tensors_list: Sequence[Any],
        config: ReplicateConfig | None = None,
    ) -> list[int]:
        """Store several tensors, kept as `config` says."""
        return self._put_tensors("batch_pub_tensor", keys, tensors_list, config)

    def upsert_pub_tensor(
        self, key: str, tensor: Any, config: ReplicateConfig | None = None
    ) -> int:
        """Store or replace a tensor, kept as `config` says."""
        return self._put_tensors("upsert_pub_tensor", [key], [tensor], config, True)[0]

    def batch_upsert_pub_tensor(
        self,
        keys: Sequence[str],
        tensors_list: Sequence[Any],
        config: ReplicateConfig | None = None,
    ) -> list[int]:
        """Store or replace several tensors, kept as `config` says."""
        return self._put_tensors("batch_upsert_pub_tensor", keys, tensors_list, config, True)

    def put_tensor_with_tp(
        self, key: str, tensor: Any, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> int:
        """Store a tensor as shards."""
        return self._put_shards("put_tensor_with_tp", [key], [tensor], None, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp(
        self,
        base_keys: Sequence[str],
        tensors_list: Sequence[Any],
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        """Store several tensors as shards."""
        what = "batch_put_tensor_with_tp"
        return self._put_shards(what, base_keys, tensors_list, None, tp_size, split_dim)

    def pub_tensor_with_tp(
        self,
        key: str,
        tensor: Any,
        config: ReplicateConfig | None = None,
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> int:
        """Store a tensor as shards, kept as `config` says."""
        what = "pub_tensor_with_tp"
        return self._put_shards(what, [key], [tensor], config, tp_size, split_dim)[0]

    def batch_pub_tensor_with_tp(
        self,
        base_keys: Sequence[str],
        tensors_list: Sequence[Any],
        config: ReplicateConfig | None = None,
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        """Store several tensors as shards, kept as `config` says."""
        what = "batch_pub_tensor_with_tp"
        return self._put_shards(what, base_keys, tensors_list, config, tp_size, split_dim)

    def put_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """Store a tensor that lies at an address with its header, as `get_tensor_into` does."""
        return self.batch_put_tensor_from([key], [buffer_ptr], [size])[0]

    def batch_put_tensor_from(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """Store several tensors that lie at addresses with their headers."""
        return self._put_laid_out("batch_put_tensor_from", keys, buffer_ptrs, sizes, False)

    def upsert_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """Store or replace a tensor that lies at an address with its header."""
        return self.batch_upsert_tensor_from([key], [buffer_ptr], [size])[0]

    def batch_upsert_tensor_from(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """Store or replace several tensors that lie at addresses with their headers."""
        return self._put_laid_out("batch_upsert_tensor_from", keys, buffer_ptrs, sizes, True)

    def put_tensor_with_tp_from(
        self,
        key: str,
        buffer_ptr: int,
        size: int,
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> int:
        """Store the tensor that lies at an address with its header as shards."""
        return self.batch_put_tensor_with_tp_from(
            [key], [buffer_ptr], [size], tp_rank, tp_size, split_dim
        )[0]

    def batch_put_tensor_with_tp_from(
        self,
        base_keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        """Store several tensors that lie at addresses with their headers as shards."""
        what = "batch_put_tensor_with_tp_from"
        if tp_size == 1:
            return self._put_laid_out(what, base_keys, buffer_ptrs, sizes, False)
        tensors = [
            self._made(key, bytes_at(pointer, size)[: _tensor_bytes(bytes_at(pointer, size))])
            for key, pointer, size in zip(base_keys, buffer_ptrs, sizes, strict=False)
        ]
        return self._put_shards(what, base_keys, tensors, None, tp_size, split_dim)

    def _put_tensors(
        self,
        what: str,
        keys: Sequence[str],
        tensors: Sequence[Any],
        config: ReplicateConfig | None = None,
        upsert: bool = False,
    ) -> list[int]:
        def call(store: Store) -> list[int]:
            found = [memory_of(tensor) for tensor in tensors]
            with Addresses([one.layout.header() for one in found]) as headers:
                pointers = [
                    [at, one.pointer] for at, one in zip(headers.pointers, found, strict=True)
                ]
                sizes = [
                    [size, one.layout.size_bytes]
                    for size, one in zip(headers.sizes, found, strict=True)
                ]
                how = self._kept(config)
                return self._put_gathered(store, keys, pointers, sizes, how, upsert)

        return self._codes(what, call, keys)

    def _put_shards(
        self,
        what: str,
        keys: Sequence[str],
        tensors: Sequence[Any],
        config: ReplicateConfig | None,
        parts: int,
        dimension: int,
    ) -> list[int]:
        if parts == 1:
            return self._put_tensors(what, keys, tensors, config)

        def call(store: Store) -> list[int]:
            if len(keys) != len(tensors) or any(tensor is None for tensor in tensors):
                raise ValueError("each key needs a tensor")
            shards = [part for tensor in tensors for part in split(tensor, parts, dimension)]
            names = [shard_key(key, rank) for key in keys for rank in range(parts)]
            codes = self._put_tensors(what, names, shards, config)
            rows = [codes[at : at + parts] for at in range(0, len(codes), parts)]
            return [next((code for code in row if code), 0) for row in rows]

        return self._codes(what, call, keys)

    def _put_laid_out(
        self,
        what: str,
        keys: Sequence[str],
        pointers: Sequence[int],
        sizes: Sequence[int],
        upsert: bool,
    ) -> list[int]:
        def call(store: Store) -> list[int]:
            exact = []
            for pointer, size in zip(pointers, sizes, strict=True):
                length = _tensor_bytes(bytes_at(pointer, size))
                if length is None:
                    raise InvalidArgumentError("there is no complete tensor at that address")
                exact.append(length)
            return self._put_gathered(store, keys, pointers, exact, self._kept(None), upsert)

        return self._codes(what, call, keys)

    # --- reading ---

    def get_tensor(self, key: str) -> Any:
        """Read a tensor; None when it is absent or not a tensor."""
        return self.batch_get_tensor([key])[0]

    def batch_get_tensor(self, keys: Sequence[str]) -> list[Any]:
        """Read several tensors; None for each that is absent or not a tensor."""
        return [self._made(key, found) for key, found in self._read(keys)]

    def get_tensor_with_tp(
        self, key: str, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> Any:
        """Read one rank's shard; None when it is absent."""
        return self.batch_get_tensor_with_tp([key], tp_rank, tp_size)[0]

    def batch_get_tensor_with_tp(
        self, base_keys: Sequence[str], tp_rank: int = 0, tp_size: int = 1
    ) -> list[Any]:
        """Read one rank's shard of several tensors; None for each that is absent."""
        return self.batch_get_tensor(_names(base_keys, tp_rank, tp_size))

    def get_tensor_into(self, key: str, buffer_ptr: int, size: int) -> Any:
        """Read a tensor, with its header, to an address where `size` bytes fit.

        Returns:
            A tensor over the memory behind the header, which the caller keeps; None on a miss.
        """
        return self.batch_get_tensor_into([key], [buffer_ptr], [size])[0]

    def batch_get_tensor_into(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[Any]:
        """Read several tensors, with their headers, to addresses; None for each miss."""
        found = self.batch_get_into(keys, buffer_ptrs, sizes)
        return [
            self._made(key, bytes_at(pointer, size) if size >= 0 else None)
            for key, pointer, size in zip(keys, buffer_ptrs, found, strict=False)
        ]

    def get_tensor_with_tp_into(
        self,
        key: str,
        buffer_ptr: int,
        size: int,
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> Any:
        """Read one rank's shard, with its header, to an address; None on a miss."""
        return self.batch_get_tensor_with_tp_into([key], [buffer_ptr], [size], tp_rank, tp_size)[0]

    def batch_get_tensor_with_tp_into(
        self,
        base_keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        tp_rank: int = 0,
        tp_size: int = 1,
    ) -> list[Any]:
        """Read one rank's shard of several tensors to addresses; None for each miss."""
        return self.batch_get_tensor_into(_names(base_keys, tp_rank, tp_size), buffer_ptrs, sizes)

    def _read(self, keys: Sequence[str]) -> list[tuple[str, BufferHandle | None]]:
        return list(zip(keys, self.batch_get_buffer(keys), strict=True))

    def _made(self, key: str, stored: Any) -> Any:
        """Make the tensor of an object's bytes; None without bytes, or if they are not a tensor."""
        if stored is None:
            return None
        try:
            return tensor_in(stored, None)
        except InvalidArgumentError as error:
            self._guard.say(f"tensor: {error}", f"the object under {key!r}: {error}")
            return None


def _names(keys: Sequence[str], rank: int, size: int) -> list[str]:
    return [shard_key(key, rank) if size > 1 else key for key in keys]


def _tensor_bytes(memory: memoryview) -> int | None:
    """Return the length of the tensor, with its header, at an address; None if incomplete."""
    found = parse_header(memory)
    length = 0 if found is None else found[1] + found[0].size_bytes
    return length if 0 < length <= len(memory) else None


def split(tensor: Any, parts: int, dimension: int) -> list[Any]:
    """Split a tensor into equal parts along a dimension.

    Raises:
        InvalidArgumentError: There is no such dimension, or it does not divide evenly.
    """
    shape = tuple(int(size) for size in tensor.shape)
    if parts < 1 or not -len(shape) <= dimension < len(shape):
        raise InvalidArgumentError(
            f"cannot split dimension {dimension} of {shape} into {parts} parts"
        )
    if shape[dimension] % parts:
        raise InvalidArgumentError(f"dimension {dimension} of {shape} is not a multiple of {parts}")
    step = shape[dimension] // parts
    shards = []
    for part in range(parts):
        index = [slice(None)] * len(shape)
        index[dimension] = slice(part * step, (part + 1) * step)
        shards.append(tensor[tuple(index)])
    return shards


def metadata_size() -> int:
    """Return the largest header size in bytes for tensors of up to 8 dimensions."""
    return header_bytes(_USUAL_DIMENSIONS)
