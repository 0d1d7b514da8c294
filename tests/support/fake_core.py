"""A stand-in for the native master, for unit tests of what is around it; it records calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvstore.audit import Deed
from kvstore.master.core_api import CoreEvent, CoreHeartbeat, CoreNamespace, CoreNode, CoreObject
from kvstore.refusals import Refusal
from kvstore.security import NativePrincipal
from kvstore.sessions import CoreSession


class FakeCore:
    """Answers what a test has put in; implements kvstore.master.core_api.MasterCoreApi."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.seen: list[CoreNode] = []
        self.batches: list[list[tuple[int, bytes]]] = []
        self.heartbeats: list[list[CoreHeartbeat]] = []
        self.trimmed = (0, 0)
        self.room = -1
        self.looks = 0
        self.still = False
        """No link has changed."""
        self.objects: dict[str, CoreObject] = {}
        self.events: list[CoreEvent] = []
        self.uses: list[CoreNamespace] = []

    def namespace_uses(self) -> list[CoreNamespace]:
        return list(self.uses)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def start(self) -> list[str]:
        return ["tcp://127.0.0.1:1"]

    def stop(self) -> None:
        self.calls.append(("stop",))

    def take_refusals(self) -> list[Refusal]:
        return []

    def keep_deeds(self, wanted: bool) -> None:
        self.calls.append(("keep_deeds", wanted))

    def take_deeds(self) -> tuple[list[Deed], int]:
        return [], 0

    def sessions(self) -> list[CoreSession]:
        return []

    def end_sessions(self, ids: Sequence[int], reason: str) -> int:
        self.calls.append(("end_sessions", list(ids), reason))
        return len(ids)

    def set_principals(self, principals: list[NativePrincipal]) -> None:
        self.calls.append(("set_principals", principals))

    def set_principal_share(self, share: float) -> None:
        self.calls.append(("set_principal_share", share))

    def set_tenant_namespaces(self, most: int) -> None:
        self.calls.append(("set_tenant_namespaces", most))

    def set_endpoints(
        self, grpc_endpoint: str, http_endpoint: str, tls_grpc_endpoint: str = ""
    ) -> None:
        self.calls.append(("set_endpoints", grpc_endpoint, http_endpoint, tls_grpc_endpoint))

    def register_node(
        self,
        node_id: str,
        session_id: int,
        node_epoch: int,
        tcp_endpoint: str,
        unix_endpoint: str,
        host: str,
        weight: int,
        capacity_bytes: int,
        free_bytes: int = 0,
        state: int = 0,
        known: bool = False,
        fresh: bool = False,
        locality: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        self.calls.append(("register_node", node_id, session_id, node_epoch, state, known))

    def set_node(
        self, node_id: str, state: int, weight: int, free_bytes: int, capacity_bytes: int
    ) -> None:
        self.calls.append(("set_node", node_id, state, weight, free_bytes, capacity_bytes))

    def node_heard(self, node_id: str) -> None:
        self.calls.append(("node_heard", node_id))

    def set_node_endpoints(
        self,
        node_id: str,
        tcp_endpoint: str,
        unix_endpoint: str,
        host: str,
        locality: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        reached = (tcp_endpoint, unix_endpoint, host, locality)
        self.calls.append(("set_node_endpoints", node_id, *reached))

    def remove_node(self, node_id: str) -> None:
        self.calls.append(("remove_node", node_id))

    def link_of(self, node_id: str) -> tuple[bool, bool]:
        for one in self.seen:
            if one["node_id"] == node_id:
                return one["connected"], one["synced"]
        return False, False

    def links_id(self) -> int:
        self.looks += 0 if self.still else 1
        return self.looks

    def set_link_silence(self, silence_ms: int) -> None:
        self.calls.append(("set_link_silence", silence_ms))

    def nodes(self) -> list[CoreNode]:
        return self.seen

    def finish_rebuild(self) -> None:
        self.calls.append(("finish_rebuild",))

    def set_copy_policy(self, *, copies_per_s: float | None = None) -> None:
        self.calls.append(("set_copy_policy", copies_per_s))

    def drain_left(self, node_id: str) -> tuple[int, int]:
        return 3, 300

    def under_replicated(self) -> int:
        return 2

    def load_ops(self, records: list[bytes]) -> None:
        self.calls.append(("load_ops", records))

    def set_namespace_epoch(self, tenant: str, namespace: str, epoch: int) -> None:
        self.calls.append(("set_namespace_epoch", tenant, namespace, epoch))

    def namespaces(self) -> list[tuple[str, str, int]]:
        return [("default", "", 4), ("default", "untouched", 0)]

    def take_heartbeats(self, timeout_ms: int) -> list[CoreHeartbeat]:
        return self.heartbeats.pop(0) if self.heartbeats else []

    def answer_heartbeats(self, answers: list[tuple[int, int, int, bytes]]) -> None:
        self.calls.append(("answer_heartbeats", answers))

    def wait_journal(self, timeout_ms: int) -> list[tuple[int, bytes]]:
        return self.batches.pop(0) if self.batches else []

    def journal_done(self, seq: int) -> None:
        self.calls.append(("journal_done", seq))

    def set_journal_room(self, bytes: int, refusal: int) -> None:
        self.room = bytes

    def journal_trimmed(self) -> tuple[int, int]:
        return self.trimmed

    def flush_then(
        self,
        tenant: str,
        namespace: str,
        timeout_ms: int,
        principal: str,
        done: Callable[[int, list[str], int], None],
    ) -> None:
        self.calls.append(("flush", tenant, namespace, timeout_ms, principal))
        done(-15, ["gone"], 5)

    def remove_then(
        self,
        tenant: str,
        namespace: str,
        keys: list[str],
        timeout_ms: int,
        principal: str,
        done: Callable[[list[int], list[str]], None],
    ) -> None:
        self.calls.append(("remove", tenant, namespace, keys, timeout_ms, principal))
        done([0] * len(keys), [])

    def recorded_then(
        self, tenant: str, namespace: str, keys: list[str], done: Callable[[int], None]
    ) -> None:
        done(0)

    def list_keys(
        self, tenant: str, namespace: str, prefix: str, cursor: int, limit: int
    ) -> tuple[list[str], int]:
        self.calls.append(("list_keys", tenant, namespace, prefix, cursor, limit))
        return ["k"], 9

    def inspect(self, tenant: str, namespace: str, key: str) -> CoreObject | None:
        return self.objects.get(key)

    def locate(
        self, tenant: str, namespace: str, keys: list[str]
    ) -> tuple[list[tuple[str, int]], int]:
        return [("a", 2), ("b", 1)], len(keys)

    def poll_events(self, cursor: int, max_events: int) -> tuple[list[CoreEvent], int, bool]:
        events, self.events = self.events, []
        return events, cursor + len(events), cursor == 0

    def wait_events(self, cursor: int, timeout_ms: int) -> bool:
        return bool(self.events)

    def stats(self) -> dict[str, Any]:
        return {"objects": 11, "ops_pending": 6}
