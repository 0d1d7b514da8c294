"""Handlers of the control plane's calls: a request in, a reply out; errors are exceptions.

They are free of gRPC: the servicers (service.py) authenticate, run them in threads and map
exceptions. What has to wait for nodes answers through a callback, so that no thread waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvstore import __version__, clock
from kvstore._proto import master_pb2, node_pb2, types_pb2
from kvstore.errors import InvalidArgumentError, Status, UnavailableError, error_for
from kvstore.limits import LIST_PAGE_KEYS, MAX_LIST_KEYS, MAX_LIST_NAMESPACES
from kvstore.master import convert, policy
from kvstore.master.core_api import MasterCoreApi
from kvstore.master.hard_state import HardState
from kvstore.master.model import (
    Drain,
    ForgetNode,
    NodeState,
    RequestSnapshot,
    Snapshot,
    Stage,
    Unregister,
)
from kvstore.master.new_cluster import NewCluster
from kvstore.master.prefixes import HotPrefixes
from kvstore.master.registry import Registry, new_session_id
from kvstore.master.reuse import Reuse
from kvstore.security import ANYBODY, Principal


@dataclass(frozen=True)
class Bound:
    """Addresses of this master."""

    block: str = ""
    grpc: str = ""
    http: str = ""


class NodeHandlers:
    """Registration and heartbeats."""

    def __init__(
        self,
        registry: Registry,
        state: HardState,
        new_cluster: NewCluster,
        reuse: Reuse,
        prefixes: HotPrefixes,
        registered: Callable[[str, Principal], None] = lambda node_id, principal: None,
    ) -> None:
        """Keep the objects that the calls work on.

        Args:
            registry: of the nodes.
            state: of this master.
            new_cluster: decides whether nodes may join.
            reuse: hears of the uses that they report.
            prefixes: hears of the chains that they report.
            registered: called with every node that has a new session, and who registered it.
        """
        self._registry = registry
        self._state = state
        self._registered = registered
        self._new_cluster = new_cluster
        self._reuse = reuse
        self._prefixes = prefixes

    def register(
        self, request: node_pb2.RegisterRequest, principal: Principal = ANYBODY
    ) -> node_pb2.RegisterReply:
        """Open a session for `principal`."""
        event = convert.register_from(request, new_session_id())
        self._new_cluster.admit(event.node_id, request.cluster_id)
        # Whether an earlier process lives is judged as of now.
        self._registry.look_at_link(event.node_id)
        settings = self._registry.settings
        cluster = self._registry.submit(event)
        if event.stage is Stage.PREPARE:
            return node_pb2.RegisterReply(
                node_epoch=policy.next_epoch(cluster, event),
                cluster_id=self._state.cluster_id,
                hash_secret=self._state.hash_secret,
                master_epoch=self._state.epoch,
                heartbeat_interval_ms=policy.heartbeat_ms(settings, cluster),
                ttl_ms=settings.node_ttl_ms,
            )
        self._new_cluster.joined()
        self._registered(event.node_id, principal)
        node = cluster.nodes[event.node_id]
        return node_pb2.RegisterReply(
            session_id=node.session_id,
            node_epoch=node.node_epoch,
            cluster_id=self._state.cluster_id,
            hash_secret=self._state.hash_secret,
            master_epoch=self._state.epoch,
            heartbeat_interval_ms=node.heartbeat_ms,
            ttl_ms=settings.node_ttl_ms,
        )

    def heartbeat(self, request: node_pb2.HeartbeatRequest) -> node_pb2.HeartbeatReply:
        """Keep a session alive."""
        event = convert.heartbeat_from(request)
        cluster = self._registry.submit(event)
        node = cluster.nodes[event.node_id]
        self._prefixes.note(request.prefixes)
        return node_pb2.HeartbeatReply(
            state=convert.state_to(node.state),
            heartbeat_interval_ms=node.heartbeat_ms,
            snapshot_request=node.snapshot_request,
            endpoint_problem=node.problem,
            sample_level=self._reuse.note(request.uses, cluster),
        )

    def unregister(self, request: node_pb2.UnregisterRequest) -> node_pb2.UnregisterReply:
        """End a session."""
        self._registry.submit(
            Unregister(request.node_id, request.session_id, request.returns_in_ms)
        )
        return node_pb2.UnregisterReply()


class MasterHandlers:
    """Calls of operators and routers."""

    def __init__(
        self,
        registry: Registry,
        core: MasterCoreApi,
        state: HardState,
        reuse: Reuse,
        bound: Callable[[], Bound],
        end: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep the objects that the calls work on.

        Args:
            registry: of the nodes.
            core: the native side.
            state: of this master.
            reuse: makes the curve of reuse distances.
            bound: returns the addresses of this master.
            end: stops this master; called from any thread.
        """
        self._registry = registry
        self._core = core
        self._end = end
        self._state = state
        self._reuse = reuse
        self._bound = bound
        self._started_ms = clock.monotonic_ms()

    def locate(self, request: master_pb2.LocateRequest) -> master_pb2.LocateReply:
        """Return prefix lengths by node."""
        tenant, name = convert.check_namespace(request.namespace)
        found, anywhere = self._core.locate(tenant, name, convert.check_keys(request.keys))
        return master_pb2.LocateReply(
            prefixes=[
                master_pb2.LocateReply.Prefix(node_id=node_id, length=length)
                for node_id, length in found
            ],
            cluster_length=anywhere,
        )

    def list_nodes(self) -> master_pb2.ListNodesReply:
        """List every known node by id, as of now rather than of the last tick."""
        self._registry.look_at_links()
        now_ms = clock.monotonic_ms()
        seen = {core["node_id"]: core for core in self._core.nodes()}
        nodes = self._registry.cluster.nodes
        return master_pb2.ListNodesReply(
            nodes=[
                convert.node_to(
                    node,
                    seen.get(node_id),
                    policy.weight(self._registry.settings, node, now_ms),
                    self._drain_left(node_id) if node.state is NodeState.DRAINING else 0,
                    now_ms,
                )
                for node_id, node in sorted(nodes.items())
            ]
        )

    def _drain_left(self, node_id: str) -> int:
        return self._core.drain_left(node_id)[0]

    def snapshot(self, request: master_pb2.SnapshotRequest) -> master_pb2.SnapshotReply:
        """Request a snapshot from a node, or report its progress."""
        node_id = convert.check_node_id(request.node_id)
        if request.request == 0:
            node = self._registry.submit(RequestSnapshot(node_id)).nodes[node_id]
            wanted = node.snapshot_request
        else:
            found = self._registry.cluster.nodes.get(node_id)
            if found is None or found.snapshot_request < request.request:
                # Numbers restart with each session.
                raise error_for(Status.NotFound, f"node {node_id!r} has left or restarted")
            node, wanted = found, request.request
        seen = node.snapshot if node.snapshot.request >= wanted else Snapshot()
        return master_pb2.SnapshotReply(request=wanted, progress=convert.snapshot_to(seen))

    def drain(self, request: master_pb2.DrainRequest) -> master_pb2.DrainReply:
        """Start, observe or cancel a drain, or look at what one would move."""
        node_id = convert.check_node_id(request.node_id)
        if request.look:
            known = self._registry.cluster.nodes.get(node_id)
            if known is None:
                raise error_for(Status.NotFound, f"no node {node_id!r}")
            node = known
        else:
            node = self._registry.submit(Drain(node_id, request.cancel)).nodes[node_id]
        # Read before the count, so that a write that finishes in between is counted.
        quiet = node.refuses_writes
        looked = node.draining or request.look
        left, left_bytes = self._core.drain_left(node_id) if looked else (0, 0)
        now_ms = clock.monotonic_ms()
        seen = {core["node_id"]: core for core in self._core.nodes()}
        settings, cluster = self._registry.settings, self._registry.cluster
        weight = policy.weight(settings, node, now_ms)
        # One that was stopped after its drain is still drained.
        settled = quiet if node.state is NodeState.DRAINING else node.left
        drained = node.draining and settled and left == 0
        waits_for = ""
        if node.draining and not drained:
            waits_for = policy.drain_waits_for(settings, cluster, node, left, now_ms)
        takers = policy.drain_takers(settings, cluster, node, now_ms)
        evicted, evicted_bytes = policy.dropped(takers)
        return master_pb2.DrainReply(
            node=convert.node_to(
                node, seen.get(node_id), weight, left if node.draining else 0, now_ms
            ),
            drained=drained,
            waits_for=waits_for,
            left_objects=left,
            left_bytes=left_bytes,
            room_bytes=sum(map(policy.room, takers)),
            evicted_objects=evicted,
            evicted_bytes=evicted_bytes,
            looked=request.look,
        )

    def forget(self, request: master_pb2.ForgetRequest) -> master_pb2.ForgetReply:
        """Drop a dead node: its objects, and what it has not applied yet."""
        node_id = convert.check_node_id(request.node_id)
        seen = {core["node_id"]: core for core in self._core.nodes()}
        known = self._registry.cluster.nodes.get(node_id)
        cluster = self._registry.submit(ForgetNode(node_id))
        node = cluster.nodes.get(node_id, known)
        assert node is not None  # the policy refuses an unknown one
        now_ms = clock.monotonic_ms()
        return master_pb2.ForgetReply(
            forgotten=node_id not in cluster.nodes,
            node=convert.node_to(node, seen.get(node_id), 0.0, 0, now_ms),
        )

    def flush(
        self,
        request: master_pb2.FlushRequest,
        principal: str,
        done: Callable[[master_pb2.FlushReply], None],
    ) -> None:
        """Start a new epoch of a namespace; answers once the holders have."""
        tenant, name = convert.check_namespace(request.namespace)
        timeout_ms = convert.check_timeout(request.timeout_ms)
        known = [
            one
            for one in self._core.namespace_uses()
            if (one["tenant"], one["namespace"]) == (tenant, name)
        ]

        def answer(status: int, unreached: list[str], epoch: int) -> None:
            done(
                master_pb2.FlushReply(
                    status=status,
                    unreached_nodes=unreached,
                    namespace_epoch=epoch,
                    known=bool(known),
                    objects=sum(one["objects"] for one in known),
                    bytes=sum(one["bytes"] for one in known),
                )
            )

        self._core.flush_then(tenant, name, timeout_ms, principal, answer)

    def list_namespaces(
        self, request: master_pb2.ListNamespacesRequest
    ) -> master_pb2.ListNamespacesReply:
        """List the namespaces of a tenant, or of all, those with the most bytes first."""
        if request.tenant:
            convert.check_namespace(types_pb2.Namespace(tenant=request.tenant))
        found = [
            one
            for one in self._core.namespace_uses()
            if request.tenant in ("", one["tenant"]) and (one["objects"] or one["keys_looked_up"])
        ]
        found.sort(key=lambda one: (-one["bytes"], one["tenant"], one["namespace"]))
        return master_pb2.ListNamespacesReply(
            namespaces=map(convert.namespace_to, found[:MAX_LIST_NAMESPACES]),
            left_out=max(0, len(found) - MAX_LIST_NAMESPACES),
        )

    def remove(
        self,
        request: master_pb2.RemoveRequest,
        principal: str,
        done: Callable[[master_pb2.RemoveReply], None],
    ) -> None:
        """Remove keys; answers once the holders have."""
        tenant, name = convert.check_namespace(request.namespace)
        keys = convert.check_keys(request.keys)
        timeout_ms = convert.check_timeout(request.timeout_ms)

        def answer(statuses: list[int], unreached: list[str]) -> None:
            done(master_pb2.RemoveReply(statuses=statuses, unreached_nodes=unreached))

        self._core.remove_then(tenant, name, keys, timeout_ms, principal, answer)

    def list_keys(self, request: master_pb2.ListKeysRequest) -> master_pb2.ListKeysReply:
        """Read a page of keys."""
        tenant, name = convert.check_namespace(request.namespace)
        if request.limit > MAX_LIST_KEYS:
            raise InvalidArgumentError(f"limit is above {MAX_LIST_KEYS}")
        limit = request.limit or LIST_PAGE_KEYS
        keys, cursor = self._core.list_keys(tenant, name, request.prefix, request.cursor, limit)
        return master_pb2.ListKeysReply(keys=keys, cursor=cursor)

    def inspect(self, request: master_pb2.InspectRequest) -> master_pb2.InspectReply:
        """Describe an object."""
        tenant, name = convert.check_namespace(request.namespace)
        (key,) = convert.check_keys([request.key])
        found = self._core.inspect(tenant, name, key)
        if found is None:
            raise error_for(Status.NotFound, f"no object under {key!r}")
        return convert.inspect_to(found)

    def reuse(self) -> master_pb2.ReuseReply:
        """Return the curve of reuse distances."""
        return self._reuse.reply(self._registry.cluster)

    def status(self) -> master_pb2.StatusReply:
        """Summarize the cluster's state."""
        cluster, bound, stats = self._registry.cluster, self._bound(), self._core.stats()
        alive = [n for n in cluster.nodes.values() if n.session_id]
        return master_pb2.StatusReply(
            software_version=__version__,
            cluster_id=self._state.cluster_id,
            master_epoch=self._state.epoch,
            rebuilding=cluster.rebuilding,
            awaited_nodes=sorted(cluster.awaited),
            uptime_ms=clock.monotonic_ms() - self._started_ms,
            objects=stats["objects"],
            capacity_bytes=sum(node.capacity_bytes for node in alive),
            used_bytes=sum(node.used_bytes for node in alive),
            nodes_alive=len(alive),
            nodes_known=len(cluster.nodes),
            under_replicated_objects=self._core.under_replicated(),
            pending_operations=stats["ops_pending"],
            block_endpoint=bound.block,
            grpc_endpoint=bound.grpc,
            http_endpoint=bound.http,
            standbys=map(convert.standby_to, self._state.standbys() or ()),
        )

    def hand_over(self) -> master_pb2.HandoverReply:
        """End this master, if another one stands by; the reply is sent before."""
        standbys = self._state.standbys()
        if standbys is None:
            raise error_for(Status.Unsupported, "nothing stands by: `state` is not in etcd")
        if not standbys:
            raise UnavailableError(
                "no master stands by: start one with the same `state`, or ask again in some seconds"
            )
        self._end()
        return master_pb2.HandoverReply(
            master_epoch=self._state.epoch, standbys=map(convert.standby_to, standbys)
        )
