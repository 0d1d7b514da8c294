"""Why a read found nothing, where it is easily mistaken for a hit or for something else."""

from __future__ import annotations

import kvstore
from kvstore import MissReason, Status


def test_a_buffer_that_is_too_short_is_no_hit(store: kvstore.Store) -> None:
    assert store.batch_put(["a", "b"], [b"12345", b"67"]) == [Status.Ok] * 2
    buffers = [bytearray(2), bytearray(2)]
    reasons: list[MissReason] = []
    sizes = store.batch_get_into(["a", "b"], buffers, reasons=reasons)
    assert sizes == [int(Status.BufferTooSmall), 2]
    assert reasons == [MissReason.BufferTooSmall, MissReason.None_]


def test_an_eviction_for_want_of_index_entries_says_so(store: kvstore.Store) -> None:
    count = 2 * 1024
    keys = [f"small/{i}" for i in range(count)]
    while store.stats()["evictions"] == 0:
        assert store.batch_put(keys, [b"x" * 64] * count) == [Status.Ok] * count
        keys = [f"{key}+" for key in keys]
        if len(keys[0]) > 60:
            break
    counters = store.stats()["node"]
    assert counters["index_evictions"] == counters["evictions"] > 0
    first = [f"small/{i}" for i in range(count)]
    reasons: list[MissReason] = []
    store.batch_get(first, reasons=reasons)
    assert MissReason.IndexFull in reasons and MissReason.Evicted not in reasons
