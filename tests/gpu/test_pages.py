"""Pages of a KV cache: one object fills all layers, and is the same for every layout."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy
import pytest

import kvstore
from kvstore import MissReason, PagePool, Status
from tests.gpu.fake_cuda import DeviceArray, FakeCuda

LAYERS, PAGES, TOKENS, TOKEN_BYTES = 3, 5, 4, 24
LAYOUTS = ("layer_first", "page_first", "page_first_direct")
# From [part][page][layer][token][byte] to the order of each layout's buffers.
AXES = {
    "layer_first": (0, 2, 1, 3, 4),
    "page_first": (0, 1, 3, 2, 4),
    "page_first_direct": (0, 1, 2, 3, 4),
}


class Pool:
    """A pool on the device, and what should be in it."""

    def __init__(self, cuda: FakeCuda, layout: Any, parts: int, seed: int = 0) -> None:
        shape = (parts, PAGES, LAYERS, TOKENS, TOKEN_BYTES)
        self.wanted = numpy.random.default_rng(seed).integers(0, 256, shape, dtype="uint8")
        if seed == 0:
            self.wanted[:] = 0
        self._axes = AXES[layout]
        self.array: DeviceArray = cuda.array(self.wanted.nbytes).write(self._in_order())
        count = parts * (LAYERS if layout == "layer_first" else 1)
        each = self.wanted.nbytes // count
        buffers = [self.array.pointer + i * each for i in range(count)]
        self.pool = PagePool(layout, buffers, LAYERS, PAGES, TOKENS, TOKEN_BYTES, parts)

    def _in_order(self) -> bytes:
        return bytes(self.wanted.transpose(self._axes).tobytes())

    def check(self) -> None:
        assert self.array.content() == self._in_order()


@pytest.mark.parametrize("parts", [2, 1], ids=["mha", "mla"])
@pytest.mark.parametrize(("source", "target"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_from_any_layout_to_any(
    store: kvstore.Store, cuda: FakeCuda, source: str, target: str, parts: int
) -> None:
    there = Pool(cuda, source, parts, seed=7)
    keys = [f"page{page}" for page in range(PAGES)]
    stream = cuda.stream()
    put = store.batch_put_from_pages(keys, there.pool, range(PAGES), parent="root", stream=stream)
    assert put == [Status.Ok] * PAGES
    here = Pool(cuda, target, parts)
    pages = random.Random(3).sample(range(PAGES), PAGES)
    transfer = store.batch_get_into_pages(keys, here.pool, pages, stream=stream)
    assert transfer.result(10_000) == [there.pool.page_bytes] * PAGES
    here.wanted[:, pages] = there.wanted
    here.check()


def test_a_page_that_is_missing_changes_no_other(store: kvstore.Store, cuda: FakeCuda) -> None:
    there = Pool(cuda, "layer_first", 2, seed=7)
    assert all(store.batch_put_from_pages(["a", "c"], there.pool, [0, 2]))
    here = Pool(cuda, "layer_first", 2)
    reasons: list[MissReason] = []
    found = store.batch_get_into_pages(["a", "b", "c"], here.pool, [4, 3, 2], reasons=reasons)
    assert found == [there.pool.page_bytes, Status.NotFound, there.pool.page_bytes]
    assert reasons == [MissReason.None_, MissReason.Absent, MissReason.None_]
    here.wanted[:, [4, 2]] = there.wanted[:, [0, 2]]
    here.check()


def test_pools_in_host_memory(store: kvstore.Store, cuda: FakeCuda) -> None:
    there = Pool(cuda, "page_first_direct", 2, seed=7)
    assert all(store.batch_put_from_pages(["a"], there.pool, [1]))
    out = numpy.zeros(there.wanted.shape, "uint8")
    half = out.nbytes // 2
    buffers = [out.ctypes.data, out.ctypes.data + half]
    pool = PagePool("page_first_direct", buffers, LAYERS, PAGES, TOKENS, TOKEN_BYTES)
    assert store.batch_get_into_pages(["a"], pool, [3], memory="host") == [pool.page_bytes]
    assert (out[:, 3] == there.wanted[:, 1]).all()
    assert not out[:, [0, 1, 2, 4]].any()
    assert store.batch_put_from_pages(["b"], pool, [3], memory="host") == [Status.Ok]
    assert store.get("b") == store.get("a")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"layout": "token_first"}, "layout must be"),
        ({"layers": 0}, "layers"),
        ({"buffers": [1]}, "buffers has 1 addresses"),
        ({"parts": 3}, "parts"),
        ({"token_bytes": "8"}, "token_bytes"),
    ],
)
def test_wrong_pools(wrong: dict[str, Any], says: str) -> None:
    right: dict[str, Any] = {
        "layout": "page_first",
        "buffers": [1 << 20, 2 << 20],
        "layers": 2,
        "pages": 4,
        "page_tokens": 1,
        "token_bytes": 8,
    }
    with pytest.raises(kvstore.InvalidArgumentError, match=says):
        PagePool(**{**right, **wrong})


@pytest.mark.parametrize("page", [-1, 4, "0", None])
def test_pages_that_are_not_in_the_pool(page: Any) -> None:
    pool = PagePool("page_first", [1 << 20, 2 << 20], 2, 4, 1, 8)
    with pytest.raises(kvstore.InvalidArgumentError, match=r"page_ids\[1\]"):
        pool.pieces([0, page])
