"""A principal's scopes hold over every way to its objects, and on sessions that are open."""

from __future__ import annotations

import mmap
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status
from kvstore._proto import master_pb2
from tests.support.cluster import Cluster
from tests.support.control import DEFAULT, control, http_get, metric
from tests.support.processes import wait_for
from tests.support.wire import (
    ERROR,
    GET,
    PUT,
    Connection,
    LocalClient,
    Refusal,
    column,
    fields,
    hello_body,
    keys_field,
    number,
    unpack,
)

pytestmark = pytest.mark.cluster

SECRET = "{}-secret-0123456789"
SCOPES = {
    "whole": "",
    "reader": "verbs=read",
    "writer": "verbs=write keys=docs/",
    "docs": "verbs=read,write,list,watch keys=docs/",
    "drafts": "verbs=read keys=docs/ | verbs=read,write,remove keys=docs/drafts/",
    "engine": "verbs=read,write",
}


def line(name: str, scopes: str) -> str:
    return f"{name} client default {SECRET.format(name)} {scopes}\n"


class Scoped:
    """A master and a node whose principals have scopes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = folder / "tokens"
        self.write(SCOPES)
        admin = self.file("admin", "admin operator * admin-secret-0123456789\n")
        options = ["--auth-token-file", str(self.tokens)]
        self.cluster = Cluster(folder, options, str(admin))
        self.node = self.cluster.start_node("a", auth_token_file=str(self.tokens), rest_api="all")

    def file(self, name: str, content: str) -> Path:
        fresh = self.folder / f"{name}.new"
        fresh.touch(0o600)
        fresh.write_text(content)
        return fresh.replace(self.folder / name)

    def write(self, scopes: dict[str, str]) -> None:
        lines = [line(name, scope) for name, scope in scopes.items()]
        lines += ["a node * node-secret-0123456789\n", "admin operator * admin-secret-0123456789\n"]
        self.file("tokens", "".join(lines))

    def connect(self, who: str, **options: Any) -> kvstore.Store:
        # What the client's own line says of scopes counts for nothing.
        return self.cluster.connect(token_file=str(self.file(who, line(who, ""))), **options)

    def hello(self, who: str) -> tuple[bytes, bytes]:
        return hello_body(principal=who.encode(), token=b"x"), SECRET.format(who).encode()

    def session(self, who: str) -> Connection:
        """A session at the node, by TCP."""
        connection = Connection(str(self.node.ports["tcp"]))
        connection.handshake(*self.hello(who))
        return connection


@pytest.fixture(scope="module")
def scoped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scoped]:
    made = Scoped(tmp_path_factory.mktemp("scopes"))
    yield made
    made.cluster.close()


def path_of(store: kvstore.Store) -> tuple[Any, Any]:
    (peer,) = store.peers()
    return peer["path"], peer["cause"]


def test_a_reader_maps_memory_and_changes_nothing(scoped: Scoped) -> None:
    whole, reader = scoped.connect("whole"), scoped.connect("reader")
    assert whole.put("k", b"v") is Status.Ok
    assert reader.get("k") == b"v" and reader.exists("k")
    assert path_of(reader) == ("shm", None)
    for change in (
        lambda: reader.put("k2", b"v"),
        lambda: reader.remove("k"),
        lambda: reader.flush(),
        lambda: list(reader.keys("")),
    ):
        with pytest.raises(kvstore.PermissionDeniedError):
            change()
    assert whole.get("k2") is None and whole.get("k") == b"v"


def test_the_mapping_of_a_reader_cannot_write(scoped: Scoped) -> None:
    with Connection(str(scoped.node.ports["unix"])) as connection:
        connection.handshake(*scoped.hello("reader"))
        segment = connection.fds[0]
        with pytest.raises(PermissionError):
            mmap.mmap(segment, 4096)


def test_keys_that_are_not_ones_own_are_neither_read_nor_written(scoped: Scoped) -> None:
    whole, docs = scoped.connect("whole"), scoped.connect("docs")
    assert whole.put("docs/a", b"mine") is Status.Ok
    assert whole.put("chat/a", b"not mine") is Status.Ok
    assert docs.get("docs/a") == b"mine"
    assert docs.get("chat/a") is None and not docs.exists("chat/a")
    assert docs.batch_get(["docs/a", "chat/a"])[1] is None
    assert docs.put("docs/b", b"v") is Status.Ok
    with pytest.raises(kvstore.PermissionDeniedError):
        docs.put("chat/b", b"v")
    assert docs.batch_put(["docs/c", "chat/c"], [b"v"] * 2) == [Status.PermissionDenied] * 2
    assert whole.get("docs/b") == b"v" and whole.get("chat/b") is None
    assert whole.get("docs/c") is None
    assert sorted(docs.keys("docs/")) == ["docs/a", "docs/b"]
    with pytest.raises(kvstore.PermissionDeniedError):
        list(docs.keys(""))


def test_a_prefix_maps_no_memory_and_says_so(scoped: Scoped) -> None:
    for who in ("docs", "writer", "drafts"):
        store = scoped.connect(who)
        store.exists("docs/a")
        assert store.put("docs/drafts/x", b"v") in (Status.Ok, Status.AlreadyExists)
        assert path_of(store)[1] == "scope", who
        with Connection(str(scoped.node.ports["unix"])) as connection:
            connection.handshake(*scoped.hello(who))
            assert not connection.fds, who
    assert metric(scoped.node, "kvstore_attaches_refused_total", cause="scope") >= 3
    body, secret = scoped.hello("engine")
    engine = LocalClient(str(scoped.node.ports["unix"]), body, secret)
    with engine.connection, engine.segment:
        assert engine.slot >= 0


def test_a_verb_may_have_fewer_keys_than_another(scoped: Scoped) -> None:
    drafts = scoped.connect("drafts")
    assert scoped.connect("whole").put("docs/p", b"v") is Status.Ok
    assert drafts.get("docs/p") == b"v"
    with pytest.raises(kvstore.PermissionDeniedError):
        drafts.put("docs/q", b"v")
    assert drafts.put("docs/drafts/q", b"v") is Status.Ok
    assert drafts.remove("docs/drafts/q") is Status.Ok
    with pytest.raises(kvstore.PermissionDeniedError):
        drafts.remove("docs/p")


def test_a_refused_put_leaves_the_session_in_step(scoped: Scoped) -> None:
    """Its payload is discarded, whether it comes with the request or long after."""
    with scoped.session("docs") as connection:
        for key, wanted in ((b"chat/x", "denied"), (b"docs/x", "stored"), (b"chat/y", "denied")):
            data = b"x" * 300_000
            body = keys_field(1, [key]) + column(2, "Q", [len(data)]) + number(40, 5000, 4)
            if wanted == "stored":
                assert connection.statuses(PUT, body, data) == [0]
                continue
            with pytest.raises(Refusal) as refused:
                connection.call(PUT, body, data)
            assert refused.value.args[0] == Status.PermissionDenied
            assert "may not write key 1" in refused.value.args[1]
        body = keys_field(1, [b"docs/x", b"chat/x"]) + column(3, "Q", [1 << 20] * 2)
        with pytest.raises(Refusal, match="may not read key 2"):
            connection.call(GET, body)
        body = keys_field(1, [b"docs/x"]) + column(3, "Q", [1 << 20])
        assert unpack("i", fields(connection.call(GET, body).body).get(1, b"\0" * 4)) == [0]


def test_a_watch_tells_of_ones_own_keys(scoped: Scoped) -> None:
    whole = scoped.connect("whole")
    secret = SECRET.format("docs")
    with control(scoped.cluster.master, f"docs:{secret}") as plane:
        watch = plane.master.Watch(master_pb2.WatchRequest(namespace=DEFAULT), **plane.call)
        next(watch)
        for key in ("chat/w", "docs/w", "chat/w2", "docs/w2"):
            assert whole.put(key, b"v") is Status.Ok
        heard: list[str] = []
        while "docs/w2" not in heard:
            heard += [event.key for event in next(watch).events if event.key]
        watch.cancel()
    assert heard == ["docs/w", "docs/w2"]


def test_http_of_a_node_asks_with_the_callers_scopes(scoped: Scoped) -> None:
    whole = scoped.connect("whole", namespace="mooncake")
    assert whole.put("docs/h", b"v") is Status.Ok and whole.put("chat/h", b"v") is Status.Ok
    token = f"docs:{SECRET.format('docs')}"
    assert http_get(scoped.node, "/api/get/docs/h", token) == (200, "v")
    status, text = http_get(scoped.node, "/api/get/chat/h", token)
    assert status == 403 and "may not read key 1" in text


def test_a_change_of_scopes_ends_open_sessions(scoped: Scoped) -> None:
    whole = scoped.connect("whole")
    assert whole.put("chat/z", b"v") is Status.Ok
    with scoped.session("engine") as open_session:
        began = time.monotonic()
        scoped.write({**SCOPES, "engine": "verbs=read,write keys=docs/"})
        for daemon in (scoped.cluster.master, scoped.node):
            daemon.signal(signal.SIGHUP)
        told = open_session.receive()
        assert told.kind == ERROR and Refusal(told.body).args[0] == Status.Unauthenticated
        assert time.monotonic() - began < 2
    narrowed = scoped.connect("engine", transport="tcp")
    assert narrowed.get("chat/z") is None and whole.get("chat/z") == b"v"
    scoped.write(SCOPES)
    for daemon in (scoped.cluster.master, scoped.node):
        daemon.signal(signal.SIGHUP)
    wait_for(lambda: scoped.connect("engine").get("chat/z") == b"v", "the old scopes")
