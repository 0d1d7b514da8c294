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
