"""Maps SGLang's page indices to host memory, and moves pages between that and the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvstore.client.store import Store
from kvstore.errors import Status
from kvstore.integrations.registered import Span, memory_of_tensors
from kvstore.integrations.sglang.naming import Ranks, pool_digest

KV = "kv"  # SGLang's name of the model's own pool
FLAT = "flat"  # the same pool with the old interface: pages in SGLang's own byte order


class Pool:
    """One of SGLang's host pools, and the names of its pages' objects.

    A page is one object, gathered from all of its parts in the pool: k and v, or those of every
    layer. It is several objects only where engines with other ranks need its heads separately.
    """

    def __init__(self, name: str, host_pool: Any, ranks: Ranks) -> None:
        """Name a registered pool.

        Args:
            name: SGLang's name of it; "kv" is the model's own.
            host_pool: SGLang's HostKVCache.
            ranks: of this process.
        """
        self.name = name
        self.page_size: int = getattr(host_pool, "page_size", 1) or 1
        # A logical pool only numbers pages: other pools hold what belongs to them.
        self.logical = name == KV and getattr(host_pool, "kv_buffer", "physical") is None
        self._host_pool = host_pool
        self._split = ranks.split if name == KV else 1
        # Decided once: a page moved by address has another byte order, and another key.
        self._addressed = name != FLAT and not self.logical and self._tells_addresses()
        if not self._addressed:
            self._split = 1
        # Even if a model's KV is the same on all ranks, another pool's state or heads may not be.
        own = name in (KV, FLAT)
        apart = not own and (name == "mamba" or hasattr(host_pool, "head_num"))
        sharded = not ranks.replicated or apart
        suffixes = ranks.suffixes(sharded, self._split)
        digest = pool_digest(host_pool, self._split)
        kind = name if self._addressed or name == FLAT else f"{name}-flat"
        self._endings = [f".{kind}.{digest}{suffix}" for suffix in suffixes]

    def memory(self) -> list[Span]:
        """Return address and size of the pool's memory, for RDMA; nothing where it is not known."""
        buffers = getattr(self._host_pool, "kv_buffer", None)
        several: Sequence[Any] = buffers if isinstance(buffers, list | tuple) else [buffers]
        return memory_of_tensors(several)

    @property
    def objects_per_page(self) -> int:
        """Number of keys that `keys` returns per page."""
        return len(self._endings)

    def keys(self, pages: Sequence[str]) -> list[str]:
        """Return the keys of the pages' objects, page by page."""
        return [page + ending for page in pages for ending in self._endings]

    def read(self, store: Store, pages: Sequence[str], indices: Any) -> tuple[list[int], int]:
        """Read pages into the host pool.

        Args:
            store: to read from.
            pages: SGLang's hashes.
            indices: of the tokens in the host pool, `page_size` for each page.

        Returns:
            For each object its size in bytes or a negative status; the total bytes read.

        Raises:
            ValueError: The number of indices does not match the pages.
        """
        self._check(pages, indices)
        keys = self.keys(pages)
        if not self._addressed:
            return self._read_flat(store, keys, indices)
        pointers, sizes = self._places(indices, len(keys))
        return exact(store.batch_get_into_pointers(keys, pointers, sizes), sizes)

    def write(
        self, store: Store, pages: Sequence[str], indices: Any, how: dict[str, Any]
    ) -> tuple[list[Status], list[int]]:
        """Store pages from the host pool.

        Args:
            store: to write to.
            pages: SGLang's hashes.
            indices: of the tokens in the host pool, `page_size` for each page.
            how: keyword arguments of `Store.batch_put_from`.

        Returns:
            A status, and a size in bytes, for each object.

        Raises:
            ValueError: The number of indices does not match the pages.
        """
        self._check(pages, indices)
        keys = self.keys(pages)
        if self._addressed:
            pointers, sizes = self._places(indices, len(keys))
        else:
            starts = [indices[i * self.page_size] for i in range(len(pages))]
            tensors = [on_host(self._host_pool.get_data_page(start)) for start in starts]
            pointers, sizes = spans(tensors)
        return store.batch_put_from(keys, pointers, sizes, **how), [total(size) for size in sizes]

    def _check(self, pages: Sequence[str], indices: Any) -> None:
        if len(indices) != len(pages) * self.page_size:
            raise ValueError(
                f"pool {self.name!r}: {len(pages)} pages of {self.page_size} tokens but "
                f"{len(indices)} indices"
            )

    def _tells_addresses(self) -> bool:
        """Try the first page: a pool without addresses raises various exceptions."""
        try:
            self._places(_first_indices(self.page_size), self._split)
        except Exception:
            return False
        return True

    def _places(self, indices: Any, objects: int) -> tuple[list[Any], list[Any]]:
        """Return addresses and sizes for each object."""
        if self._split > 1:
            found = self._host_pool.get_split_heads_page_buffer_meta(indices, self._split)
        else:
            found = self._host_pool.get_page_buffer_meta(indices)
        pointers, sizes = found
        parts, extra = divmod(len(pointers), objects)
        if extra or not parts or len(sizes) != len(pointers):
            raise ValueError(f"pool {self.name!r}: {len(pointers)} buffers for {objects} objects")
        if parts == 1:
            return pointers, sizes
        firsts = range(0, len(pointers), parts)
        return (
            [pointers[first : first + parts] for first in firsts],
            [sizes[first : first + parts] for first in firsts],
        )

    def _read_flat(self, store: Store, keys: list[str], indices: Any) -> tuple[list[int], int]:
        tensors = [self._host_pool.get_dummy_flat_data_page() for _ in keys]
        pointers, sizes = spans(tensors)
        found, read = exact(store.batch_get_into_pointers(keys, pointers, sizes), sizes)
        for i, size in enumerate(found):
            if size >= 0:
                start = indices[i * self.page_size]
                self._host_pool.set_from_flat_data_page(start, tensors[i])
        return found, read


def _first_indices(page_size: int) -> Any:
    try:
        import torch
    except ImportError:  # then there is no SGLang, either
        return list(range(page_size))
    return torch.arange(page_size)


def on_host(tensor: Any) -> Any:
    """Return the tensor, or a copy, contiguous in host memory."""
    return tensor.detach().cpu().contiguous()


def span(tensor: Any) -> tuple[int, int]:
    """Return address and bytes of a contiguous tensor in host memory.

    Raises:
        ValueError: It is not contiguous, or not in host memory.
    """
    if not tensor.is_contiguous() or tensor.is_cuda:
        raise ValueError("a page must be contiguous in host memory")
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def spans(tensors: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Return the addresses and the sizes of several; as `span`."""
    found = [span(tensor) for tensor in tensors]
    return [pointer for pointer, _ in found], [size for _, size in found]


def total(size: int | Sequence[int]) -> int:
    """Return the bytes of an object from the size or sizes of its parts."""
    return size if isinstance(size, int) else sum(size)


def exact(found: list[int], sizes: Sequence[int | Sequence[int]]) -> tuple[list[int], int]:
    """Reject objects of another size: they are not this page.

    Returns:
        `found`, with BufferTooSmall for each object of another size; the total bytes read.
    """
    wanted = [total(size) for size in sizes]
    checked = [
        int(Status.BufferTooSmall) if 0 <= size != want else size
        for size, want in zip(found, wanted, strict=True)
    ]
    return checked, sum(size for size in checked if size >= 0)
