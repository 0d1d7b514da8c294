"""The nodes' side of the control plane: each registers and reports with the node's own agent."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import grpc

from kvstore import _native
from kvstore._proto import node_pb2, node_pb2_grpc, types_pb2
from kvstore.activity import FAMILIES, OPERATIONS, Activity
from kvstore.errors import Status, UnavailableError, error_for
from kvstore.metrics import Latency
from kvstore.node.agent import Agent, Identity, Load, Session
from kvstore.node.core_api import MasterHello, Probe

CAPACITY_BYTES = 64 << 30
NODES_OF_A_RACK = 40
_THREADS = 64
_POLL_S = 0.01
_ACTIVITY = Activity(
    {(name, ("x",) * len(family.labels)): 1_000_000 for name, family in FAMILIES.items()},
    {name: Latency(tuple((1 << i, 1000) for i in range(1, 17)), 1_000_000) for name in OPERATIONS},
)
_LOAD = Load(
    capacity_bytes=CAPACITY_BYTES,
    used_bytes=CAPACITY_BYTES * 9 // 10,
    index_entries=50_000,
    index_limit=1 << 20,
    refuses_writes=False,
    activity=_ACTIVITY,
    health=node_pb2.NodeHealth(software_version="bench"),
)


class _Agent(Agent):
    """With a connection of its own, as in a process of its own."""

    def _use(self, address: str, hello: MasterHello) -> None:
        super()._use(address, hello)
        assert self._channel is not None
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.aio.insecure_channel(hello["grpc_endpoint"], options=options)
        self._stub = node_pb2_grpc.NodeRegistryStub(self._channel)


class Fleet:
    """Agents of many nodes, on a thread of their own."""

    def __init__(self, master: str, endpoint: str, count: int, tell: Callable[..., Any]) -> None:
        """Prepare them.

        Args:
            master: its block address.
            endpoint: where each of the nodes is reached.
            count: of the nodes.
            tell: passes a command to the generator of their links.
        """
        self._tell = tell
        self._agents = [
            _Agent([master], _identity(index, endpoint), None, cast(Probe, _native.probe_master))
            for index in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self.registered = 0
        self.heartbeats = 0
        self.over_links = 0
        """Of the heartbeats, those that were answered over the node's link."""
        self._loop = asyncio.new_event_loop()
        # A node has threads of its own.
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "fleet"))
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet")
        self._thread.start()

    def join(self) -> None:
        """Let all of them register, and report from then on; returns at once."""
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()

    async def _begin(self) -> None:
        for index, agent in enumerate(self._agents):
            self._tasks.append(asyncio.create_task(self._live(index, agent)))

    async def _live(self, index: int, agent: Agent) -> None:
        agent.use_link(partial(self._over_link, index))
        prepared = await agent.prepare()
        # In threads: an answer that comes late must keep no heartbeat waiting.
        await asyncio.to_thread(self._tell, f"prepared {index} {prepared.node_epoch}")

        async def entered(session: Session) -> None:
            await asyncio.to_thread(self._tell, f"session {index} {session.session_id}")

        await entered(await agent.join())
        self.registered += 1
        await agent.heartbeats(self._load, entered)

    def _over_link(self, index: int, request: bytes, timeout_ms: int) -> bytes:
        """Do what NodeCore.heartbeat does, over the link that the generator has."""
        self._tell(f"heartbeat {index} {request.hex()}")
        give_up = time.monotonic() + timeout_ms / 1000
        while not (heard := self._tell(f"heard {index}")):
            if time.monotonic() > give_up:
                raise UnavailableError("no answer in time")
            time.sleep(_POLL_S)
        if heard["code"] != Status.Ok:
            raise error_for(Status(heard["code"]), "refused over the link")
        self.over_links += 1
        return bytes.fromhex(heard["reply"])

    def _load(self) -> Load:
        self.heartbeats += 1
        return _LOAD

    def end(self, first: int, count: int) -> None:
        """These report nothing more, and do not say so."""

        async def cancel() -> None:
            for task in self._tasks[first : first + count]:
                task.cancel()

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result()

    def failures(self) -> list[str]:
        """Return what agents have ended with by themselves."""
        return [
            repr(task.exception())
            for task in self._tasks
            if task.done() and not task.cancelled() and task.exception()
        ]

    def close(self) -> None:
        """End all of them; idempotent."""
        if self._loop.is_closed():
            return
        done: Future[None] = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        done.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for agent in self._agents:
            await agent._drop_channel()  # without unregistering: the master is about to end
        await self._loop.shutdown_default_executor()


def _identity(index: int, endpoint: str) -> Identity:
    return Identity(
        node_id=f"node-{index:04}",
        labels={"host": f"host-{index:04}", "rack": f"rack-{index // NODES_OF_A_RACK:02}"},
        segments=(types_pb2.Segment(name="shared", capacity_bytes=CAPACITY_BYTES),),
        endpoints=types_pb2.Endpoints(tcp=endpoint),
        segment_id=index + 1,
    )
