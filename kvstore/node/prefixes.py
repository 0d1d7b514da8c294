"""What a node tells its master of the chains that are read most."""

from __future__ import annotations

from typing import Final

from kvstore import clock
from kvstore._proto import node_pb2, types_pb2
from kvstore.node.core_api import NodeCoreApi

_EVERY_MS: Final = 5000
"""So often, whatever the heartbeats' interval: a report costs the master some 0.1 ms."""


class PrefixReports:
    """Decides which heartbeats have a report."""

    def __init__(self) -> None:
        """Begin with one at once."""
        self._due_ms = 0

    def take(self, core: NodeCoreApi) -> tuple[node_pb2.PrefixUse, ...]:
        """Return the chains read most since the last report; empty while none is due."""
        now_ms = clock.monotonic_ms()
        if now_ms < self._due_ms:
            return ()
        self._due_ms = now_ms + _EVERY_MS
        return tuple(
            node_pb2.PrefixUse(
                namespace=types_pb2.Namespace(tenant=tenant, name=name),
                key=key,
                reads=reads,
                bytes=size,
            )
            for tenant, name, key, reads, size in core.take_prefixes()
        )
