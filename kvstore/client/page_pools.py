"""PagePool: where the pages of an engine's KV cache lie, so that one object fills all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvstore.errors import InvalidArgumentError
from kvstore.options import one_of, whole_number

PoolLayout = Literal["layer_first", "page_first", "page_first_direct"]
_LAYOUTS = ("layer_first", "page_first", "page_first_direct")
_MAX_LAYERS = 4096
_MAX_PAGE_TOKENS = 65_536
_MAX_NUMBER = 1 << 62


@dataclass(frozen=True)
class PagePool:
    """A pool of KV pages in memory, in one of the layouts that engines use.

    An object of a page is the same for every layout: the keys of all layers, each with the page's
    tokens in order, then the values of all layers likewise. So a page that was put from a pool of
    one layout can be read into a pool of another.

    ===================  ==============================================  =======================
    layout               each part (keys, values) of the pool            buffers
    ===================  ==============================================  =======================
    layer_first          a buffer per layer: [page][token]               one per part and layer:
                                                                         all of a part together
    page_first           one buffer: [page][token][layer]                one per part
    page_first_direct    one buffer: [page][layer][token]                one per part
    ===================  ==============================================  =======================
    """

    layout: PoolLayout
    buffers: Sequence[int]
    """Addresses of the buffers, in the order of the table."""
    layers: int
    pages: int
    page_tokens: int
    token_bytes: int
    """Bytes of one token in one layer of one part: heads * head size * bytes of an element."""
    parts: int = 2
    """2: keys and values (MHA, GQA); 1: a joint latent (MLA)."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidArgumentError: One of them is wrong, or they do not agree.
        """
        one_of("layout", self.layout, _LAYOUTS)
        whole_number("layers", self.layers, 1, _MAX_LAYERS)
        whole_number("pages", self.pages, 1, _MAX_NUMBER)
        whole_number("page_tokens", self.page_tokens, 1, _MAX_PAGE_TOKENS)
        whole_number("token_bytes", self.token_bytes, 1, _MAX_NUMBER)
        whole_number("parts", self.parts, 1, 2)
        wanted = self.parts * (self.layers if self.layout == "layer_first" else 1)
        if len(self.buffers) != wanted:
            raise InvalidArgumentError(
                f"buffers has {len(self.buffers)} addresses; a pool with layout "
                f"{self.layout!r}, {self.layers} layers and parts={self.parts} has {wanted}"
            )

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers: the size of its object."""
        return self.parts * self.layers * self.page_tokens * self.token_bytes

    def pieces(self, page_ids: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """Find where pages lie.

        Args:
            page_ids: positions of pages in the pool.

        Returns:
            Addresses of each page's pieces in the order of its object, and their sizes.

        Raises:
            InvalidArgumentError: A page is not in the pool.
        """
        for row, page in enumerate(page_ids):
            whole_number(f"page_ids[{row}]", page, 0, self.pages - 1)
        of_layer = self.page_tokens * self.token_bytes
        of_part = self.layers * of_layer
        if self.layout == "layer_first":
            starts, stride, size = self.buffers, of_layer, of_layer
        elif self.layout == "page_first_direct":
            starts, stride, size = self.buffers, of_part, of_part
        else:
            # Of a page, the tokens of a layer lie between those of the others.
            starts = [
                buffer + (token * self.layers + layer) * self.token_bytes
                for buffer in self.buffers
                for layer in range(self.layers)
                for token in range(self.page_tokens)
            ]
            stride, size = of_part, self.token_bytes
        sizes = [size] * len(starts)
        return [[start + page * stride for start in starts] for page in page_ids], [
            sizes for _ in page_ids
        ]
