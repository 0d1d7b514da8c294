"""The gRPC servicers: authenticate, check permissions, run handlers in threads, map exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc

from kvstore import clock, limits
from kvstore._proto import master_pb2, master_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from kvstore.audit import Record
from kvstore.errors import (
    TABLE,
    InternalError,
    KvstoreError,
    Status,
    UnauthenticatedError,
)
from kvstore.logging import EventLogger, Recurring, RecurringByKey
from kvstore.master import convert
from kvstore.master.core_api import MasterCoreApi
from kvstore.master.handlers import MasterHandlers, NodeHandlers
from kvstore.master.open_calls import OpenCall, OpenCalls
from kvstore.master.recorded import recorded
from kvstore.master.watches import Watches
from kvstore.scopes import ADMINISTRATION, LISTING, Need, Verb
from kvstore.security import ANYBODY, EVERY_TENANT, Guard, Principal, Role
from kvstore.tasks import called_back

_log = EventLogger("master.rpc")
_QUICK_THREADS = 8
# Registrations wait for the disk, and are written together: after a restart of the master, those of
# every node. Heartbeats must not wait behind them.
_DISK_THREADS = 64
_NODE = (Role.NODE,)
_CLIENT = (Role.CLIENT,)
_OPERATOR = (Role.OPERATOR,)
# By whoever watches a drain, reads page by page, or comes back with a cursor.
_REPEATED = frozenset({"Drain", "ListKeys", "ListNamespaces", "Watch"})
_EVERYBODY = (Role.CLIENT, Role.NODE, Role.OPERATOR)
_READ, _LIST, _REMOVE, _WATCH = Verb.READ, Verb.LIST, Verb.REMOVE, Verb.WATCH

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """Shared by the servicers: authentication, threads, errors, counters."""

    def __init__(self, guard: Guard, record: Record) -> None:
        """Start with the principals that may call, and the audit log."""
        self._guard = guard
        self._record = record
        self._quick = ThreadPoolExecutor(_QUICK_THREADS, "rpc")
        self._disk = ThreadPoolExecutor(_DISK_THREADS, "rpc-disk")
        self._refusals = RecurringByKey(_log, "call_refused")
        self.open = OpenCalls()
        self.counts: dict[tuple[str, str], int] = {}
        """Finished calls by (method, status name)."""

    async def run(
        self,
        context: Context,
        method: str,
        roles: Iterable[Role],
        handler: Callable[[], T],
        *,
        tenant: str | None = None,
        node_id: str | None = None,
        need: Need | None = None,
        admitted: Callable[[Principal], None] = lambda principal: None,
        first: Callable[[], Awaitable[None]] | None = None,
        deed: Mapping[str, object] | None = None,
        writes: bool = False,
    ) -> T:
        """Answer a call.

        Args:
            context: of the call.
            method: its name, for the counters.
            roles: that may call it.
            handler: makes the reply; runs in a thread.
            tenant: owner of the objects that it accesses.
            node_id: for which node the caller speaks.
            need: what it does with keys.
            admitted: called with the caller, before the handler.
            first: awaited before the handler.
            deed: what the audit log tells of its arguments; None: it tells nothing of this call.
            writes: whether the handler waits for the disk.

        Returns:
            The handler's reply. An exception aborts the call with its gRPC status.
        """

        def admit() -> Principal:
            principal = self.admit(context, roles, tenant, node_id, need)
            admitted(principal)
            return principal

        async def answer(call: OpenCall) -> T:
            if first is not None:
                await first()
            return await self._run_in(self._disk if writes else self._quick, handler)

        return await self._run(context, method, tenant, admit, answer, deed)

    async def run_waiting(
        self,
        context: Context,
        method: str,
        handler: Callable[[str, Callable[[T], None]], None],
        *,
        tenant: str,
        need: Need,
        deed: Mapping[str, object] | None = None,
    ) -> T:
        """Answer a client's call that waits for other machines; no thread waits with it.

        Args:
            context: of the call.
            method: its name, for the counters.
            handler: takes the principal's name (empty without authentication) and a function that
                it calls with the reply, later, from any thread; runs in a thread itself.
            tenant: owner of the objects that it changes.
            need: as in run.
            deed: as in run.

        Returns:
            The reply. An exception aborts the call with its gRPC status.
        """

        async def answer(call: OpenCall) -> T:
            name = "" if call.principal is ANYBODY else call.principal.name
            reply: asyncio.Future[T]
            reply, done = called_back()
            await self._run_in(self._quick, partial(handler, name, done))
            return await call.unless_ended(reply)

        def admit() -> Principal:
            return self.admit(context, _CLIENT, tenant, need=need)

        return await self._run(context, method, tenant, admit, answer, deed)

    async def _run(
        self,
        context: Context,
        method: str,
        tenant: str | None,
        admit: Callable[[], Principal],
        answer: Callable[[OpenCall], Awaitable[T]],
        deed: Mapping[str, object] | None,
    ) -> T:
        began_ns = clock.monotonic_ns()
        who = ""
        try:
            principal = admit()
            who = principal.name
            with self.open.open(principal, method, _peer(context), tenant) as call:
                reply = await answer(call)
        except KvstoreError as error:
            self.audit(context, method, who, error.status, deed)
            await self.abort(context, method, error)
        except asyncio.CancelledError:  # the caller has left; what it asked for may be done
            self.audit(context, method, who, Status.Closed, deed)
            raise
        except Exception:
            _log.exception("call_failed", method=method)
            self.audit(context, method, who, Status.Internal, deed)
            await self.abort(context, method, InternalError("internal error; see the master's log"))
        self._count(method, Status.Ok)
        flushed = reply.status if isinstance(reply, master_pb2.FlushReply) else Status.Ok
        self.audit(context, method, who, Status(flushed), deed)
        took_us = (clock.monotonic_ns() - began_ns) // 1000
        _log.debug("call", method=method, peer=context.peer(), took_us=took_us)
        return reply

    def admit(
        self,
        context: Context,
        roles: Iterable[Role],
        tenant: str | None,
        node_id: str | None = None,
        need: Need | None = None,
    ) -> Principal:
        """Identify the caller and check its permissions."""
        given, peer = _authorization(context), _peer(context)
        return self._guard.admit(given, peer, roles, tenant, node_id, need)

    def audit(
        self,
        context: Context,
        method: str,
        who: str,
        outcome: Status,
        deed: Mapping[str, object] | None,
    ) -> None:
        """Note a call in the audit log, unless it tells nothing of it."""
        if deed is not None:
            self._record(
                method,
                principal=who or self._guard.claimed(_authorization(context)),
                peer=_peer(context),
                via="grpc",
                outcome=outcome,
                arguments=deed,
                repeats=outcome is not Status.Ok or method in _REPEATED,
            )

    def end_revoked(self) -> None:
        """End the calls of principals that are not what they were when they called."""
        error = UnauthenticatedError("this token was revoked or changed")
        self.open.end_where(lambda call: not self._guard.still_admits(call.principal), error)

    async def abort(self, context: Context, method: str, error: KvstoreError) -> NoReturn:
        """End a call with an error."""
        self._count(method, error.status)
        _log.debug("call_failed", method=method, peer=context.peer(), status=error.status.name)
        refused = error.status in (Status.Unauthenticated, Status.PermissionDenied)
        if refused or method == "Register":
            self._refused(method, context.peer()).warn(
                method=method, peer=context.peer(), reason=error
            )
        code = grpc.StatusCode[TABLE[error.status].grpc]
        trailing = (("kvstore-status", str(int(error.status))),)
        await context.abort(code, str(error), trailing)
        raise AssertionError("abort raises")

    def _refused(self, method: str, peer: str) -> Recurring:
        """Return the warning for a method and a host: each is repeated once a minute only."""
        return self._refusals.of((method, peer.rpartition(":")[0]))

    async def _run_in(self, threads: ThreadPoolExecutor, handler: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, handler)

    def _count(self, method: str, status: Status) -> None:
        key = (method, status.name)
        self.counts[key] = self.counts.get(key, 0) + 1

    def close(self) -> None:
        """Stop the threads."""
        self._quick.shutdown()
        self._disk.shutdown()


def _space(namespace: types_pb2.Namespace) -> dict[str, object]:
    """Return a namespace as the audit log names it."""
    return {"tenant": namespace.tenant, "namespace": namespace.name}


def _authorization(context: Context) -> str | None:
    metadata = {name: value for name, value in context.invocation_metadata() or ()}
    given = metadata.get("authorization")
    return given if given is None else str(given)


def _peer(context: Context) -> str:
    """Return the caller's address as other ports write it: gRPC's is ipv6:%5B::1%5D:4711."""
    return unquote(context.peer()).removeprefix("ipv4:").removeprefix("ipv6:")


class NodeRegistryService(node_pb2_grpc.NodeRegistryServicer):
    """Service for nodes."""

    def __init__(self, calls: Calls, handlers: NodeHandlers) -> None:
        """Use these handlers."""
        self._run = calls.run
        self._do = handlers

    async def Register(
        self, request: node_pb2.RegisterRequest, context: Context
    ) -> node_pb2.RegisterReply:
        """Open a session."""
        callers: list[Principal] = []
        return await self._run(
            context,
            "Register",
            _NODE,
            lambda: self._do.register(request, callers[0]),
            node_id=request.node_id,
            admitted=callers.append,
            deed={"node_id": request.node_id, "tcp": request.endpoints.tcp},
            writes=True,
        )

    async def Heartbeat(
        self, request: node_pb2.HeartbeatRequest, context: Context
    ) -> node_pb2.HeartbeatReply:
        """Keep a session alive."""
        return await self._as_node(context, "Heartbeat", self._do.heartbeat, request)

    async def Unregister(
        self, request: node_pb2.UnregisterRequest, context: Context
    ) -> node_pb2.UnregisterReply:
        """End a session."""
        deed = {"node_id": request.node_id}
        return await self._as_node(context, "Unregister", self._do.unregister, request, deed)

    async def _as_node(
        self,
        context: Context,
        method: str,
        handler: Callable[[Any], T],
        request: Any,
        deed: Mapping[str, object] | None = None,
    ) -> T:
        """Answer a call of a node whose principal may be that node."""
        work = partial(handler, request)
        return await self._run(context, method, _NODE, work, node_id=request.node_id, deed=deed)


class MasterService(master_pb2_grpc.MasterServicer):
    """Service for operators and routers."""

    def __init__(
        self,
        calls: Calls,
        handlers: MasterHandlers,
        core: MasterCoreApi,
        watches: Watches,
        master_epoch: int,
    ) -> None:
        """Use these handlers, and the core for the events of the watches."""
        self._calls = calls
        self._run = calls.run
        self._do = handlers
        self._core = core
        self._watches = watches
        self._master_epoch = master_epoch

    def _recorded(
        self, namespace: types_pb2.Namespace, keys: Sequence[str] = ()
    ) -> Callable[[], Awaitable[None]]:
        """Return what waits until answered puts of these keys (none: of any) are recorded."""

        async def wait() -> None:
            await recorded(self._core, *convert.check_namespace(namespace), keys)

        return wait

    async def Locate(
        self, request: master_pb2.LocateRequest, context: Context
    ) -> master_pb2.LocateReply:
        """Return prefix lengths by node."""
        tenant = request.namespace.tenant
        work = partial(self._do.locate, request)
        first, need = self._recorded(request.namespace, request.keys), Need(_READ, request.keys)
        return await self._run(
            context, "Locate", _CLIENT, work, tenant=tenant, need=need, first=first
        )

    async def ListNodes(
        self, request: master_pb2.ListNodesRequest, context: Context
    ) -> master_pb2.ListNodesReply:
        """List every known node."""
        return await self._run(context, "ListNodes", _EVERYBODY, self._do.list_nodes)

    async def Drain(
        self, request: master_pb2.DrainRequest, context: Context
    ) -> master_pb2.DrainReply:
        """Start, observe or cancel a drain, or look at what one would move."""
        # Looking changes nothing.
        done = {"node_id": request.node_id, "cancel": request.cancel}
        deed = None if request.look else done
        return await self._of_all(context, "Drain", partial(self._do.drain, request), deed)

    async def Forget(
        self, request: master_pb2.ForgetRequest, context: Context
    ) -> master_pb2.ForgetReply:
        """Drop a dead node."""
        deed = {"node_id": request.node_id}
        return await self._of_all(context, "Forget", partial(self._do.forget, request), deed)

    async def Snapshot(
        self, request: master_pb2.SnapshotRequest, context: Context
    ) -> master_pb2.SnapshotReply:
        """Request a snapshot from a node, or report its progress."""
        work = partial(self._do.snapshot, request)
        # With a number it only asks for the progress of that one.
        deed = None if request.request else {"node_id": request.node_id}
        return await self._of_all(context, "Snapshot", work, deed)

    async def _of_all(
        self,
        context: Context,
        method: str,
        work: Callable[[], T],
        deed: Mapping[str, object] | None,
    ) -> T:
        """Answer a call of an operator that concerns the objects of every tenant."""
        return await self._run(
            context, method, _OPERATOR, work, tenant=EVERY_TENANT, need=ADMINISTRATION, deed=deed
        )

    async def Flush(
        self, request: master_pb2.FlushRequest, context: Context
    ) -> master_pb2.FlushReply:
        """Start a new epoch of a namespace."""
        tenant = request.namespace.tenant
        work = partial(self._do.flush, request)
        deed = _space(request.namespace)
        need = Need(_REMOVE, prefix="")
        return await self._calls.run_waiting(
            context, "Flush", work, tenant=tenant, need=need, deed=deed
        )

    async def Remove(
        self, request: master_pb2.RemoveRequest, context: Context
    ) -> master_pb2.RemoveReply:
        """Remove keys."""
        tenant = request.namespace.tenant
        work = partial(self._do.remove, request)
        need = Need(_REMOVE, request.keys)
        deed = {**_space(request.namespace), "keys": len(request.keys)}
        return await self._calls.run_waiting(
            context, "Remove", work, tenant=tenant, need=need, deed=deed
        )

    async def ListKeys(
        self, request: master_pb2.ListKeysRequest, context: Context
    ) -> master_pb2.ListKeysReply:
        """Read a page of keys."""
        tenant = request.namespace.tenant
        work = partial(self._do.list_keys, request)
        first, need = self._recorded(request.namespace), Need(_LIST, prefix=request.prefix)
        return await self._run(
            context,
            "ListKeys",
            _CLIENT,
            work,
            tenant=tenant,
            need=need,
            first=first,
            deed={**_space(request.namespace), "prefix": request.prefix},
        )

    async def Inspect(
        self, request: master_pb2.InspectRequest, context: Context
    ) -> master_pb2.InspectReply:
        """Describe an object."""
        tenant = request.namespace.tenant
        work = partial(self._do.inspect, request)
        keys = [request.key]
        first, need = self._recorded(request.namespace, keys), Need(_READ, keys)
        return await self._run(
            context, "Inspect", _CLIENT, work, tenant=tenant, need=need, first=first
        )

    async def Status(
        self, request: master_pb2.StatusRequest, context: Context
    ) -> master_pb2.StatusReply:
        """Summarize the cluster's state."""
        return await self._run(context, "Status", _EVERYBODY, self._do.status)

    async def Handover(
        self, request: master_pb2.HandoverRequest, context: Context
    ) -> master_pb2.HandoverReply:
        """End this master, if another one stands by."""
        return await self._of_all(context, "Handover", self._do.hand_over, {})

    async def Reuse(
        self, request: master_pb2.ReuseRequest, context: Context
    ) -> master_pb2.ReuseReply:
        """Return the curve of reuse distances."""
        return await self._run(context, "Reuse", _EVERYBODY, self._do.reuse)

    async def ListNamespaces(
        self, request: master_pb2.ListNamespacesRequest, context: Context
    ) -> master_pb2.ListNamespacesReply:
        """List namespaces; those of every tenant for operators alone."""
        roles = _CLIENT if request.tenant else _OPERATOR
        tenant = request.tenant or EVERY_TENANT
        work = partial(self._do.list_namespaces, request)
        return await self._run(
            context,
            "ListNamespaces",
            roles,
            work,
            tenant=tenant,
            need=LISTING,
            deed={"tenant": tenant},
        )

    async def Watch(
        self, request: master_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[master_pb2.WatchReply]:
        """Stream events until the caller disconnects."""
        deed = _space(request.namespace) if request.HasField("namespace") else {}
        try:
            wanted = convert.watch_filter(request)
            tenant = request.namespace.tenant if request.HasField("namespace") else None
            principal = self._calls.admit(context, _CLIENT, tenant, need=Need(_WATCH))
            with (
                self._watches.opened(principal),
                self._calls.open.open(principal, "Watch", _peer(context), tenant) as call,
            ):
                self._calls.audit(context, "Watch", principal.name, Status.Ok, deed)
                async for reply in self._watch(request, wanted, call):
                    yield reply
        except KvstoreError as error:
            self._calls.audit(context, "Watch", "", error.status, deed)
            await self._calls.abort(context, "Watch", error)

    async def _watch(
        self, request: master_pb2.WatchRequest, wanted: tuple[str, str] | None, call: OpenCall
    ) -> AsyncIterator[master_pb2.WatchReply]:
        """Read events until the call is ended."""
        cursor = convert.cursor_from(self._master_epoch, request.cursor)
        first = True
        while True:
            # Looking at the ring takes microseconds: not worth a thread.
            events, cursor, resync = self._core.poll_events(cursor, limits.MAX_WATCH_EVENTS)
            chosen = convert.events_to(events, wanted, call.principal)
            if chosen or resync or first:
                yield master_pb2.WatchReply(
                    events=chosen,
                    cursor=convert.cursor_to(self._master_epoch, cursor),
                    resync=resync,
                )
                first = False
            if len(events) < limits.MAX_WATCH_EVENTS:
                await call.unless_ended(self._watches.changed(cursor))
            call.check()
