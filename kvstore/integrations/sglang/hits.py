"""Which prefixes a request can be resumed at, when a model keeps its pages in several pools."""

from __future__ import annotations

from collections.abc import Sequence

# SGLang's PoolHitPolicy, by value; BLOCK_GROUPS never gates a hit, so it has no part in this.
ALL_PAGES = "all_pages"
TRAILING_PAGES = "trailing_pages"
BLOCK_GROUPS = "block_groups"


def resumable(policy: str, window: int, present: Sequence[bool]) -> list[int]:
    """Say at which prefix lengths one pool has what it needs.

    Args:
        policy: ALL_PAGES: every page of the prefix. TRAILING_PAGES: its last `window` pages (the
            state of a Mamba layer, a sliding window); such prefixes may have holes between them.
        window: pages that count at the end, 1 or more; a shorter prefix needs all of its pages.
        present: for each page of the longest prefix in question whether the pool has it.

    Returns:
        The lengths, in pages, ascending, without 0. None at all for a policy that is not known.
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
