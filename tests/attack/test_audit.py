"""The audit log tells what was done and tried; sessions are listed and ended."""

from __future__ import annotations

import json
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest

import kvstore
from kvstore import Status
from kvstore._proto import master_pb2, types_pb2
from tests.support.cluster import Cluster
from tests.support.control import control, metric
from tests.support.processes import Daemon, wait_for
from tests.support.tool import run

pytestmark = pytest.mark.cluster

SECRETS = {
    name: f"secret-of-{name}-0123456789" for name in ("engine", "a", "admin", "local", "evil")
}
TOKENS = f"""\
engine client default {SECRETS["engine"]}
a node * {SECRETS["a"]}
admin operator * {SECRETS["admin"]}
local operator default {SECRETS["local"]}
evil node * {SECRETS["evil"]}
"""


class Audited:
    """A master and a node with tokens and audit logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {}
        for name, text in (
            ("tokens", TOKENS),
            *zip(SECRETS, TOKENS.splitlines(keepends=True), strict=True),
        ):
            self.files[name] = folder / f"{name}.tokens"
            self.files[name].touch(0o600)
            self.files[name].write_text(text)
        tokens = str(self.files["tokens"])
        self.logs = {name: folder / f"{name}.audit" for name in ("master", "a")}
        config = folder / "master.json"
        config.write_text(json.dumps({"audit_log": str(self.logs["master"])}))
        options = ["--auth-token-file", tokens, "--config", str(config)]
        self.cluster = Cluster(folder, options, str(self.files["admin"]))
        self.node = self.cluster.start_node(
            "a", auth_token_file=tokens, rest_api="all", audit_log=str(self.logs["a"])
        )

    def connect(self, who: str, **options: Any) -> kvstore.Store:
        return self.cluster.connect(token_file=str(self.files[who]), **options)

    def lines(self, process: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.logs[process].read_text().splitlines()]

    def line(self, process: str, call: str, **fields: Any) -> dict[str, Any]:
        """Wait for a line."""

        def found() -> dict[str, Any] | None:
            return next(
                (
                    line
                    for line in self.lines(process)
                    if line["call"] == call and fields.items() <= line.items()
                ),
                None,
            )

        return wait_for(found, f"the line {call} {fields} in {self.logs[process].read_text()}")

    def http(self, daemon: Daemon, method: str, path: str, who: str) -> Any:
        url = f"http://127.0.0.1:{daemon.ports['http_port']}{path}"
        request = urllib.request.Request(url, method=method)
        request.add_header("Authorization", f"Bearer {who}:{SECRETS[who]}")
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[Audited]:
    made = Audited(tmp_path)
    yield made
    made.cluster.close()


def test_every_way_of_a_flush_is_told(audited: Audited) -> None:
    store = audited.connect("engine", namespace="m")
    assert store.put("k", b"bytes-of-the-object") is Status.Ok
    assert store.flush() is Status.Ok
    by_block = audited.line("master", "Flush", via="block")
    assert (by_block["principal"], by_block["outcome"]) == ("engine", "Ok")
    assert by_block["arguments"]["namespace"] == "m" and by_block["peer"].startswith("127.0.0.1:")
    audited.cluster.cli("flush", "--namespace", "m")
    by_grpc = audited.line("master", "Flush", via="grpc")
    assert (by_grpc["principal"], by_grpc["outcome"]) == ("admin", "Ok")
    assert by_grpc["arguments"] == {"tenant": "default", "namespace": "m"}
    audited.http(audited.node, "DELETE", "/api/remove_all?namespace=m", "engine")
    by_rest = audited.line("a", "remove_all", via="http")
    assert (by_rest["principal"], by_rest["outcome"]) == ("engine", "Ok")
    wait_for(
        lambda: sum(line["call"] == "Flush" for line in audited.lines("master")) == 3, "the third"
    )
    written = metric(audited.cluster.master, "kvstore_audit_lines_total", result="written")
    assert written == len(audited.lines("master"))
    everything = "".join(path.read_text() for path in audited.logs.values())
    assert "bytes-of-the-object" not in everything
    assert not any(secret in everything for secret in SECRETS.values())


def test_who_leaves_before_the_answer_is_told(audited: Audited) -> None:
    assert audited.connect("engine", namespace="m").put("k", b"v") is Status.Ok
    audited.node.freeze()  # the flush waits for it
    with control(audited.cluster.master, f"engine:{SECRETS['engine']}") as plane:
        namespace = types_pb2.Namespace(tenant="default", name="m")
        request = master_pb2.FlushRequest(namespace=namespace, timeout_ms=8000)
        flush = plane.master.Flush.future(request, **plane.call)
        wait_for(
            lambda: metric(audited.cluster.master, "kvstore_cluster_waits_pending") == 1,
            "the flush to wait",
        )
        flush.cancel()
    assert audited.line("master", "Flush", via="grpc")["outcome"] == "Closed"
    audited.node.signal(signal.SIGCONT)


def test_removes_lists_pins_and_watches_are_told_and_reads_are_not(audited: Audited) -> None:
    store = audited.connect("engine", namespace="m")
    keys = [f"docs/{i}" for i in range(3)]
    assert all(store.batch_put(keys, [b"v"] * 3, pin="soft"))
    assert store.batch_get(keys) == [b"v"] * 3 and store.prefix_length(keys) == 3
    assert store.unpin(keys[0]) is Status.Ok
    assert sorted(store.keys("docs/")) == keys
    assert store.remove(keys[0]) is Status.Ok
    with control(audited.cluster.master, f"engine:{SECRETS['engine']}") as plane:
        space = types_pb2.Namespace(tenant="default", name="m")
        for _ in range(3):
            plane.master.ListKeys(master_pb2.ListKeysRequest(namespace=space), **plane.call)
        plane.master.Remove(master_pb2.RemoveRequest(namespace=space, keys=keys), **plane.call)
        watch = plane.master.Watch(master_pb2.WatchRequest(namespace=space), **plane.call)
        next(watch)
        watch.cancel()
    audited.line("master", "Watch", outcome="Ok", principal="engine")
    by_block = audited.line("master", "Remove", via="block")
    assert by_block["arguments"]["keys"] == 1 and by_block["principal"] == "engine"
    assert audited.line("master", "Remove", via="grpc")["arguments"]["keys"] == 3
    assert audited.line("master", "SetPin", via="block")["arguments"]["keys"] == 1
    assert audited.line("master", "List", via="block")["arguments"]["prefix"] == "docs/"
    told = [line["call"] for line in audited.lines("master") if line["principal"] == "engine"]
    assert told.count("ListKeys") == 1, "what repeats is told once a minute"
    assert {*told} == {"SetPin", "List", "Remove", "ListKeys", "Watch"}
    with pytest.raises(kvstore.UnauthenticatedError):
        wrong = audited.folder / "wrong"
        wrong.touch(0o600)
        wrong.write_text("engine client default a-guess-of-its-secret\n")
        audited.cluster.connect(token_file=str(wrong))
    refused = audited.line("master", "Refused", outcome="Unauthenticated")
    assert refused["principal"] == "engine" and refused["peer"] == "127.0.0.1"


def test_administration_and_refused_attempts_are_told(audited: Audited) -> None:
    assert audited.line("master", "Register")["principal"] == "a"
    with control(audited.cluster.master, f"local:{SECRETS['local']}") as plane:
        for _ in range(20):
            with pytest.raises(grpc.RpcError):
                plane.master.Drain(master_pb2.DrainRequest(node_id="a"), **plane.call)
    guess = control(audited.cluster.master, "admin:guessed-secret")
    with guess as plane, pytest.raises(grpc.RpcError):
        plane.master.Forget(master_pb2.ForgetRequest(node_id="a"), **plane.call)
    audited.cluster.cli("undrain", "a")
    refused = audited.line("master", "Drain", outcome="PermissionDenied")
    assert refused["principal"] == "local" and refused["arguments"]["node_id"] == "a"
    guessed = audited.line("master", "Forget", outcome="Unauthenticated")
    assert guessed["principal"] == "admin"
    done = audited.line("master", "Drain", outcome="Ok")
    assert done["principal"] == "admin" and done["arguments"] == {"node_id": "a", "cancel": True}
    drains = [line for line in audited.lines("master") if line["call"] == "Drain"]
    assert len(drains) == 2, "what repeats is told once a minute"
    assert "guessed-secret" not in audited.logs["master"].read_text()


def test_a_rotated_log_is_opened_anew_and_a_wrong_one_refused(audited: Audited) -> None:
    log = audited.logs["master"]
    store = audited.connect("engine")
    moved = log.with_suffix(".1")
    log.rename(moved)
    assert store.flush() is Status.Ok
    wait_for(log.exists, "a new file")
    audited.line("master", "Flush", via="block")
    assert '"Flush"' not in moved.read_text()
    config = audited.folder / "master.json"
    config.write_text(json.dumps({"audit_log": "/dev/full"}))
    audited.cluster.master.signal(signal.SIGHUP)
    wait_for(
        lambda: metric(audited.cluster.master, "kvstore_config_refused") == 1, "it to be refused"
    )
    assert store.flush() is Status.Ok
    wait_for(lambda: sum(x["call"] == "Flush" for x in audited.lines("master")) == 2, "the old log")


def sessions(audited: Audited) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = audited.cluster.cli("sessions")
    return found


def test_sessions_are_listed_and_ended(audited: Audited) -> None:
    engine = audited.connect("engine")
    assert engine.put("k", b"v") is Status.Ok
    with control(audited.cluster.master, f"engine:{SECRETS['engine']}") as plane:
        watch = plane.master.Watch(master_pb2.WatchRequest(), **plane.call)
        next(watch)
        rows = sessions(audited)
        by_kind = {(row["server"], row["kind"], row["principal"]) for row in rows}
        assert {
            ("master", "block", "engine"),
            ("master", "block", "a"),
            ("master", "grpc", "engine"),
            ("a", "block", "engine"),
        } <= by_kind
        assert any(row["server"] == "a" and row["kind"] == "link" for row in rows)
        (call,) = [row for row in rows if row["kind"] == "grpc" and row["client"] == "Watch"]
        assert call["role"] == "client" and call["age_ms"] >= 0
        mine = next(r for r in rows if r["server"] == "a" and r["principal"] == "engine")
        assert mine["peer"].startswith("pid ") and mine["tenant"] == "default"
        ended = audited.cluster.cli("sessions", "--end", "engine")["ended"]
        assert ended["a"] >= 1 and ended["master"] >= 2
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
        assert "ended by an operator" in str(caught.value.details())
    told = audited.line("a", "EndSessions", outcome="Ok")
    assert told["principal"] == "admin" and told["arguments"]["principal"] == "engine"
    wait_for(
        lambda: engine.put("k2", b"v") is Status.Ok, "the engine to be back: its token is valid"
    )
    fresh = next(r for r in sessions(audited) if r["server"] == "a" and r["principal"] == "engine")
    assert fresh["id"] != mine["id"]
    assert audited.cluster.cli("sessions", "--end", fresh["id"])["ended"] == {"a": 1}


def test_only_operators_of_every_tenant_see_and_end_sessions(audited: Audited) -> None:
    for who in ("engine", "local"):
        ran = run(
            "sessions",
            "--master",
            audited.cluster.address,
            "--token-file",
            str(audited.files[who]),
        )
        assert ran.code == 4, ran
    ran = run(
        "sessions",
        "--end",
        "nobody",
        "--master",
        audited.cluster.address,
        "--token-file",
        str(audited.files["admin"]),
    )
    assert ran.code == 1 and "no session 'nobody'" in ran.err


class _Listener(BaseHTTPRequestHandler):
    """A node's HTTP port in wrong hands: keeps what it hears."""

    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.heard.append(str(self.headers))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"sessions": []}')

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def test_a_node_learns_no_operators_secret(audited: Audited) -> None:
    _Listener.heard.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        with control(audited.cluster.master, f"evil:{SECRETS['evil']}") as plane:
            http = f"http://127.0.0.1:{listener.server_port}"
            endpoints = types_pb2.Endpoints(tcp="tcp://127.0.0.1:1", http=http)
            plane.register("evil", endpoints=endpoints)
            assert sessions(audited), "the others answer"
        listener.shutdown()
    (heard,) = _Listener.heard
    assert SECRETS["admin"] not in heard
    (proof,) = re.findall(r"Authorization: (Kvstore-Proof admin:\S+)", heard)
    for daemon in (audited.cluster.master, audited.node):
        url = f"http://127.0.0.1:{daemon.ports['http_port']}/sessions"
        request = urllib.request.Request(url, headers={"Authorization": proof})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        with refused.value:
            assert refused.value.code == 401
