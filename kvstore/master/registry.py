"""Carries out the policy's decisions: on disk, at the native side, then for the caller.

Thread-safe. Events are processed one at a time; readers get the current value without waiting.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from dataclasses import dataclass

from kvstore import clock
from kvstore.errors import KvstoreError, error_for
from kvstore.logging import EventLogger, Recurring
from kvstore.master import policy
from kvstore.master.core_api import MasterCoreApi
from kvstore.master.hard_state import HardState
from kvstore.master.model import Cluster, Event, Node, NodeState, Observe, Register, Settings, Tick
from kvstore.master.records import NodeRecord

_log = EventLogger("master.registry")
# The native side expects weights as whole numbers.
_WEIGHT_SCALE = 1000
_LOOK_MS = 5_000
"""Links are looked at this often although nothing is said to have changed."""


def new_session_id() -> int:
    """Draw a session id: 64 random bits, never 0."""
    return secrets.randbits(64) or 1


_Reached = tuple[str, str, str, tuple[str, str, str]]
"""TCP and Unix endpoint, host, and what `_locality` returns."""


@dataclass
class _Registration:
    """A registration that waits for the disk; one of the results is set by whoever writes it."""

    event: Register
    cluster: Cluster | None = None
    error: Exception | None = None


class Registry:
    """The cluster's state and the effects of its changes."""

    def __init__(self, settings: Settings, core: MasterCoreApi, state: HardState) -> None:
        """Restore the nodes of earlier epochs and register them at the native side."""
        self._settings = settings
        self._core = core
        self._state = state
        self._mutex = threading.Lock()
        self._registrations: deque[_Registration] = deque()
        self._copies_per_s = -1
        self._silence_ms = 0
        self._links = (-1, 0)
        """Number of the links' last change that was looked at, and when."""
        self._tick_failed = Recurring(_log, "tick_failed", error=True)
        self._told: dict[str, tuple[_Reached, tuple[int, int, int, int]]] = {}
        now_ms, unix_ms = clock.monotonic_ms(), clock.unix_ms()
        known = [
            Node(
                node_id=record.node_id,
                node_epoch=record.node_epoch,
                incarnation=record.incarnation,
                last_seen_ms=now_ms - max(0, unix_ms - record.last_seen_unix_ms),
                draining=record.draining,
                left=record.left,
            )
            for record in state.nodes()
        ]
        self._cluster = policy.start(known, now_ms)
        for node in known:
            self._open_session(node, known=True)
        _log.info("registry_started", known_nodes=len(known), rebuilding=self._cluster.rebuilding)

    @property
    def settings(self) -> Settings:
        """Current parameters of the policy."""
        return self._settings

    def reconfigure(self, settings: Settings) -> None:
        """Use other parameters from the next event on, at the latest the next tick."""
        self._settings = settings

    @property
    def cluster(self) -> Cluster:
        """The current state."""
        return self._cluster

    def submit(self, event: Event) -> Cluster:
        """Apply an event.

        Args:
            event: what happened.

        Returns:
            The state afterwards; every decision has been carried out.

        Raises:
            KvstoreError: The policy refused the event, or the disk failed; nothing changed.
        """
        if isinstance(event, Register):
            return self._register(event)
        with self._mutex:
            now_ms = clock.monotonic_ms()
            cluster, decisions = policy.decide(self._settings, self._cluster, event, now_ms)
            for decision in decisions:
                self._carry_out(decision)
            self._cluster = cluster
            return cluster

    def _register(self, event: Register) -> Cluster:
        """Apply a registration, together with those that wait for the disk meanwhile.

        After a restart of the master every node registers, and a disk takes some ten milliseconds.
        """
        mine = _Registration(event)
        self._registrations.append(mine)
        with self._mutex:
            if mine.error is None and mine.cluster is None:
                waiting = [self._registrations.popleft() for _ in range(len(self._registrations))]
                self._carry_out_together(waiting)
        if mine.error is not None:
            raise mine.error
        assert mine.cluster is not None
        return mine.cluster

    def _carry_out_together(self, waiting: list[_Registration]) -> None:
        cluster, now_ms = self._cluster, clock.monotonic_ms()
        accepted: list[tuple[_Registration, Cluster, list[policy.Decision]]] = []
        for one in waiting:
            after, decisions = policy.decide(self._settings, cluster, one.event, now_ms)
            match decisions:
                case [policy.Refuse(status, message)]:
                    one.error = error_for(status, message)
                case _:
                    accepted.append((one, after, decisions))
                    cluster = after
        try:
            self._state.put_nodes(
                _record(decision.node)
                for _, _, decisions in accepted
                for decision in decisions
                if isinstance(decision, policy.Persist)
            )
        except Exception as error:
            for one, _, _ in accepted:
                one.error = error
            return
        for place, (one, after, decisions) in enumerate(accepted):
            try:
                for decision in decisions:
                    if not isinstance(decision, policy.Persist):
                        self._carry_out(decision)
            except Exception as error:
                one.error = error
                # Those behind it were decided with it.
                for behind, _, _ in accepted[place + 1 :]:
                    self._carry_out_together([behind])
                return
            one.cluster = self._cluster = after

    def unpublished(self) -> list[Node]:
        """Registered nodes whose announced TCP endpoint is not verified yet."""
        return [
            node
            for node in self._cluster.nodes.values()
            if node.session_id and node.endpoints.tcp and node.endpoints.tcp != node.published.tcp
        ]

    def look_at_links(self) -> None:
        """Update the state of the nodes' links from the native side."""
        number, now_ms = self._core.links_id(), clock.monotonic_ms()
        if self._links[0] == number and now_ms - self._links[1] < _LOOK_MS:
            return
        for seen in self._core.nodes():
            node = self._cluster.nodes.get(seen["node_id"])
            if node and (node.linked, node.synced) != (seen["connected"], seen["synced"]):
                self.submit(Observe(seen["node_id"], seen["connected"], seen["synced"]))
        self._links = (number, now_ms)

    def look_at_link(self, node_id: str) -> None:
        """The same of one node, as of now."""
        node = self._cluster.nodes.get(node_id)
        if node is None:
            return
        linked, synced = self._core.link_of(node_id)
        if (node.linked, node.synced) != (linked, synced):
            self.submit(Observe(node_id, linked, synced))

    def tick(self) -> None:
        """Update the links, then process the passage of time."""
        try:
            self.look_at_links()
            self.submit(Tick())
        except KvstoreError as error:
            # The disk failed; the next tick makes the same decision again.
            self._tick_failed.warn(error=error)
        except Exception:
            _log.exception("tick_failed")
        else:
            self._tick_failed.end()

    def _carry_out(self, decision: policy.Decision) -> None:
        match decision:
            case policy.Refuse(status, message):
                raise error_for(status, message)
            case policy.Persist(node):
                self._state.put_nodes([_record(node)])
            case policy.OpenSession(node, fresh):
                self._open_session(node, fresh=fresh)
                _log.info("node_registered", **_fields(node))
            case policy.SetNode(node, state, weight):
                self._set_node(node, state, weight)
            case policy.Heard(node_id):
                self._core.node_heard(node_id)
            case policy.Forget(node_id):
                self._state.delete_node(node_id)
                self._core.remove_node(node_id)
                self._told.pop(node_id, None)
                _log.info("node_forgotten", node_id=node_id)
            case policy.FinishRebuild(missing):
                self._core.finish_rebuild()
                _log.info("rebuild_finished", missing=",".join(missing))
            case policy.SetCopyRate(copies_per_s):
                if copies_per_s != self._copies_per_s:
                    self._core.set_copy_policy(copies_per_s=float(copies_per_s))
                    self._copies_per_s = copies_per_s
            case policy.SetLinkSilence(silence_ms):
                if silence_ms != self._silence_ms:
                    self._core.set_link_silence(silence_ms)
                    self._silence_ms = silence_ms

    def _open_session(self, node: Node, known: bool = False, fresh: bool = False) -> None:
        self._told.pop(node.node_id, None)
        self._core.register_node(
            node.node_id,
            node.session_id,
            node.node_epoch,
            node.published.tcp,
            node.published.unix,
            node.labels.get("host", ""),
            0,
            node.capacity_bytes,
            free_bytes=max(0, node.capacity_bytes - node.used_bytes),
            state=int(NodeState.DEAD if known else node.state),
            known=known,
            fresh=fresh,
            locality=_locality(node),
        )

    def _set_node(self, node: Node, state: NodeState, weight: float) -> None:
        """Tell the native side what has changed."""
        before = self._told.get(node.node_id)
        host = node.labels.get("host", "")
        reached = (node.published.tcp, node.published.unix, host, _locality(node))
        free = max(0, node.capacity_bytes - node.used_bytes)
        standing = (int(state), round(weight * _WEIGHT_SCALE), free, node.capacity_bytes)
        if before == (reached, standing):
            return
        if before is None or before[0] != reached:
            self._core.set_node_endpoints(node.node_id, *reached)
        if before is None or before[1] != standing:
            self._core.set_node(node.node_id, *standing)
        _log.debug("node_set", node_id=node.node_id, state=state.name.lower(), weight=weight)
        was = self._cluster.nodes.get(node.node_id)
        if was is not None and was.state != state:
            overdue = was.state is NodeState.RESTARTING or not node.left
            level = _log.warning if state is NodeState.DEAD and overdue else _log.info
            level("node_state", **_fields(node))
        self._told[node.node_id] = (reached, standing)


def _locality(node: Node) -> tuple[str, str, str]:
    """Labels that clients are told: by them they choose the nearest replica."""
    label = node.labels.get
    return label("numa", ""), label("rack", ""), label("rdma_domain", "")


def _record(node: Node) -> NodeRecord:
    age_ms = clock.monotonic_ms() - node.last_seen_ms
    return NodeRecord(
        node_id=node.node_id,
        node_epoch=node.node_epoch,
        incarnation=node.incarnation,
        draining=node.draining,
        left=node.left,
        last_seen_unix_ms=clock.unix_ms() - age_ms,
    )


def _fields(node: Node) -> dict[str, object]:
    return {
        "node_id": node.node_id,
        "state": node.state.name.lower(),
        "node_epoch": node.node_epoch,
        "tcp": node.endpoints.tcp,
        "draining": node.draining,
    }
