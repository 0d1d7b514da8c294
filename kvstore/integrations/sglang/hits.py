"""Prefixes at which a request can be resumed when a model has several pools of pages."""

from __future__ import annotations

from collections.abc import Sequence

# SGLang's PoolHitPolicy, by value; BLOCK_GROUPS never affects a hit and is ignored here.
ALL_PAGES = "all_pages"
TRAILING_PAGES = "trailing_pages"
BLOCK_GROUPS = "block_groups"


def resumable(policy: str, window: int, present: Sequence[bool]) -> list[int]:
    """List the prefix lengths at which one pool has all required pages.

    Args:
        policy: ALL_PAGES: every page of the prefix. TRAILING_PAGES: its last `window` pages (the
            state of a Mamba layer, a sliding window); such prefixes may have holes between them.
        window: pages that count at the end, 1 or more; a shorter prefix needs all of its pages.
        present: for each page of the longest prefix whether the pool has it.

    Returns:
        The lengths in pages, ascending, without 0; none for an unknown policy.
    """
    if policy == ALL_PAGES:
        window = len(present)
    elif policy != TRAILING_PAGES:
        return []
    lengths = []
    run = 0  # pages present without a gap, up to here
    for length, here in enumerate(present, start=1):
        run = run + 1 if here else 0
        if run >= min(window, length):
            lengths.append(length)
    return lengths
