"""Bytes of the objects that an engine stores, and the memory, index and disk that they need."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvstore.errors import InvalidArgumentError
from kvstore.planning.model import ModelShape

ENGINES = ("sglang", "vllm", "lmcache")

FILL = 0.95
"""Share of a segment that pages fill (Source: the allocator's tests of page mixes)."""
BLOCK_STEP = 64
INDEX_BYTES_PER_ENTRY = 3277
"""Bytes of the segment for each entry that the index has from the start."""
INDEX_ENTRY_BYTES = 200
INDEX_SHARE = 1 / 16
"""The index beside a segment, as a share of it; twice while a restart builds the new one."""
_INDEX_LEAST_BYTES = 6 << 20
NVME_FILL = 0.9
"""Share of `nvme_size` with objects: of 32 log files or more, some are kept free."""
_NVME_HEAD_BYTES = 112
_NVME_KEY_BYTES = 100
"""Of an engine's key, about."""
_NVME_STEP = 64
_NVME_MEMORY_BYTES = (24 << 20) + (256 << 20)
_NVME_ENTRY_BYTES = 40
_STEP = 1 << 20  # of the sizes in a configuration


@dataclass(frozen=True)
class PageObject:
    """One of the objects of a page."""

    what: str
    """What it holds, such as "full attention, rank 0 to 7"."""
    count: int
    """How many of this size a page has, all ranks."""
    size_bytes: int
    formula: str


@dataclass(frozen=True, kw_only=True)
class Pages:
    """What one page of tokens is in the store."""

    engine: str
    tp: int
    page_tokens: int
    token_bytes: int
    """Of the model, without copies: what one token leaves in all layers."""
    token_formula: str
    objects: tuple[PageObject, ...]
    copies: int
    """How often the store holds the same head: 1, or more where ranks outnumber the heads."""

    @property
    def page_bytes(self) -> int:
        """Return the bytes of a page, all objects."""
        return sum(one.count * one.size_bytes for one in self.objects)

    @property
    def block_bytes(self) -> int:
        """Return the bytes of segment that a page takes."""
        return sum(one.count * _up(one.size_bytes, BLOCK_STEP) for one in self.objects)

    @property
    def object_count(self) -> int:
        """Return the number of objects of a page."""
        return sum(one.count for one in self.objects)

    @property
    def record_bytes(self) -> int:
        """Return the bytes on NVMe that a page takes."""
        head = _up(_NVME_HEAD_BYTES + _NVME_KEY_BYTES, _NVME_STEP)
        return sum(one.count * (head + _up(one.size_bytes, _NVME_STEP)) for one in self.objects)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a node needs for a number of pages."""

    pages: int
    objects: int
    tokens: int
    data_bytes: int
    segment_bytes: int
    index_entries: int
    """That the index has for such a segment, from the start."""
    index_bytes: int
    shm_bytes: int
    """Of `segment_dir`: the segment, and two indexes while a restart builds the new one."""
    nvme_bytes: int
    nvme_memory_bytes: int


def pages_of(shape: ModelShape, engine: str, tp: int, page_tokens: int) -> Pages:
    """Return the objects of a page.

    Args:
        shape: of the model's cache.
        engine: one of ENGINES; the integrations of kvstore divide a page differently.
        tp: tensor-parallel ranks.
        page_tokens: tokens of a page, block or chunk.

    Raises:
        InvalidArgumentError: The heads cannot be spread over the ranks.
    """
    heads, copies, writers = _heads_of_rank(shape, engine, tp)
    groups = _groups(shape) if engine == "vllm" else [(shape.layers, "all layers")]
    numbers = shape.head_token_numbers
    per_token = f"{numbers} x {shape.item_bytes} B"
    if not shape.latent_dim:
        per_token = f"{heads} heads x 2 x {shape.head_dim} x {shape.item_bytes} B"
    objects: dict[tuple[int, str], PageObject] = {}
    for layers, what in groups:
        size = page_tokens * layers * heads * numbers * shape.item_bytes
        before = objects.get((size, what))
        count = writers + (before.count if before else 0)
        formula = f"{page_tokens} tokens x {layers} layers x {per_token}"
        objects[size, what] = PageObject(what, count, size, formula)
    token_bytes = shape.layers * shape.layer_token_bytes
    return Pages(
        engine=engine,
        tp=tp,
        page_tokens=page_tokens,
        token_bytes=token_bytes,
        token_formula=_token_formula(shape),
        objects=tuple(objects.values()),
        copies=copies,
    )


def _token_formula(shape: ModelShape) -> str:
    if shape.latent_dim:
        return (
            f"{shape.layers} layers x {shape.latent_dim} (kv_lora_rank + qk_rope_head_dim) x "
            f"{shape.item_bytes} B"
        )
    return (
        f"{shape.layers} layers x 2 (key, value) x {shape.kv_heads} KV heads x {shape.head_dim} x "
        f"{shape.item_bytes} B"
    )


def _heads_of_rank(shape: ModelShape, engine: str, tp: int) -> tuple[int, int, int]:
    """Return the heads in an object, the copies of each, and the ranks that write."""
    if shape.latent_dim:
        return 1, 1, 1  # the same on every rank: one of them writes
    heads = shape.kv_heads
    if heads % tp and tp % heads:
        raise InvalidArgumentError(
            f"--tp {tp}: {heads} KV heads cannot be spread evenly; use a divisor or a multiple of "
            f"{heads}"
        )
    if heads >= tp:
        return heads // tp, 1, tp
    # Each head lies on several ranks. vLLM's ranks with equal heads share an object.
    return (1, 1, heads) if engine == "vllm" else (1, tp // heads, tp)


def _groups(shape: ModelShape) -> list[tuple[int, str]]:
    """Divide the layers into groups with blocks of their own, as vLLM does.

    Source: kv_cache_utils of vLLM: groups are as large as the rarer kind of layer, unless the other
    one is less than a quarter larger; the layers of a kind are dealt out over its groups.
    """
    full, sliding = shape.full_layers, shape.sliding_layers
    if not full or not sliding:
        return [(shape.layers, "all layers")]
    least, most = sorted((full, sliding))
    size = most if most < 1.25 * least else least
    found = []
    for layers, what in ((full, "full attention"), (sliding, "sliding window")):
        count = math.ceil(layers / size)
        found += [(math.ceil((layers - i) / count), what) for i in range(count)]
    return found


def session_pages(pages: Pages, tokens: int) -> int:
    """Return the pages of a session: a page that is not full is not stored."""
    return tokens // pages.page_tokens


def plan_pages(pages: Pages, count: int) -> Plan:
    """Return what `count` pages need."""
    segment = _up(math.ceil(count * pages.block_bytes / FILL), _STEP)
    return _plan(pages, count, segment)


def plan_segment(pages: Pages, segment_bytes: int) -> Plan:
    """Return what fits into a segment."""
    return _plan(pages, int(segment_bytes * FILL) // pages.block_bytes, segment_bytes)


def _plan(pages: Pages, count: int, segment_bytes: int) -> Plan:
    objects = count * pages.object_count
    index = max(math.ceil(segment_bytes * INDEX_SHARE), _INDEX_LEAST_BYTES)
    entries = max(segment_bytes // INDEX_BYTES_PER_ENTRY, 1024)
    index += max(0, objects - entries) * INDEX_ENTRY_BYTES
    return Plan(
        pages=count,
        objects=objects,
        tokens=count * pages.page_tokens,
        data_bytes=count * pages.page_bytes,
        segment_bytes=segment_bytes,
        index_entries=entries,
        index_bytes=index,
        shm_bytes=segment_bytes + 2 * index,
        nvme_bytes=_up(math.ceil(count * pages.record_bytes / NVME_FILL), _STEP),
        nvme_memory_bytes=_NVME_MEMORY_BYTES + objects * _NVME_ENTRY_BYTES,
    )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
