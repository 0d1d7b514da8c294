"""A token that was taken away is worth nothing within two seconds, whatever is open with it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import kvstore
from kvstore import Status
from kvstore._proto import master_pb2
from tests.support.cluster import Cluster
from tests.support.control import DEFAULT, control, http_get, lookups_waiting, metric, refusal
from tests.support.processes import wait_for
from tests.support.wire import Connection, Refusal, hello_body

pytestmark = pytest.mark.cluster

LEFT, STAYED, NODE, ADMIN = (f"secret-number-{i}-of-the-test" for i in range(4))
ALL = {
    "left": f"left client default {LEFT}\n",
    "stayed": f"stayed client default {STAYED}\n",
    "node": f"a node * {NODE}\n",
    "admin": f"admin operator * {ADMIN}\n",
}
WITHIN_S = 2.0
REFUSED = ("UNAUTHENTICATED", int(Status.Unauthenticated))


class Guarded:
    """A master and a node with a token file that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = self.write("tokens", "".join(ALL.values()))
        admin = self.write("admin", ALL["admin"])
        self.cluster = Cluster(folder, ["--auth-token-file", str(self.file)], str(admin))
        self.cluster.start_node("a", auth_token_file=str(self.file))

    def write(self, name: str, text: str) -> Path:
        fresh = self.folder / f"{name}.new"
        fresh.touch(0o600)
        fresh.write_text(text)
        return fresh.replace(self.folder / name)

    def connect(self, who: str, **options: Any) -> kvstore.Store:
        return self.cluster.connect(token_file=str(self.write(who, ALL[who])), **options)

    def change(self, line: str) -> float:
        """Replace the line of "left" and have it read now; when."""
        self.write("tokens", "".join(ALL.values()).replace(ALL["left"], line))
        began = time.monotonic()
        for daemon in (self.cluster.master, *self.cluster.nodes.values()):
            daemon.signal(signal.SIGHUP)
        return began


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path)
    yield made
    made.cluster.close()


def ended_within(began: float, call: Callable[[], object], what: str) -> None:
    """Call until it is refused, which must come in time."""

    def refused() -> bool:
        try:
            call()
        except (kvstore.UnauthenticatedError, kvstore.PermissionDeniedError):
            return True
        return False

    wait_for(refused, f"{what} to end")
    took = time.monotonic() - began
    print(f"{what}: ended after {took:.2f} s")
    assert took < WITHIN_S, what


@pytest.mark.parametrize(
    "line",
    [
        "",
        "left client default another-secret-0123456\n",
        f"left client elsewhere {LEFT}\n",
        f"left node default {LEFT}\n",
    ],
    ids=["revoked", "other secret", "other tenants", "other role"],
)
def test_open_sessions_end(guarded: Guarded, line: str) -> None:
    tcp = guarded.cluster.cli("nodes")[0]["endpoints"]["tcp"]
    stayed = guarded.connect("stayed", transport="tcp")
    left = guarded.connect("left", transport="tcp")
    assert left.put("k", b"v") is Status.Ok and stayed.get("k") == b"v"
    raw = {}
    for where in (guarded.cluster.address, tcp):
        raw[where] = Connection(where)
        raw[where].handshake(hello_body(principal=b"left", token=b"x"), token=LEFT.encode())
    losses = metric(guarded.cluster.nodes["a"], "kvstore_link_losses_total")
    began = guarded.change(line)
    for connection in raw.values():  # nothing was asked: the server ends them
        with connection, pytest.raises(Refusal) as told:
            raise Refusal(connection.receive().body)
        assert told.value.code == Status.Unauthenticated
    took = time.monotonic() - began
    print(f"sessions: ended after {took:.2f} s")
    assert took < WITHIN_S
    ended_within(began, lambda: list(left.keys("")), "the store")
    assert not left.put("k2", b"v") and left.get("k") is None
    assert stayed.get("k") == b"v" and stayed.put("k3", b"v") is Status.Ok
    assert metric(guarded.cluster.nodes["a"], "kvstore_link_losses_total") == losses


def test_waits_and_leases_end(guarded: Guarded) -> None:
    left, stayed = guarded.connect("left"), guarded.connect("stayed")
    assert left.put("k", b"v") is Status.Ok
    lease = left.lookup(["k"], lease_ms=60_000)
    assert lease.length == 1
    assert metric(guarded.cluster.nodes["a"], "kvstore_leases") == 1
    ended: list[BaseException | int] = []

    def wait_for_ever() -> None:
        try:
            ended.append(left.lookup(["never"], wait_ms=60_000).length)
        except kvstore.KvstoreError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait_for_ever)
    waiting.start()
    wait_for(lambda: lookups_waiting(guarded.cluster.master) == 1, "the lookup to wait")
    began = guarded.change("")
    waiting.join(20)
    assert time.monotonic() - began < WITHIN_S, ended
    assert lookups_waiting(guarded.cluster.master) == 0
    wait_for(
        lambda: metric(guarded.cluster.nodes["a"], "kvstore_leases") == 0, "the lease to go", 2
    )
    assert stayed.get("k") == b"v"


def test_streams_and_waiting_calls_of_the_control_plane_end(guarded: Guarded) -> None:
    master, node = guarded.cluster.master, guarded.cluster.nodes["a"]
    assert guarded.connect("stayed").put("k", b"v") is Status.Ok
    with (
        control(master, f"left:{LEFT}") as left,
        control(master, f"stayed:{STAYED}") as stayed,
        ThreadPoolExecutor(2) as threads,
    ):
        request = master_pb2.WatchRequest(namespace=DEFAULT)
        watches = [plane.master.Watch(request, **plane.call) for plane in (left, stayed)]
        for watch in watches:
            next(watch)
        node.freeze()  # a remove waits for it
        remove = master_pb2.RemoveRequest(namespace=DEFAULT, keys=["k"], timeout_ms=8000)
        waiting = threads.submit(left.master.Remove, remove, **left.call)
        wait_for(lambda: metric(master, "kvstore_cluster_waits_pending") == 1, "the remove")
        began = guarded.change("")
        for call in (lambda: list(watches[0]), lambda: waiting.result(20)):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert refusal(caught.value) == REFUSED
            assert time.monotonic() - began < WITHIN_S
        node.signal(signal.SIGCONT)
        assert next(watches[1]).events, "the other one's watch goes on"
        watches[1].cancel()


def test_a_stream_that_nobody_reads_ends(guarded: Guarded) -> None:
    master = guarded.cluster.master
    store = guarded.connect("stayed")
    with control(master, f"left:{LEFT}") as left:
        call = {**left.call, "timeout": 300}
        watch = left.master.Watch(master_pb2.WatchRequest(namespace=DEFAULT), **call)
        next(watch)
        for batch in range(8):  # more than the transport takes
            keys = [f"{batch}/{i}/" + "k" * 1000 for i in range(2000)]
            assert all(store.batch_put(keys, [b"v"] * len(keys)))
        assert calls_of(guarded, "left") == ["Watch"]
        began = guarded.change("")
        wait_for(lambda: not calls_of(guarded, "left"), "the stream to end")
        assert time.monotonic() - began < WITHIN_S
        watch.cancel()


def calls_of(guarded: Guarded, principal: str) -> list[str]:
    status, text = http_get(guarded.cluster.master, "/sessions", f"admin:{ADMIN}")
    assert status == 200
    return [
        one["client"]
        for one in json.loads(text)["sessions"]
        if one["kind"] == "grpc" and one["principal"] == principal
    ]
