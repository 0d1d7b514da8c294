"""What was answered Ok is listed, described and located, whoever asks the master.

A node answers a put of a new key when its announcement is on the way. Here the node is the test: it
claims, and sends its announcement only when the master asks what it has sent.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from kvstore._proto import master_pb2, types_pb2
from tests.support import wire
from tests.support.cluster import Cluster
from tests.support.control import DEFAULT, Control, control

pytestmark = pytest.mark.cluster

_CLAIM, _CLAIM_REPLY, _ANNOUNCE = 0x80, 0x81, 0x84
_INCREMENTAL, _BEGIN, _END = 0, 1, 3
KEY, SIZE = "k", 77


class Link:
    """The link of a node that has nothing and answers nothing by itself."""

    def __init__(self, cluster: Cluster, plane: Control, node_id: str) -> None:
        reply = plane.register(node_id)
        self.session_id = reply.session_id
        self.connection = wire.Connection(plane.master.Status(_STATUS).block_endpoint)
        node = wire.number(6, 1, 1) + wire.number(12, reply.session_id, 8)
        node += wire.text(13, node_id.encode()) + wire.number(14, reply.node_epoch, 4)
        self.connection.handshake(wire.hello_body(extra=node))
        self._sent = 0
        for phase in (_BEGIN, _END):
            self.announce(phase)

    def announce(self, phase: int, key: bytes = b"", version: int = 0) -> None:
        self._sent += 1
        body = wire.number(1, self._sent, 8) + wire.number(2, phase, 1)
        if key:
            body += wire.text(3, b"default") + wire.keys_field(6, [key])
            body += wire.column(7, "Q", [version]) + wire.column(8, "Q", [SIZE])
            body += wire.column(9, "B", [0]) + wire.column(10, "B", [1]) + wire.column(11, "Q", [0])
        self.connection.send(wire.frame(_ANNOUNCE, body))

    def wait_for(self, kind: int) -> wire.Frame:
        while (got := self.connection.receive()).kind != kind:
            pass
        return got

    def claim(self, key: bytes) -> int:
        """Return the version that the master grants for a new key."""
        body = wire.text(1, b"default") + wire.column(4, "Q", [1]) + wire.keys_field(5, [key])
        body += wire.column(6, "Q", [SIZE]) + wire.column(7, "B", [0]) + wire.column(8, "B", [0])
        body += wire.column(9, "B", [1]) + wire.number(40, 60_000, 4)
        self.connection.send(wire.frame(_CLAIM, body))
        granted = wire.fields(self.wait_for(_CLAIM_REPLY).body)
        assert wire.unpack("i", granted[2]) == [0] and wire.unpack("B", granted[4]) == [1]
        (version,) = wire.unpack("Q", granted[3])
        return version

    def answer_fence(self, key: bytes, version: int) -> None:
        """Announce the key when the master asks what has been sent, and say so behind it."""
        ping = self.wait_for(wire.PING)
        self.announce(_INCREMENTAL, key, version)
        self.connection.send(wire.frame(wire.PONG, ping.body, request=ping.request))


_STATUS = master_pb2.StatusRequest()


@pytest.fixture
def plane(cluster: Cluster) -> Iterator[Control]:
    with control(cluster.master) as plane:
        yield plane


@pytest.fixture
def link(cluster: Cluster, plane: Control) -> Iterator[Link]:
    link = Link(cluster, plane, "paper")
    yield link
    link.connection.close()


def read(cluster: Cluster, path: str) -> str:
    url = f"http://127.0.0.1:{cluster.master.ports['http_port']}/{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


Ask = Callable[[Cluster, Control], bool]
ASKS: dict[str, Ask] = {
    "list": lambda _, plane: (
        list(plane.master.ListKeys(master_pb2.ListKeysRequest(namespace=DEFAULT)).keys) == [KEY]
    ),
    "inspect": lambda _, plane: (
        plane.master.Inspect(master_pb2.InspectRequest(namespace=DEFAULT, key=KEY)).size_bytes
        == SIZE
    ),
    "locate": lambda _, plane: (
        plane.master.Locate(master_pb2.LocateRequest(namespace=DEFAULT, keys=[KEY])).cluster_length
        == 1
    ),
    "get_all_keys": lambda cluster, _: read(cluster, "get_all_keys?namespace=") == f"{KEY}\n",
    "query_key": lambda cluster, _: (
        json.loads(read(cluster, f"query_key?namespace=&key={KEY}"))["size_"] == SIZE
    ),
    "explain": lambda cluster, _: (
        json.loads(read(cluster, f"console/api/explain?key={KEY}"))["object"]["size"] == SIZE
    ),
    "batch_query_keys": lambda cluster, _: bool(
        json.loads(read(cluster, f"batch_query_keys?namespace=&keys={KEY}"))["data"][KEY]["ok"]
    ),
}


@pytest.mark.parametrize("ask", ASKS)
def test_an_announcement_on_its_way_is_waited_for(
    cluster: Cluster, plane: Control, link: Link, ask: str
) -> None:
    version = link.claim(KEY.encode())
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(ASKS[ask], cluster, plane)
        link.answer_fence(KEY.encode(), version)
        assert answer.result(10)


def test_a_node_that_does_not_say_so_makes_it_unknown(
    cluster: Cluster, plane: Control, link: Link
) -> None:
    link.claim(KEY.encode())
    with pytest.raises(grpc.RpcError) as refused:
        ASKS["locate"](cluster, plane)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(urllib.error.HTTPError) as error:
        ASKS["query_key"](cluster, plane)
    assert error.value.code == 503
    error.value.close()
    elsewhere = types_pb2.Namespace(tenant="default", name="other")
    assert not plane.master.ListKeys(master_pb2.ListKeysRequest(namespace=elsewhere)).keys
