"""Hit rates at other sizes, from how often each reuse distance occurs.

The curve comes from a sample (native/src/master/reuse_curve.h). What the sample misses, mostly uses
of a few very hot keys, is known from the exact counts of all uses, and the error that is left is
nearly the same at every size: so changes are added to the hit rate that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEP_BITS = 5  # a bucket is a 16th of its power of two wide
_ERROR_OF_ONE_KEY = 1.2
"""Two standard deviations of a hit rate, times the root of the number of sampled keys (Source:
measured on the Mooncake conversation trace with 8 samples of 12,000 and of 23,000 keys)."""
_FEW_KEYS = 1000
_MUCH_LOST = 0.02
_MUCH_OFF = 0.05


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Uses by reuse distance, and what was measured meanwhile."""

    buckets: Sequence[tuple[int, float]]
    """(upper bound of the distance in bytes, uses), ascending."""
    cold: float
    hits: float
    puts: float
    lost: float
    keys: int
    """Sampled ones."""

    @property
    def uses(self) -> float:
        """Return the number of uses, each a read or a put."""
        return self.hits + self.puts

    @property
    def measured(self) -> float:
        """Return the share of uses that were reads."""
        return self.hits / self.uses if self.uses else 0.0

    @property
    def longest_bytes(self) -> int:
        """Return the longest distance that was seen."""
        return self.buckets[-1][0] if self.buckets else 0

    @property
    def error(self) -> float:
        """Return what sampling alone may put a hit rate off by, about."""
        return min(1.0, _ERROR_OF_ONE_KEY / math.sqrt(self.keys)) if self.keys else 1.0

    def estimate(self, size_bytes: int) -> float:
        """Return the hit rate of a cache of this size, from the sample alone."""
        if not self.uses:
            return 0.0
        seen = self.cold + sum(uses for _, uses in self.buckets)
        # What the sample lacks or has too much of are uses of hot keys, which any size finds.
        found = self.uses - seen if size_bytes else 0.0
        for upto, uses in self.buckets:
            width = 1 << max(0, upto.bit_length() - _STEP_BITS)
            found += uses * min(1.0, max(0.0, (size_bytes - (upto - width)) / width))
        return min(1.0, max(0.0, found / self.uses))

    def hit_rate(self, size_bytes: int, today_bytes: int) -> float:
        """Return the hit rate of a cache of this size, beside what was measured with today's."""
        change = self.estimate(size_bytes) - self.estimate(today_bytes)
        return min(1.0, max(0.0, self.measured + change))

    def doubts(self, today_bytes: int, sizes: Sequence[int]) -> list[str]:
        """Say what the estimates for these sizes do not rest on."""
        if not self.uses:
            return ["no use was reported yet: run a workload first"]
        found = []
        if self.keys < _FEW_KEYS:
            found.append(f"only {self.keys:,} keys are sampled: hit rates are rough")
        if sizes and max(sizes) > self.longest_bytes:
            found.append(
                "beyond the longest distance seen so far, more memory changes nothing: longer ones "
                "may come with time"
            )
        if self.lost > _MUCH_LOST * (self.uses + self.lost):
            share = self.lost / (self.uses + self.lost)
            found.append(
                f"{share:.0%} of the uses were reads too fast to be seen: hit rates are higher"
            )
        off = self.estimate(today_bytes) - self.measured
        if today_bytes and abs(off) > _MUCH_OFF:
            found.append(
                f"at today's size the curve says {self.estimate(today_bytes):.2f}, measured was "
                f"{self.measured:.2f}: the size has changed meanwhile, nodes are filled unevenly, "
                "or objects go by other ways than eviction"
            )
        return found
