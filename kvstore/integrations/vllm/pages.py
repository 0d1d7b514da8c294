"""From tokens and block tables to keys, and from a layer's tensor to a block's addresses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NULL_BLOCK = 0  # vLLM's: stands for tokens that a sliding window has left


@dataclass(frozen=True)
class Blocks:
    """Blocks of a request in the order of its tokens; one row of each list a block."""

    names: list[str]
    """Of their objects, without the rank."""
    groups: list[int]
    indexes: list[int]
    """Their places in the group's block table."""
    ids: list[int]
    """Of the blocks in the KV cache."""

    def __len__(self) -> int:
        """Return how many blocks these are."""
        return len(self.ids)

    def keys(self, rank: int) -> list[str]:
        """Return the objects' keys of one rank, which has its own heads or layers."""
        return [f"{name}-r{rank}" for name in self.names]


@dataclass(frozen=True)
class Pages:
    """How tokens are cut into pages: the fewest that are whole blocks of every group of layers.

    With one group of layers a page is a block. In a hybrid model (full attention beside sliding
    windows, say) groups have blocks of different sizes, and a page is some blocks of each. Every
    block is an object of each rank, named by the hash of all tokens up to its end.
    """

    tokens: int
    hash_tokens: int
    """vLLM hashes a request's tokens every so many."""
    groups: tuple[tuple[int, int], ...]
    """(index of the group in vLLM's list, tokens of its block)."""
    ranks: int

    @property
    def blocks_each(self) -> int:
        """How many blocks a page is."""
        return sum(self.tokens // tokens for _, tokens in self.groups)

    @property
    def objects(self) -> int:
        """How many objects a page is: the stride of its lookup."""
        return self.ranks * self.blocks_each

    def whole(self, tokens: int) -> int:
        """Return how many pages so many tokens fill."""
        return tokens // self.tokens

    def lookup_keys(self, hashes: Sequence[bytes], first: int, last: int) -> list[str]:
        """Return the keys of pages `first` to before `last`, of all groups and ranks."""
        return [
            f"{name}-r{rank}"
            for _, _, name in self._blocks(hashes, first, last)
            for rank in range(self.ranks)
        ]

    def blocks(
        self, hashes: Sequence[bytes], first: int, last: int, tables: Sequence[Sequence[int]]
    ) -> Blocks:
        """Find the blocks of pages `first` to before `last` in a request's block tables.

        Args:
            hashes: the request's block hashes.
            first: page.
            last: page.
            tables: block ids of each of vLLM's groups.

        Returns:
            The blocks that exist: those of tokens beyond a sliding window are left out.
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
    """Bytes that every block has at a fixed place: block `b` at address + b * stride."""

    address: int
    stride: int
    size: int


def regions_of(
    address: int, shape: Sequence[int], strides: Sequence[int], item_size: int, blocks: int
) -> list[Region]:
    """Find where a block's bytes lie in a layer's tensor.

    Args:
        address: of the tensor's first element.
        shape: its first dimension counts the blocks, or equal parts of them.
        strides: in elements, any order of dimensions, gaps allowed.
        item_size: bytes of an element.
        blocks: how many blocks the KV cache has.

    Returns:
        Regions in the order of the dimensions' strides, largest first: the same bytes in the same
        order wherever `layout_of` is the same.

    Raises:
        ValueError: The first dimension is no multiple of the blocks.
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
    """Join regions that follow each other in every block: fewer and longer copies."""
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
    """Describe the order of a block's bytes, for the namespace."""
    inner = (shape[0] // blocks, *shape[1:])  # the first dimension counts parts of one block
    order = sorted((d for d, size in enumerate(inner) if size > 1), key=lambda d: -strides[d])
    return f"{dtype} {'x'.join(map(str, inner))} order {order}"
