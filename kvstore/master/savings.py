"""What the cache saved and what losing objects cost, in tokens and seconds of prefill.

A token's size in the store depends on the model, and its time on the engine. Both are told by the
operator; without them there are bytes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kvstore.errors import MissReason

LOST: Final = (
    MissReason.Evicted,
    MissReason.IndexFull,
    MissReason.NodeDown,
    MissReason.Restarting,
    MissReason.Version,
    MissReason.Checksum,
    MissReason.Rebuilding,
    MissReason.IoError,
    MissReason.Unavailable,
)
"""Reasons of misses for which the store answers: it had the object, or could not say."""


@dataclass(frozen=True)
class Rates:
    """What a token is worth; 0: unknown."""

    bytes_per_token: float = 0.0
    prefill_tokens_per_s: float = 0.0


def savings(
    rates: Rates, read_bytes: int, missed: Mapping[str, int], object_bytes: float
) -> dict[str, float | None]:
    """Estimate them.

    Args:
        rates: of the model.
        read_bytes: that were read in place of being computed.
        missed: keys that lookups did not find, by reason.
        object_bytes: mean size of an object: that of a lost one is not known.

    Returns:
        Tokens and seconds, saved and wasted (computed although the store had them once), and the
        bytes behind them; None for what the rates do not tell.
    """
    lost = sum(missed.get(reason.value, 0) for reason in LOST)
    return in_tokens(rates, read_bytes, lost * object_bytes)


def in_tokens(rates: Rates, saved_bytes: float, wasted_bytes: float) -> dict[str, float | None]:
    """Convert bytes, as savings() returns them."""
    tokens = [
        size / rates.bytes_per_token if rates.bytes_per_token > 0 else None
        for size in (saved_bytes, wasted_bytes)
    ]
    speed = rates.prefill_tokens_per_s
    seconds = [one / speed if one is not None and speed > 0 else None for one in tokens]
    return {
        "bytes_per_token": rates.bytes_per_token or None,
        "prefill_tokens_per_s": speed or None,
        "saved_bytes": saved_bytes,
        "saved_tokens": tokens[0],
        "saved_s": seconds[0],
        "wasted_bytes": wasted_bytes,
        "wasted_tokens": tokens[1],
        "wasted_s": seconds[1],
    }
