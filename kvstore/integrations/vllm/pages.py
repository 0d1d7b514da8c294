"""From tokens and block tables to keys, and from a layer's tensor to a block's addresses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

NULL_BLOCK = 0  # vLLM's null block: stands for tokens outside a sliding window


@dataclass(frozen=True)
class Blocks:
    """Blocks of a request in the order of its tokens; one row of each list per block."""

    names: list[str]
    """Keys of their objects, without the rank."""
    groups: list[int]
    indexes: list[int]
    """Positions in the group's block table."""
    ids: list[int]
    """Block ids in the KV cache."""

    def __len__(self) -> int:
        """Return how many blocks these are."""
        return len(self.ids)

    def keys(self, rank: int) -> list[str]:
        """Return the keys of one rank's objects; each rank has its own heads or layers."""
        return [f"{name}-r{rank}" for name in self.names]


@dataclass(frozen=True)
class Pages:
    """How tokens are divided into pages: the fewest tokens that fill whole blocks of every group.

    With one group of layers a page is a block. In a hybrid model (for example full attention and
    sliding windows) groups have blocks of different sizes, and a page consists of several blocks of
    each. Every block is one object per rank, named by the hash of all tokens up to its end.
    """

    tokens: int
    hash_tokens: int
    """Number of tokens per hash of vLLM."""
    groups: tuple[tuple[int, int], ...]
    """(index of the group in vLLM's list, tokens of its block)."""
    ranks: int

    @property
    def blocks_each(self) -> int:
        """Number of blocks per page."""
        return sum(self.tokens // tokens for _, tokens in self.groups)

    @property
    def objects(self) -> int:
        """Number of objects per page: the stride of its lookup."""
        return self.ranks * self.blocks_each

    def whole(self, tokens: int) -> int:
        """Return the number of pages that `tokens` tokens fill."""
        return tokens // self.tokens

    def lookup_keys(self, hashes: Sequence[bytes], first: int, last: int) -> list[str]:
        """Return the keys of pages [first, last), of all groups and ranks."""
        return [
            f"{name}-r{rank}"
            for _, _, name in self._blocks(hashes, first, last)
            for rank in range(self.ranks)
        ]

    def blocks(
        self, hashes: Sequence[bytes], first: int, last: int, tables: Sequence[Sequence[int]]
    ) -> Blocks:
        """Find the blocks of pages [first, last) in a request's block tables.

        Args:
            hashes: the request's block hashes.
            first: the first page.
            last: the page after the last.
            tables: block ids of each of vLLM's groups.

        Returns:
            The existing blocks: those outside a sliding window are left out.
        """
        found = Blocks([], [], [], [])
        for group, index, name in self._blocks(hashes, first, last):
            block = tables[group][index] if index < len(tables[group]) else NULL_BLOCK
            if block != NULL_BLOCK:
                found.names.append(name)
                found.groups.append(group)
                found.indexes.append(index)
                found.ids.append(block)
        return found

    def _blocks(
        self, hashes: Sequence[bytes], first: int, last: int
    ) -> Iterator[tuple[int, int, str]]:
        """Yield group, index in its block table and name, page by page."""
        for page in range(first, last):
            for group, tokens in self.groups:
                each = self.tokens // tokens
                for index in range(page * each, (page + 1) * each):
                    end = (index + 1) * tokens
                    yield group, index, f"{hashes[end // self.hash_tokens - 1].hex()}-g{group}"


@dataclass(frozen=True)
class Region:
    """Bytes at a fixed position of every block: block `b` is at address + b * stride."""

    address: int
    stride: int
    size: int


def spans(regions: Mapping[int, Sequence[Region]], blocks: int) -> list[tuple[int, int]]:
    """Return address and size of the memory of all blocks, for each region of each group."""
    return [
        (one.address, (blocks - 1) * one.stride + one.size)
        for of_group in regions.values()
        for one in of_group
    ]


def regions_of(
    address: int, shape: Sequence[int], strides: Sequence[int], item_size: int, blocks: int
) -> list[Region]:
    """Find a block's bytes in a layer's tensor.

    Args:
        address: of the tensor's first element.
        shape: its first dimension counts the blocks, or equal parts of them.
        strides: in elements, any order of dimensions, gaps allowed.
        item_size: bytes of an element.
        blocks: number of blocks of the KV cache.

    Returns:
        Regions in the order of the dimensions' strides, largest first: the same bytes in the same
        order wherever `layout_of` is the same.

    Raises:
        ValueError: The first dimension is not a multiple of the number of blocks.
    """
    parts, odd = divmod(shape[0], blocks)
    if odd or not parts:
        raise ValueError(f"a tensor of shape {tuple(shape)} does not consist of {blocks} blocks")
    inner = [(strides[0], parts), *zip(strides[1:], shape[1:], strict=True)]
    inner = sorted((stride * item_size, size) for stride, size in inner if size > 1)
    dense = item_size
    while inner and inner[0][0] == dense:
        dense *= inner.pop(0)[1]
    steps = [[stride * i for i in range(size)] for stride, size in reversed(inner)]
    stride = strides[0] * item_size * parts
    return [Region(address + sum(at), stride, dense) for at in itertools.product(*steps)]


def joined(regions: Sequence[Region]) -> list[Region]:
    """Join regions that are adjacent in every block, for fewer and longer copies."""
    found: list[Region] = []
    for one in regions:
        if found:
            before = found[-1]
            if before.stride == one.stride and before.address + before.size == one.address:
                found[-1] = Region(before.address, before.stride, before.size + one.size)
                continue
        found.append(one)
    return found


def layout_of(shape: Sequence[int], strides: Sequence[int], dtype: str, blocks: int) -> str:
    """Describe the byte order of a block, for the namespace."""
    inner = (shape[0] // blocks, *shape[1:])  # the first dimension counts parts of one block
    order = sorted((d for d, size in enumerate(inner) if size > 1), key=lambda d: -strides[d])
    return f"{dtype} {'x'.join(map(str, inner))} order {order}"
