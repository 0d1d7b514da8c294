"""Calls nodes back at the block endpoint they announce, before clients are told of it.

What answers must be that node: with its id and epoch, in this cluster and, with tokens, with a
proof that it knows the secret of the principal that registered it. A node's token alone so leads
nobody to another process. A few threads with a time limit each; nodes that failed least come first.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypedDict

from kvstore import clock
from kvstore.errors import KvstoreError
from kvstore.logging import EventLogger
from kvstore.master.model import Node, Verified
from kvstore.master.registry import Registry
from kvstore.security import Principal

_log = EventLogger("master.verifier")
_THREADS = 8
_TIMEOUT_MS = 2000
_RETRY_FIRST_MS = 500
_RETRY_MAX_MS = 30_000
_Attempt = tuple[int, str]
"""Session and endpoint."""


class NodeHello(TypedDict):
    """What a node says of itself."""

    node_id: str
    node_epoch: int


class ProbeNode(Protocol):
    """``kvstore._native.probe_node``."""

    def __call__(
        self,
        address: str,
        *,
        cluster_id: str,
        node_id: str,
        principal: str,
        token: str,
        timeout_ms: int,
    ) -> NodeHello:
        """Say hello to a node; raises KvstoreError when it does not answer, or refuses."""


class _Failed:
    """Past attempts at one endpoint of one session."""

    def __init__(self, attempt: _Attempt) -> None:
        self.attempt = attempt
        self.count = 0
        self.next_ms = 0


class Verifier:
    """Verifies the nodes' endpoints in the background."""

    def __init__(
        self,
        registry: Registry,
        probe: ProbeNode,
        cluster_id: str,
    ) -> None:
        """Prepare the threads, which begin with the first node.

        Args:
            registry: names the endpoints to verify, and takes the results.
            probe: says hello to a node.
            cluster_id: of this master.
        """
        self._registry = registry
        self._probe = probe
        self._cluster_id = cluster_id
        self._pool = ThreadPoolExecutor(_THREADS, "verify")
        self._mutex = threading.Lock()
        self._callers: dict[str, Principal] = {}
        """Who registered a node, by its id."""
        self._running: set[str] = set()
        self._failed: dict[str, _Failed] = {}
        self._closed = False

    def registered(self, node_id: str, principal: Principal) -> None:
        """Note who registered a node, and verify it now."""
        with self._mutex:
            self._callers[node_id] = principal
        self.look()

    def look(self) -> None:
        """Start what is due, as far as threads are free; returns at once."""
        now_ms = clock.monotonic_ms()
        with self._mutex:
            # Under the mutex: what failed meanwhile belongs to nodes that are listed.
            waiting = self._registry.unpublished()
            known = {node.node_id for node in waiting}
            for node_id in [one for one in self._failed if one not in known]:
                del self._failed[node_id]
            nodes = self._registry.cluster.nodes
            for node_id in [one for one in self._callers if one not in nodes]:
                del self._callers[node_id]
            if self._closed:
                return
            due = [node for node in waiting if self._is_due(node, now_ms)]
            due.sort(key=lambda node: self._failures(node))
            for node in due[: _THREADS - len(self._running)]:
                self._running.add(node.node_id)
                self._pool.submit(self._verify, node)

    def _is_due(self, node: Node, now_ms: int) -> bool:
        if node.node_id in self._running:
            return False
        failed = self._failed.get(node.node_id)
        other = failed is None or failed.attempt != (node.session_id, node.endpoints.tcp)
        return other or (failed is not None and failed.next_ms <= now_ms)

    def _failures(self, node: Node) -> int:
        failed = self._failed.get(node.node_id)
        return failed.count if failed else 0

    def _verify(self, node: Node) -> None:
        tcp = node.endpoints.tcp
        try:
            problem = self._ask(node)
            self._note(node, problem)
            self._registry.submit(Verified(node.node_id, node.session_id, tcp, problem))
        except Exception:
            _log.exception("endpoint_not_verified", node_id=node.node_id, tcp=tcp)
            self._note(node, "internal error; see the master's log")
        finally:
            with self._mutex:
                self._running.discard(node.node_id)
            self.look()  # others may wait for the thread

    def _ask(self, node: Node) -> str:
        """Return why the endpoint is not the node's; empty: it is."""
        tcp = node.endpoints.tcp
        with self._mutex:
            caller = self._callers.get(node.node_id)
        token = caller.secret.reveal() if caller else ""
        try:
            hello = self._probe(
                tcp,
                cluster_id=self._cluster_id,
                node_id=node.node_id,
                principal=caller.name if caller and token else "",
                token=token,
                timeout_ms=_TIMEOUT_MS,
            )
        except KvstoreError as error:
            return (
                f"{tcp} does not answer the master as node {node.node_id!r}: {error}. Clients need "
                "it, too: see advertise_host and port"
            )
        if hello["node_id"] != node.node_id:
            whose = f"node {hello['node_id']!r}" if hello["node_id"] else "no node"
            return f"{tcp} is {whose}, not {node.node_id!r}"
        if hello["node_epoch"] != node.node_epoch:
            return (
                f"{tcp} is another process of node {node.node_id!r} (epoch {hello['node_epoch']}, "
                f"not {node.node_epoch})"
            )
        return ""

    def _note(self, node: Node, problem: str) -> None:
        with self._mutex:
            if not problem:
                self._failed.pop(node.node_id, None)
                return
            attempt = (node.session_id, node.endpoints.tcp)
            failed = self._failed.get(node.node_id)
            if failed is None or failed.attempt != attempt:
                failed = self._failed[node.node_id] = _Failed(attempt)
            wait_ms = min(_RETRY_MAX_MS, _RETRY_FIRST_MS << min(failed.count, 16))
            failed.count += 1
            failed.next_ms = clock.monotonic_ms() + wait_ms
            is_first = failed.count == 1
        level = _log.warning if is_first else _log.debug
        level("endpoint_not_verified", node_id=node.node_id, error=problem)

    def close(self) -> None:
        """Start nothing more, and wait for what runs."""
        with self._mutex:
            self._closed = True
        self._pool.shutdown()
