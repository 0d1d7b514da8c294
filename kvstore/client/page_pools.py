"""PagePool: where the pages of an engine's KV cache lie, so that one object fills all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kvstore.errors import InvalidArgumentError
from kvstore.options import one_of, whole_number

if TYPE_CHECKING:
    from kvstore._native import Grid

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
    page_stride: int = 0
    """Bytes from a page to the next in each buffer; 0: pages follow each other without gaps."""

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
        whole_number("page_stride", self.page_stride, 0, _MAX_NUMBER)
        wanted = self.parts * (self.layers if self.layout == "layer_first" else 1)
        if len(self.buffers) != wanted:
            raise InvalidArgumentError(
                f"buffers has {len(self.buffers)} addresses; a pool with layout "
                f"{self.layout!r}, {self.layers} layers and parts={self.parts} has {wanted}"
            )

        for row, buffer in enumerate(self.buffers):
            whole_number(f"buffers[{row}]", buffer, 0, (1 << 64) - 1)
        dense = self.page_bytes // wanted
        if 0 < self.page_stride < dense:
            raise InvalidArgumentError(
                f"page_stride is {self.page_stride}, but a page has {dense} bytes in each buffer"
            )
        if max(dense, self.page_stride) * self.pages > _MAX_NUMBER:
            raise InvalidArgumentError("pages: no memory holds so many of this size")

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers: the size of its object."""
        return self.parts * self.layers * self.page_tokens * self.token_bytes

    def grid(self) -> Grid:
        """Describe where pieces lie, as the native core takes it."""
        of_layer = self.page_tokens * self.token_bytes
        of_part = self.layers * of_layer
        if self.layout == "layer_first":
            shape = (self.page_stride or of_layer, of_layer, 1, 1)
        elif self.layout == "page_first_direct":
            shape = (self.page_stride or of_part, of_part, 1, 1)
        else:
            # Of a page, the tokens of a layer lie between those of the others.
            shape = (
                self.page_stride or of_part,
                self.token_bytes,
                self.layers,
                self.page_tokens,
            )
        return (self.buffers, *shape, self.pages)

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
        buffers, stride, size, layers, tokens, _ = self.grid()
        starts = [
            buffer + (token * layers + layer) * size
            for buffer in buffers
            for layer in range(layers)
            for token in range(tokens)
        ]
        sizes = [size] * len(starts)
        return [[start + page * stride for start in starts] for page in page_ids], [
            sizes for _ in page_ids
        ]
