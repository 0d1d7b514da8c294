"""Self-verifying payloads: a block's bytes are derived from its id and position."""

from __future__ import annotations

import hashlib

# Prime, so that no page-sized shift maps a block onto itself.
_UNIT_BYTES = 4093


def payload(block_id: int, size_bytes: int) -> bytes:
    """Return the `size_bytes` bytes of block `block_id`, which no other block has.

    Args:
        block_id: The trace's hash id.
        size_bytes: Length of the block.
    """
    unit = hashlib.shake_128(b"kvstore-replay-%d" % block_id).digest(_UNIT_BYTES)
    return (unit * (size_bytes // _UNIT_BYTES + 1))[:size_bytes]


def key(block_id: int, block_bytes: int) -> str:
    """Return the key of a block; the size is part of it, so that two replays never collide."""
    return f"replay/{block_bytes}/{block_id}"
