"""Pages of SGLang's host pools that tell whose they are: bytes of their hash, pool and rank."""

from __future__ import annotations

import zlib
from typing import Any

import torch

PAGE = 16  # tokens
PAGES = 64  # of the device pool; the host pool has twice as many
LAYERS = 2


def tokens_of(chain: str, pages: int) -> list[int]:
    """Return the tokens of a chain's first pages."""
    first = zlib.crc32(chain.encode()) % 100_000
    return list(range(first, first + pages * PAGE))


class Pages:
    """What must lie, and what lies, in one host pool."""

    def __init__(
        self, name: str, host_pool: Any, rank: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        """`share` says which of how many equal groups of heads lie here (layout page_head)."""
        self.name = name
        self.host_pool = host_pool
        self.rank = rank
        self.share = share

    def wanted(self, page_hash: str) -> torch.Tensor:
        """Return what a page must hold."""
        like = self.host_pool.get_dummy_flat_data_page()
        seed = int(page_hash[:14], 16) ^ zlib.crc32(self.name.encode()) ^ (self.rank << 40)
        group, groups = self.share
        size = like.numel() * like.element_size() * groups
        drawn = torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(seed))
        own = drawn.to(torch.uint8).reshape(2, groups, -1)[:, group] if groups > 1 else drawn
        return own.to(torch.uint8).reshape(-1).view(like.dtype).reshape(like.shape)

    @property
    def page_bytes(self) -> int:
        return int(self.wanted("0" * 64).view(torch.uint8).numel())

    def fill(self, indices: torch.Tensor, hashes: list[str]) -> None:
        """Put what they must hold into the pages at the given tokens."""
        for start, page_hash in zip(self._starts(indices), hashes, strict=True):
            self.host_pool.set_from_flat_data_page(start, self.wanted(page_hash))

    def poison(self, indices: torch.Tensor) -> None:
        """Make sure that no page is right because it was there before."""
        for start in self._starts(indices):
            empty = self.host_pool.get_dummy_flat_data_page()
            self.host_pool.set_from_flat_data_page(start, torch.zeros_like(empty))

    def same(self, indices: torch.Tensor, hashes: list[str]) -> int:
        """Count the pages that hold what they must."""
        count = 0
        for start, page_hash in zip(self._starts(indices), hashes, strict=False):
            here = self.host_pool.get_data_page(start).contiguous()
            want = self.wanted(page_hash)
            count += torch.equal(here.view(torch.uint8), want.view(torch.uint8))
        return count

    def _starts(self, indices: torch.Tensor) -> list[int]:
        return [int(start) for start in indices[:: self.host_pool.page_size]]
