"""Keeps a node in its cluster: finds the master, registers, sends heartbeats, re-registers.

Heartbeats go over the node's link to the master while that is up, else by gRPC.

A starting process registers in two calls. The first one changes nothing at the master and tells the
epoch and the secret that the memory needs; the second one follows once ports are bound and memory
is taken. So a process that cannot start displaces nobody and leaves no trace in the cluster.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError

from kvstore import clock
from kvstore._proto import node_pb2, node_pb2_grpc, types_pb2
from kvstore.activity import Activity
from kvstore.errors import KvstoreError, Status, UnavailableError, error_from_rpc
from kvstore.logging import EventLogger, Recurring
from kvstore.node import activity, session
from kvstore.node.core_api import MasterHello, Probe
from kvstore.node.session import Step
from kvstore.security import Principal, Role, bearer

_log = EventLogger("node.agent")
_CALL_TIMEOUT_MS = 2000
# A master that has restarted hears a thousand nodes at once. Given up and repeated, their calls
# would never come to an end.
_REGISTER_TIMEOUT_MS = 10_000
_LOOK_MS = 25
# The address comes from the master itself: the environment's proxy does not apply.
_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0),)

T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """Contents of a heartbeat."""

    capacity_bytes: int
    used_bytes: int
    index_entries: int
    index_limit: int
    refuses_writes: bool
    activity: Activity = field(default_factory=Activity)
    snapshot: types_pb2.SnapshotProgress = field(default_factory=types_pb2.SnapshotProgress)
    uses: node_pb2.UseSample = field(default_factory=node_pb2.UseSample)
    health: node_pb2.NodeHealth = field(default_factory=node_pb2.NodeHealth)
    prefixes: tuple[node_pb2.PrefixUse, ...] = ()


@dataclass(frozen=True)
class Session:
    """A registration."""

    session_id: int
    node_epoch: int
    cluster_id: str
    hash_secret: bytes
    master: str
    """Block address of the master that registered it."""
    heartbeat_ms: int


@dataclass(frozen=True)
class Identity:
    """Identity of the node, for every registration."""

    node_id: str
    labels: dict[str, str]
    segments: tuple[types_pb2.Segment, ...]
    endpoints: types_pb2.Endpoints
    """Empty until the node serves."""
    segment_id: int = 0
    """Of the segment's folder, the same after a restart in it; 0: unknown."""
    take_over: bool = False
    """Replace a living process that runs as this node with another segment."""


class Agent:
    """A node's calls to its master."""

    def __init__(
        self,
        addresses: list[str],
        identity: Identity,
        principal: Principal | None,
        probe: Probe,
        kept_epoch: int = 0,
        kept_cluster: str = "",
        credentials: Callable[[], grpc.ChannelCredentials] | None = None,
    ) -> None:
        """Prepare the node's identity.

        Args:
            addresses: block addresses of the masters, in the order to try them.
            identity: of the node.
            principal: its credentials; None without authentication.
            probe: asks a block address for its control plane.
            kept_epoch: of the memory that the node takes over; 0 for none.
            kept_cluster: to which that memory belongs; empty for any.
            credentials: of TLS, for each new channel; None: plain.
        """
        self._addresses = addresses
        self._identity = identity
        self._principal = principal
        self._probe = probe
        self._kept_epoch = kept_epoch
        self._kept_cluster = kept_cluster
        self._credentials = credentials
        self._incarnation = secrets.randbits(64) or 1
        self._channel: grpc.aio.Channel | None = None
        self._stub: node_pb2_grpc.NodeRegistryAsyncStub | None = None
        self._master = ""
        self._over_link: Callable[[bytes, int], bytes] | None = None
        self._search: asyncio.Task[tuple[str, MasterHello]] | None = None
        self.session: Session | None = None
        """The registration; after prepare() one without a session id."""
        self._entered = False
        self._not_joined = Recurring(_log, "master_not_joined")
        self._not_heard = Recurring(_log, "heartbeat_failed")
        self._lost = Recurring(_log, "master_lost")
        self._not_moved = Recurring(_log, "new_master_not_found")
        self._not_told = Recurring(_log, "endpoint_not_verified")
        self.state = types_pb2.NODE_STATE_UNSPECIFIED
        self.snapshot_request = 0
        """Number of the last snapshot that an operator requested in this session; 0: none."""
        self.sample_level = 0
        """Of the uses in the next heartbeat."""
        self.problem = ""
        """Why the master tells nobody of this node's endpoint; empty: it does, or will soon."""

    def serve_at(self, endpoints: types_pb2.Endpoints) -> None:
        """Announce these endpoints from the next call on."""
        self._identity = replace(self._identity, endpoints=endpoints)

    def use_link(self, heartbeat: Callable[[bytes, int], bytes]) -> None:
        """Send heartbeats by this from now on, where it can: NodeCoreApi.heartbeat."""
        self._over_link = heartbeat

    def reconfigure(
        self, addresses: list[str], labels: dict[str, str], principal: Principal | None
    ) -> None:
        """Use other values from the next call on.

        Args:
            addresses: as in the constructor. When the master in use is no longer among them, the
                node moves to one that is, as soon as it answers.
            labels: of the node.
            principal: as in the constructor.
        """
        self._addresses = addresses
        self._identity = replace(self._identity, labels=labels)
        self._principal = principal

    async def prepare(self) -> Session:
        """Find the master and learn what the memory needs; retries until it succeeds.

        Raises:
            KvstoreError: Retrying cannot help: another process lives under this node id, for one.
        """
        return await self._until_joined(node_pb2.RegisterRequest.STAGE_PREPARE)

    async def join(self) -> Session:
        """Register, after prepare(); retries until it succeeds.

        Raises:
            KvstoreError: Retrying cannot help.
        """
        again = self._entered
        stage = node_pb2.RegisterRequest.STAGE_UNSPECIFIED
        entered = await self._until_joined(stage if again else node_pb2.RegisterRequest.STAGE_ENTER)
        self._entered = True
        return entered

    async def _until_joined(self, stage: node_pb2.RegisterRequest.Stage.ValueType) -> Session:
        failures = 0
        while True:
            try:
                joined = await self._join_once(stage)
            except KvstoreError as error:
                step = session.after_register(error.status, self._entered)
                if step is Step.GIVE_UP:
                    raise
                failures += 1
                wait_ms = session.backoff_ms(failures, random.random())
                self._not_joined.warn(error=error, retry_in_ms=wait_ms)
                await asyncio.sleep(wait_ms / 1000)
            else:
                self._not_joined.end()
                return joined

    async def _join_once(self, stage: node_pb2.RegisterRequest.Stage.ValueType) -> Session:
        if self._stub is None:
            await self._find_master()
        assert self._stub is not None
        before = self.session
        request = node_pb2.RegisterRequest(
            node_id=self._identity.node_id,
            incarnation=self._incarnation,
            node_epoch=before.node_epoch if before else 0,
            endpoints=self._identity.endpoints,
            labels=self._identity.labels,
            segments=self._identity.segments,
            cluster_id=before.cluster_id if before else self._kept_cluster,
            kept_epoch=self._kept_epoch,
            stage=stage,
            segment_id=self._identity.segment_id,
            take_over=self._identity.take_over,
        )
        try:
            reply = await self._call(self._stub.Register, request, _REGISTER_TIMEOUT_MS)
        except UnavailableError:
            await self._drop_channel()
            raise
        self.session = Session(
            session_id=reply.session_id,
            node_epoch=reply.node_epoch,
            cluster_id=reply.cluster_id,
            hash_secret=reply.hash_secret,
            master=self._master,
            heartbeat_ms=reply.heartbeat_interval_ms,
        )
        prepared = stage == node_pb2.RegisterRequest.STAGE_PREPARE
        self.sample_level = 0  # another master, maybe, which has seen no use yet
        _log.info(
            "prepared" if prepared else "registered",
            master=self._master,
            node_epoch=reply.node_epoch,
            master_epoch=reply.master_epoch,
        )
        return self.session

    async def _find_master(self) -> None:
        """Find a master and open its control plane."""
        self._use(*await self._ask())

    def _use(self, address: str, hello: MasterHello) -> None:
        self._master = address
        where = hello["grpc_endpoint"]
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(where, options=_CHANNEL_OPTIONS)
        else:
            tls = self._credentials()
            self._channel = grpc.aio.secure_channel(where, tls, options=_CHANNEL_OPTIONS)
        self._stub = node_pb2_grpc.NodeRegistryStub(self._channel)

    async def _ask(self) -> tuple[str, MasterHello]:
        """Probe the addresses in order; return the first that answers, with its hello."""
        principal = self._principal
        refusal: KvstoreError = UnavailableError("no master address is configured")
        for address in self._addresses:
            try:
                hello = await asyncio.to_thread(
                    self._probe,
                    address,
                    role=int(Role.NODE),
                    principal=principal.name if principal else "",
                    token=principal.secret.reveal() if principal else "",
                    timeout_ms=_CALL_TIMEOUT_MS,
                )
            except KvstoreError as error:
                # A refusal is more informative than no answer.
                if refusal.status is Status.Unavailable:
                    refusal = error
                continue
            return address, hello
        raise refusal

    async def heartbeats(
        self,
        load: Callable[[], Load],
        on_session: Callable[[Session], Awaitable[None]],
        linked: Callable[[], bool] = lambda: True,
    ) -> None:
        """Report until cancelled; re-register whenever the session has expired.

        Args:
            load: returns the contents of a heartbeat.
            on_session: called with every new session.
            linked: whether there is a link to the master. One that ends is mostly the first sign
                that there is another master to find.

        Raises:
            KvstoreError: The node cannot rejoin.
        """
        assert self.session is not None
        failures = unlinked = 0
        while True:
            status = await self._heartbeat(self.session, await asyncio.to_thread(load))
            failures = 0 if status is Status.Ok else failures + 1
            unlinked = 0 if linked() else unlinked + 1
            found = False
            match session.after_heartbeat(status, failures):
                case Step.REGISTER:
                    await on_session(await self.join())
                case Step.FIND_MASTER:
                    await self._drop_channel()
                    found = await self._find_again()
                case Step.CONTINUE if await self._leave_unlisted_master():
                    await on_session(await self.join())
            interval_ms, jitter = self.session.heartbeat_ms, random.random()
            if found:
                # It is told of this node at once, however long the search was.
                wait_ms = session.found_wait_ms(interval_ms, jitter)
            else:
                wait_ms = session.heartbeat_wait_ms(interval_ms, failures, unlinked, jitter)
            await _pause(wait_ms, linked)

    async def _find_again(self) -> bool:
        try:
            await self._find_master()
        except KvstoreError as error:
            self._lost.warn(error=error)
            return False
        self._lost.end()
        return True

    async def _leave_unlisted_master(self) -> bool:
        """Move to a listed master when the current one is no longer listed; whether it did.

        The search runs alongside the heartbeats: the old master is used until a new one answers.
        """
        assert self.session is not None
        if self._master in self._addresses:
            self._cancel_search()
            return False
        if self._search is None:
            self._search = asyncio.create_task(self._ask())
        if not self._search.done():
            return False
        search, self._search = self._search, None
        try:
            address, hello = search.result()
        except KvstoreError as error:
            self._not_moved.warn(error=error, still_at=self._master)
            return False
        if hello["cluster_id"] != self.session.cluster_id:
            why = f"{address} is the master of another cluster"
            self._not_moved.warn(error=why, still_at=self._master)
            return False
        self._not_moved.end()
        await self._drop_channel()
        self._use(address, hello)
        return True

    def _cancel_search(self) -> None:
        if self._search is not None:
            self._search.cancel()
            self._search = None

    async def _heartbeat(self, current: Session, load: Load) -> Status:
        if self._stub is None:
            return Status.Unavailable
        request = node_pb2.HeartbeatRequest(
            node_id=self._identity.node_id,
            session_id=current.session_id,
            capacity_bytes=load.capacity_bytes,
            used_bytes=load.used_bytes,
            index_entries=load.index_entries,
            index_limit=load.index_limit,
            endpoints=self._identity.endpoints,
            segments=self._identity.segments,
            refuses_writes=load.refuses_writes,
            activity=activity.to_wire(load.activity),
            labels=self._identity.labels,
            snapshot=load.snapshot,
            uses=load.uses,
            health=load.health,
            prefixes=load.prefixes,
        )
        try:
            reply = await self._answer_over_link(current, request)
            if reply is None:
                timeout_ms = max(_CALL_TIMEOUT_MS, current.heartbeat_ms)
                reply = await self._call(self._stub.Heartbeat, request, timeout_ms)
        except KvstoreError as error:
            self._not_heard.warn(error=error, status=error.status.name)
            return error.status
        self._not_heard.end()
        _log.debug(
            "heartbeat",
            state=types_pb2.NodeState.Name(reply.state),
            used_bytes=load.used_bytes,
            capacity_bytes=load.capacity_bytes,
        )
        self.state = reply.state
        self.snapshot_request = reply.snapshot_request
        self.sample_level = reply.sample_level
        self.problem = reply.endpoint_problem
        if self.problem:
            self._not_told.warn(error=self.problem)
        else:
            self._not_told.end()
        if reply.heartbeat_interval_ms:
            self.session = replace(current, heartbeat_ms=reply.heartbeat_interval_ms)
        return Status.Ok

    async def _answer_over_link(
        self, current: Session, request: node_pb2.HeartbeatRequest
    ) -> node_pb2.HeartbeatReply | None:
        """Send a heartbeat over the link, which costs the master least.

        None: a call has to follow. The link is not up, or the master is an older one, or does not
        answer there in time.
        """
        if self._over_link is None or self._master != current.master:
            return None
        try:
            timeout_ms = session.link_timeout_ms(current.heartbeat_ms)
            body = request.SerializeToString()
            reply = await asyncio.to_thread(self._over_link, body, timeout_ms)
            return node_pb2.HeartbeatReply.FromString(reply)
        except (UnavailableError, DecodeError):
            return None

    async def leave(self, returns_in_ms: int = 0) -> None:
        """Unregister, if the master can be reached; then close the channel.

        Args:
            returns_in_ms: when the next process on this memory is expected, for which clients and
                the master wait; 0: none is.
        """
        self._cancel_search()
        if self.session is not None and self.session.session_id and self._stub is not None:
            request = node_pb2.UnregisterRequest(
                node_id=self._identity.node_id,
                session_id=self.session.session_id,
                returns_in_ms=returns_in_ms,
            )
            try:
                await self._call(self._stub.Unregister, request)
            except KvstoreError as error:
                _log.info("unregister_failed", error=error)
        await self._drop_channel()

    async def _call(
        self,
        method: Callable[..., Awaitable[T]],
        request: object,
        timeout_ms: int = _CALL_TIMEOUT_MS,
    ) -> T:
        try:
            return await method(
                request, timeout=timeout_ms / 1000, metadata=bearer(self._principal)
            )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(
                error.code().name, error.details() or "", error.trailing_metadata()
            ) from None

    async def _drop_channel(self) -> None:
        self._stub = None
        if self._channel is not None:
            await self._channel.close()
            self._channel = None


async def _pause(wait_ms: int, linked: Callable[[], bool]) -> None:
    """Wait; a link that ends meanwhile ends it."""
    until_ms, was_linked = clock.monotonic_ms() + wait_ms, linked()
    while (left_ms := until_ms - clock.monotonic_ms()) > 0:
        await asyncio.sleep(min(left_ms, _LOOK_MS) / 1000)
        if was_linked and not linked():
            return
        was_linked = linked()
