"""The control plane from outside: channels, stubs, and a node that exists on paper only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from kvstore._proto import node_pb2, types_pb2
from kvstore._proto.master_pb2_grpc import MasterStub
from kvstore._proto.node_pb2_grpc import NodeRegistryStub
from tests.support.processes import Daemon

DEFAULT = types_pb2.Namespace(tenant="default")


class Control:
    """Both services of one master, as one principal."""

    def __init__(self, channel: grpc.Channel, token: str | None) -> None:
        self.channel = channel
        self.master = MasterStub(channel)
        self.nodes = NodeRegistryStub(channel)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.call: dict[str, Any] = {"timeout": 10, "metadata": metadata}

    def register(self, node_id: str, **fields: Any) -> node_pb2.RegisterReply:
        values = {
            "node_id": node_id,
            "incarnation": 7,
            "endpoints": types_pb2.Endpoints(tcp="tcp://127.0.0.1:1"),
            **fields,
        }
        return self.nodes.Register(node_pb2.RegisterRequest(**values), **self.call)

    def heartbeat(
        self, node_id: str, session_id: int, tcp: str = "tcp://127.0.0.1:1"
    ) -> node_pb2.HeartbeatReply:
        request = node_pb2.HeartbeatRequest(
            node_id=node_id,
            session_id=session_id,
            capacity_bytes=1000,
            endpoints=types_pb2.Endpoints(tcp=tcp),
        )
        return self.nodes.Heartbeat(request, **self.call)


@contextmanager
def control(master: Daemon, token: str | None = None) -> Iterator[Control]:
    """Open the control plane of a master; `token` is "name:secret"."""
    with grpc.insecure_channel(master.ports["grpc"]) as channel:
        yield Control(channel, token)


def http_get(daemon: Daemon, path: str, token: str | None = None) -> tuple[int, str]:
    """Status and body of a GET on a process's HTTP port; `token` is "name:secret"."""
    url = f"http://127.0.0.1:{daemon.ports['http_port']}{path}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status), reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def readyz(address: str) -> dict[str, Any]:
    """What /readyz at an address says; nothing if nothing answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=2) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as refusal:
        with refusal:
            return dict(json.load(refusal))
    except OSError:
        return {}


def metric(daemon: Daemon, name: str, **labels: str) -> float:
    """Sum of a process's samples of this name that have these labels; there must be one."""
    found, text = _samples(daemon, name, labels)
    assert found, f"no {name} {labels} in:\n{text}"
    return sum(found)


def _samples(daemon: Daemon, name: str, labels: Mapping[str, str]) -> tuple[list[float], str]:
    text = http_get(daemon, "/metrics")[1]
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found, text


def heartbeats(master: Daemon) -> tuple[int, int]:
    """How many heartbeats came over links, and how many as calls."""
    over_links, _ = _samples(master, "kvstore_cluster_link_heartbeats_total", {})
    calls, _ = _samples(master, "kvstore_cluster_rpc_total", {"method": "Heartbeat"})
    return int(sum(over_links)), int(sum(calls))


def lookups_waiting(master: Daemon) -> int:
    """How many lookups with wait_ms the master has parked."""
    return int(metric(master, "kvstore_cluster_lookups_waiting"))


def ready(daemon: Daemon, token: str | None = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of /readyz."""
    status, body = http_get(daemon, "/readyz", token)
    return status, json.loads(body)


def refusal(error: grpc.RpcError) -> tuple[str, int]:
    """Return the gRPC status name and the kvstore status of a failed call."""
    found = {item.key: str(item.value) for item in error.trailing_metadata() or ()}
    return error.code().name, int(found.get("kvstore-status", 0))
