"""Which prefixes are read most, from what the nodes report with their heartbeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kvstore import _native, clock
from kvstore._proto import node_pb2
from kvstore.scopes import LISTING
from kvstore.security import Principal

HALF_LIFE_MS: Final = 120_000
"""A read of this age counts half: rates are those of the last few minutes."""
MOST: Final = 50
"""Prefixes of an answer."""


class HotPrefixes:
    """The native sketch, fed by heartbeats."""

    def __init__(self) -> None:
        """Begin without any read."""
        self._sketch = _native.HotPrefixes(half_life_ms=HALF_LIFE_MS)

    def note(self, reported: Sequence[node_pb2.PrefixUse]) -> None:
        """Take what a heartbeat reports.

        Raises:
            InvalidArgumentError: It is too much, or names what cannot be.
        """
        if not reported:
            return
        rows = [
            (one.namespace.tenant, one.namespace.name, one.key, one.reads, one.bytes)
            for one in reported
        ]
        self._sketch.note(rows, clock.monotonic_ms())

    def top(self, principal: Principal) -> dict[str, Any]:
        """Return the most read prefixes of the tenants whose keys a principal may list."""
        found = self._sketch.summary(clock.monotonic_ms())
        rows = [row for row in found["rows"] if principal.may(row[0], LISTING)][:MOST]
        return {
            "half_life_ms": HALF_LIFE_MS,
            "prefixes": [
                {
                    "tenant": tenant,
                    "namespace": name,
                    "key": key,
                    "reads_per_s": reads,
                    "read_bytes_per_s": size,
                }
                for tenant, name, key, reads, size in rows
            ],
            "memory_bytes": found["memory_bytes"],
            "busy_us": found["busy_us"],
        }
