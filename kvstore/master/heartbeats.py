"""Answers the heartbeats that came over the nodes' links, a batch at a time, in one thread.

As gRPC calls they would cost the master several times what is done for them. Who sends one was
admitted with its link, which ends with its token or its session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError
from prometheus_client.core import CounterMetricFamily, Metric

from kvstore._proto import node_pb2
from kvstore.errors import (
    InvalidArgumentError,
    KvstoreError,
    PermissionDeniedError,
    Status,
    error_for,
)
from kvstore.logging import EventLogger, RecurringByKey
from kvstore.master.core_api import CoreHeartbeat, MasterCoreApi
from kvstore.metrics import by_label

_log = EventLogger("master.heartbeats")
_WAIT_MS = 1000
_RETRY_S = 0.5


class Heartbeats:
    """The thread between the native queue and the handler."""

    def __init__(
        self,
        core: MasterCoreApi,
        handler: Callable[[node_pb2.HeartbeatRequest], node_pb2.HeartbeatReply],
    ) -> None:
        """Prepare the thread, which runs from start to stop; `handler` answers a heartbeat."""
        self._core = core
        self._handler = handler
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats")
        self._refusals = RecurringByKey(_log, "heartbeat_refused")
        self._counts: dict[str, int] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request_stop(self) -> None:
        """Let the thread end; call before the native side stops, which wakes it."""
        self._stop.set()

    def stop(self) -> None:
        """Stop the thread."""
        self.request_stop()
        self._thread.join()

    def families(self) -> Iterator[Metric]:
        """Collect the metric."""
        yield by_label(
            CounterMetricFamily(
                "kvstore_cluster_link_heartbeats",
                "Heartbeats that came over the nodes' links; others are gRPC calls.",
                labels=["status"],
            ),
            self._counts.copy(),
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                batch = self._core.take_heartbeats(_WAIT_MS)
                if batch:
                    self._core.answer_heartbeats([self._answer(one) for one in batch])
            except Exception:
                # A bug. Nodes whose heartbeats are not answered call the control plane.
                _log.exception("heartbeats_failed")
                self._stop.wait(_RETRY_S)

    def _answer(self, heartbeat: CoreHeartbeat) -> tuple[int, int, int, bytes]:
        link, request_id, node_id, session_id, request = heartbeat
        try:
            status, text = Status.Ok, self._reply_to(node_id, session_id, request)
        except KvstoreError as error:
            status, text = error.status, str(error).encode()
            _log.debug("heartbeat_failed", node_id=node_id, status=status.name)
            if status is Status.PermissionDenied:
                self._refusals.of(node_id).warn(node_id=node_id, reason=error)
        except Exception:
            _log.exception("heartbeat_failed", node_id=node_id)
            status, text = Status.Internal, b"internal error; see the master's log"
        self._counts[status.name] = self._counts.get(status.name, 0) + 1
        return link, request_id, int(status), text

    def _reply_to(self, node_id: str, session_id: int, request: bytes) -> bytes:
        try:
            wire = node_pb2.HeartbeatRequest.FromString(request)
        except DecodeError:
            raise InvalidArgumentError("not a HeartbeatRequest") from None
        if wire.node_id != node_id:
            raise PermissionDeniedError(f"this is the link of node {node_id!r}")
        if wire.session_id != session_id:
            raise error_for(Status.NotFound, "this is the link of another session; register again")
        return self._handler(wire).SerializeToString()
