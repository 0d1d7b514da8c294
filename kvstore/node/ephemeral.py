"""A node inside another program's process: anonymous memory, no files, lost at its exit."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import weakref
from functools import partial
from typing import Any

from kvstore import _native
from kvstore._proto import types_pb2
from kvstore.certificates import Certificates
from kvstore.config import NodeConfig
from kvstore.errors import UnavailableError
from kvstore.node import activity
from kvstore.node.agent import Agent, Identity, Load, Session
from kvstore.node.core_options import core_options
from kvstore.node.domains import plan
from kvstore.node.labels import labels_of
from kvstore.node.server import advertised
from kvstore.security import load_node_identity, load_principals
from kvstore.sizes import format_size

# Sentences, not events: they appear in other programs' logs.
_log = logging.getLogger("kvstore.node.ephemeral")
_agents_log = logging.getLogger("kvstore.node.agent")
_READY_S = 15.0
_READY_POLL_S = 0.02
_LEAVE_S = 5.0


class _Once(logging.Filter):
    """Passes each of the agent's events once, so as not to flood another program's log."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.msg not in self._said
        self._said.add(record.msg)
        return new


class EphemeralNode:
    """Such a node: a thread that calls the master, and the native node's own threads."""

    def __init__(self, config: NodeConfig) -> None:
        """Join the cluster; returns once the node serves reads and writes.

        Args:
            config: of the node. Keys about files have no effect.

        Raises:
            InvalidArgumentError: The token file names no principal of role node.
            UnavailableError: The node could not join in time.
            NoSpaceError: The segment does not fit the machine or the cgroup.
            KvstoreError: The master refused the node.
        """
        self._config = config
        self._core: Any = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._pid = os.getpid()
        path = config.auth_token_file
        self._principals = load_principals(path) if path else ()
        identity = load_node_identity(path, config.name()) if path else None
        self._principal = identity
        self._certificates = certificates = Certificates(config.tls)
        self._agent = Agent(
            config.addresses(),
            Identity(
                node_id=config.name(),
                labels=labels_of(config),
                segments=(
                    types_pb2.Segment(
                        name="memory",
                        tier=types_pb2.TIER_DRAM,
                        capacity_bytes=config.segment_size,
                    ),
                ),
                endpoints=types_pb2.Endpoints(),
                segment_id=secrets.randbits(64) or 1,
            ),
            identity,
            partial(_native.probe_master, tls=certificates.native),
            credentials=certificates.channel_credentials if certificates.on else None,
        )
        self._once = _Once()
        _agents_log.addFilter(self._once)
        self._thread = threading.Thread(target=self._run, name="kvstore-node", daemon=True)
        self._thread.start()
        if not self._ready.wait(_READY_S):
            self.close()
            raise UnavailableError(f"the node did not join {config.addresses()} in time")
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        _running.add(self)
        _log.warning(
            "this process runs node %s of the cluster with %s of anonymous memory: its objects "
            "are lost when this process exits",
            config.name(),
            format_size(config.segment_size),
        )

    @property
    def node_id(self) -> str:
        """Its name in the cluster."""
        return self._config.name()

    def close(self) -> None:
        """Leave the cluster; its objects are lost. Does nothing the second time, or in a child."""
        if os.getpid() != self._pid or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_READY_S)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
            if self._ready.is_set():
                _log.error("node %s of this process stopped: %s", self.node_id, error)
        finally:
            _agents_log.removeFilter(self._once)
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        try:
            prepared = await self._unless_stopped(asyncio.create_task(self._agent.prepare()))
            if prepared is not None:
                await self._serve_as(prepared)
        finally:
            await asyncio.wait_for(self._agent.leave(), _LEAVE_S)

    async def _serve_as(self, prepared: Session) -> None:
        options = core_options(
            self._config,
            prepared,
            self._principal,
            plan(self._config, self._principals),
            self._certificates.native,
        )
        options.principals = [principal.native() for principal in self._principals]
        options.unix_endpoint = f"unix:@kvstore-{os.getpid()}-{secrets.token_hex(8)}"
        core = await asyncio.to_thread(lambda: _native.NodeCore(options))
        self._core = core
        self._agent.use_link(core.heartbeat)
        try:
            tcp, unix = await asyncio.to_thread(core.start)
            self._agent.serve_at(types_pb2.Endpoints(tcp=advertised(tcp, self._config), unix=unix))
            session = await self._unless_stopped(asyncio.create_task(self._agent.join()))
            if session is None:
                return
            await self._renew(session)
            ready = asyncio.create_task(self._tell_when_ready())
            try:
                await self._unless_stopped(
                    asyncio.create_task(self._agent.heartbeats(self._load, self._renew))
                )
            finally:
                ready.cancel()
        finally:
            await asyncio.wait_for(self._agent.leave(), _LEAVE_S)
            objects = core.stats()["objects"]
            self._core = None
            # Not in the loop's executor, which accepts no work at the interpreter's exit; nothing
            # else waits for this loop.
            core.stop()
            core.close()
            _log.warning(
                "node %s of this process left the cluster; %d objects are lost",
                self.node_id,
                objects,
            )

    async def _unless_stopped(self, work: asyncio.Task[Any]) -> Any:
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finished = work.done()
        work.cancel()
        stopped.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)
        return work.result() if finished else None

    async def _tell_when_ready(self) -> None:
        while self._agent.state != types_pb2.NODE_STATE_ALIVE or self._core.link_state() != "up":
            await asyncio.sleep(_READY_POLL_S)
        self._ready.set()

    def _load(self) -> Load:
        """Collect the contents of a heartbeat."""
        core = self._core
        draining = self._agent.state == types_pb2.NODE_STATE_DRAINING
        core.set_draining(draining)
        stats = core.stats()
        return Load(
            capacity_bytes=stats["ready_bytes"],
            used_bytes=stats["used_bytes"],
            index_entries=stats["index_used"],
            index_limit=stats["index_limit"],
            refuses_writes=draining and not stats["reservations"] and not stats["puts_under_way"],
            activity=activity.of(stats, core.client_counters()),
        )

    async def _renew(self, session: Session) -> None:
        await asyncio.to_thread(self._core.set_session, session.session_id, [session.master])


_running: weakref.WeakSet[EphemeralNode] = weakref.WeakSet()


def _abandon_in_child() -> None:
    """A forked child has the node's memory but not its threads: it must never stop the node."""
    for node in list(_running):
        _native.leak(node)
        if node._core is not None:
            _native.leak(node._core)
    _running.clear()


os.register_at_fork(after_in_child=_abandon_in_child)
