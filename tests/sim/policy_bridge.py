"""The control plane's policy inside the simulation: kvstore/master's registry and policy as they
are, over a disk and a native side that only write down what they are told.

`sim` (policy.cpp) calls these functions on its own stack with the simulated clock; the answers are
tuples. What the registry asks of the native side comes back as a list of calls, carried out by the
caller in their order.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

from kvstore.errors import KvstoreError, Status
from kvstore.master.model import (
    Drain,
    Endpoints,
    Heartbeat,
    Register,
    Segment,
    Settings,
    Unregister,
)
from kvstore.master.records import NodeRecord
from kvstore.master.registry import Registry
from kvstore.node import session

logging.disable(logging.CRITICAL)


class Disk:
    """What HardState keeps of the nodes; a write is durable when it returns."""

    def __init__(self) -> None:
        """Begin empty."""
        self.records: dict[str, NodeRecord] = {}

    def nodes(self) -> list[NodeRecord]:
        """The known nodes."""
        return [self.records[node_id] for node_id in sorted(self.records)]

    def put_nodes(self, records: Iterable[NodeRecord]) -> None:
        """Write nodes."""
        self.records.update({record.node_id: record for record in records})

    def delete_node(self, node_id: str) -> None:
        """Forget a node."""
        self.records.pop(node_id, None)


class Calls:
    """The native side as the registry sees it: what is asked is noted down."""

    def __init__(self) -> None:
        """Begin empty."""
        self.made: list[tuple[Any, ...]] = []
        self.seen: list[dict[str, Any]] = []
        self.looks = 0

    def nodes(self) -> list[dict[str, Any]]:
        """What the native side said last."""
        return self.seen

    def links_id(self) -> int:
        """Return another number every time: links are always looked at."""
        self.looks += 1
        return self.looks

    def set_link_silence(self, silence_ms: int) -> None:
        """A simulated cluster is too small for it."""

    def register_node(
        self,
        node_id: str,
        session_id: int,
        node_epoch: int,
        tcp: str,
        unix: str,
        host: str,
        weight: int,
        capacity_bytes: int,
        *,
        free_bytes: int,
        state: int,
        known: bool,
        fresh: bool = False,
        locality: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        """Note it."""
        self.made.append(
            ("register", node_id, session_id, node_epoch, tcp, host, weight, capacity_bytes,
             free_bytes, state, int(known), int(fresh))
        )  # fmt: skip

    def set_node_endpoints(
        self, node_id: str, tcp: str, unix: str, host: str, locality: tuple[str, str, str]
    ) -> None:
        """Note it."""
        self.made.append(("endpoints", node_id, tcp, host))

    def set_node(self, node_id: str, state: int, weight: int, free: int, capacity: int) -> None:
        """Note it."""
        self.made.append(("set", node_id, state, weight, free, capacity))

    def node_heard(self, node_id: str) -> None:
        """Note it."""
        self.made.append(("heard", node_id))

    def remove_node(self, node_id: str) -> None:
        """Note it."""
        self.made.append(("remove", node_id))

    def finish_rebuild(self) -> None:
        """Note it."""
        self.made.append(("finish_rebuild",))

    def set_copy_policy(self, *, copies_per_s: float) -> None:
        """Note it."""
        self.made.append(("copy_rate", copies_per_s))

    def take(self) -> list[tuple[Any, ...]]:
        """What was asked since the last time."""
        made, self.made = self.made, []
        return made


_disk = Disk()
_settings = Settings()
_calls: Calls
_registry: Registry


def rebuilding() -> bool:
    """Whether a master that starts now has to hear from its nodes first (MasterServer)."""
    return any(not record.left for record in _disk.nodes())


def start_master() -> list[tuple[Any, ...]]:
    """Begin a life of the master on the disk of the one before."""
    global _calls, _registry
    _calls = Calls()
    _registry = Registry(_settings, _calls, _disk)  # type: ignore[arg-type]
    return _calls.take()


def register(
    node_id: str, incarnation: int, node_epoch: int, session_id: int, tcp: str, capacity: int
) -> tuple[int, int, int, list[tuple[Any, ...]]]:
    """Register a node: status, session id, node epoch, calls."""
    event = Register(
        node_id=node_id,
        incarnation=incarnation,
        node_epoch=node_epoch,
        session_id=session_id,
        endpoints=Endpoints(tcp=tcp),
        labels={"host": f"host-of-{node_id}"},
        segments=(Segment("segment", 0, capacity),),
    )
    try:
        node = _registry.submit(event).nodes[node_id]
    except KvstoreError as error:
        return int(error.status), 0, 0, _calls.take()
    return 0, node.session_id, node.node_epoch, _calls.take()


def heartbeat(
    node_id: str, session_id: int, capacity: int, used: int, tcp: str, refuses_writes: int
) -> tuple[int, int, list[tuple[Any, ...]]]:
    """Take a heartbeat: status, the node's state, calls."""
    event = Heartbeat(
        node_id=node_id,
        session_id=session_id,
        capacity_bytes=capacity,
        used_bytes=used,
        endpoints=Endpoints(tcp=tcp),
        segments=(Segment("segment", 0, capacity),),
        refuses_writes=bool(refuses_writes),
    )
    try:
        node = _registry.submit(event).nodes[node_id]
    except KvstoreError as error:
        return int(error.status), 0, _calls.take()
    return 0, int(node.state), _calls.take()


def unregister(node_id: str, session_id: int) -> list[tuple[Any, ...]]:
    """Let a node leave."""
    with contextlib.suppress(KvstoreError):  # the session has ended already
        _registry.submit(Unregister(node_id, session_id))
    return _calls.take()


def drain(node_id: str, cancel: int) -> list[tuple[Any, ...]]:
    """Drain a node, or no longer."""
    with contextlib.suppress(KvstoreError):  # not known yet
        _registry.submit(Drain(node_id, bool(cancel)))
    return _calls.take()


def tick(seen: list[tuple[str, int, int]]) -> list[tuple[Any, ...]]:
    """Look at the links and let time pass; `seen` is node id, connected, synced."""
    _calls.seen = [
        {"node_id": node_id, "connected": bool(connected), "synced": bool(synced)}
        for node_id, connected, synced in seen
    ]
    _registry.tick()
    return _calls.take()


_STEPS = {
    session.Step.CONTINUE: 0,
    session.Step.REGISTER: 1,
    session.Step.FIND_MASTER: 2,
    session.Step.GIVE_UP: 3,
}


def after_register(status: int, served_before: int) -> int:
    """The node's next step, as a number of policy.h."""
    return _STEPS[session.after_register(Status(status), bool(served_before))]


def after_heartbeat(status: int) -> int:
    """The node's next step, as a number of policy.h."""
    return _STEPS[session.after_heartbeat(Status(status), session.LATE_MAX)]


def backoff_ms(failures: int, jitter: float) -> int:
    """Wait of the node after a number of failures."""
    return session.backoff_ms(failures, jitter)
