"""Nodes that exist on paper only: they register and send heartbeats as real ones do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from kvstore._proto import node_pb2, types_pb2
from tests.support.control import Control, control
from tests.support.processes import Daemon

_BEAT_S = 0.5


@dataclass
class Simulated:
    """A node's report."""

    node_id: str
    used_bytes: int = 0
    capacity_bytes: int = 1 << 40
    index_entries: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    counters: list[tuple[str, list[str], int]] = field(default_factory=list)
    health: node_pb2.NodeHealth | None = None
    session_id: int = 0
    beats: int = 0

    def register(self, plane: Control) -> None:
        reply = plane.register(
            self.node_id,
            endpoints=types_pb2.Endpoints(unix=f"unix:@{self.node_id}"),
            labels=self.labels,
        )
        self.session_id = reply.session_id

    def beat(self, plane: Control) -> None:
        request = node_pb2.HeartbeatRequest(
            node_id=self.node_id,
            session_id=self.session_id,
            capacity_bytes=self.capacity_bytes,
            used_bytes=self.used_bytes,
            index_entries=self.index_entries,
            index_limit=1_000_000,
            endpoints=types_pb2.Endpoints(unix=f"unix:@{self.node_id}"),
            activity=node_pb2.Activity(
                counters=[
                    node_pb2.Activity.Counter(family=family, labels=labels, value=value)
                    for family, labels, value in self.counters
                ]
            ),
            health=self.health,
        )
        try:
            plane.nodes.Heartbeat(request, **plane.call)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            self.register(plane)  # its time was over, on a machine that is busy
        self.beats += 1


@contextmanager
def simulated(master: Daemon, nodes: list[Simulated], **more: Any) -> Iterator[list[Simulated]]:
    """Keep nodes registered at a master, over its real control plane; `more` is for control()."""
    ended = threading.Event()
    with control(master, **more) as plane:
        for node in nodes:
            node.register(plane)
            node.beat(plane)

        def beats() -> None:
            while not ended.wait(_BEAT_S):
                for node in nodes:
                    node.beat(plane)

        thread = threading.Thread(target=beats, name="simulated nodes")
        thread.start()
        try:
            yield nodes
        finally:
            ended.set()
            thread.join()
