"""Secrets that change under load, tokens that expire, and guesses that have to wait."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

import kvstore
from kvstore import Status, clock, minted
from kvstore._proto import master_pb2
from kvstore.cli.operator import main
from kvstore.minted import Claims
from tests.support.cluster import Cluster
from tests.support.control import DEFAULT, control, http_get, metric, refusal
from tests.support.processes import Daemon, wait_for
from tests.support.wire import Connection, Refusal, hello_body

pytestmark = pytest.mark.cluster

SECRET = "{}-secret-0123456789"
ENGINE, NODE, ADMIN = (SECRET.format(name) for name in ("engine", "a", "admin"))
FRESH = "a-new-secret-of-engine"
LINES = [f"engine client default {ENGINE}", f"a node * {NODE}", f"admin operator * {ADMIN}"]


def applied(daemon: Daemon) -> float:
    return metric(daemon, "kvstore_config_reloads_total", result="applied")


def has_more(count: Callable[[], float], than: float) -> bool:
    return count() > than


class Guarded:
    """A master and a node with a token file that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file("tokens", *LINES)
        config = folder / "master.json"
        config.write_text(json.dumps({"audit_log": str(folder / "audit.jsonl")}))
        tokens = ["--auth-token-file", str(folder / "tokens"), "--config", str(config)]
        admin = self.file("admin", LINES[2])
        self.cluster = Cluster(folder, tokens, str(admin))
        self.node = self.cluster.start_node("a", auth_token_file=str(folder / "tokens"))
        self.master = self.cluster.master

    def file(self, name: str, *lines: str) -> Path:
        fresh = self.folder / f"{name}.new"
        fresh.touch(0o600)
        fresh.write_text("".join(f"{line}\n" for line in lines))
        return fresh.replace(self.folder / name)

    def change(self, *lines: str) -> None:
        """Replace the servers' token file; returns once both have read it."""
        self.file("tokens", *lines)
        for daemon in (self.master, self.node):
            before = applied(daemon)
            daemon.signal(signal.SIGHUP)
            wait_for(partial(has_more, partial(applied, daemon), before), "the file to be read")

    def connect(self, line: str, **options: Any) -> kvstore.Store:
        return self.cluster.connect(token_file=str(self.file("own", line)), **options)

    def mint(self, *options: str) -> str:
        """Mint a token with the engine's secret; its line."""
        own = str(self.file("minting", LINES[0]))
        ran = CliRunner().invoke(main, ["token", "mint", "--token-file", own, *options])
        assert ran.exit_code == 0, ran.output
        return ran.stdout.strip()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("tokens"))
    yield made
    made.cluster.close()


class Engine(threading.Thread):
    """Puts and gets without pause, and changes its store when it is told."""

    def __init__(self, number: int, store: kvstore.Store) -> None:
        super().__init__()
        self.number, self.store = number, store
        self.failed: list[object] = []
        self.done = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            key = f"rotation/{self.number}/{self.done}"
            try:
                status = self.store.put(key, key.encode())
                found = self.store.get(key)
            except kvstore.KvstoreError as error:
                self.failed.append(error)
            else:
                if status is not Status.Ok or found != key.encode():
                    self.failed.append((status, found))
            self.done += 1


def test_secrets_change_under_load_without_a_failed_request(guarded: Guarded) -> None:
    new = f"engine client default {FRESH}"
    engines = [Engine(i, guarded.connect(LINES[0])) for i in range(3)]
    for engine in engines:
        engine.start()
    try:
        guarded.change(LINES[0], new, *LINES[1:])
        for engine in engines:  # one after the other, as engines are restarted
            was, engine.store = engine.store, guarded.connect(new)
            count = partial(getattr, engine, "done")
            wait_for(partial(has_more, count, engine.done + 2), "the new store to be used")
            was.close()
        guarded.change(new, *LINES[1:])
        at = [engine.done for engine in engines]
        wait_for(
            lambda: all(engine.done > n + 50 for engine, n in zip(engines, at, strict=True)),
            "the load to go on",
        )
    finally:
        for engine in engines:
            engine.stop.set()
        for engine in engines:
            engine.join(30)
    print(f"{sum(engine.done for engine in engines)} puts and gets")
    assert [engine.failed for engine in engines] == [[], [], []]
    with pytest.raises(kvstore.UnauthenticatedError):
        guarded.connect(LINES[0])
    guarded.change(*LINES)


def test_a_minted_token_stands_where_a_secret_would(guarded: Guarded) -> None:
    assert guarded.connect(LINES[0]).put("docs/a", b"v") is Status.Ok
    line = guarded.mint("--ttl", "15m", "--verbs", "read,list", "--keys", "docs/")
    store = guarded.connect(line)
    assert store.get("docs/a") == b"v" and list(store.keys("docs/")) == ["docs/a"]
    with pytest.raises(kvstore.PermissionDeniedError):
        store.remove("docs/a")
    token = line.split()[3]
    with control(guarded.master, f"engine:{token}") as plane:
        request = master_pb2.InspectRequest(namespace=DEFAULT, key="docs/a")
        assert plane.master.Inspect(request, **plane.call).size_bytes == 1
        with pytest.raises(grpc.RpcError) as denied:
            plane.master.Flush(master_pb2.FlushRequest(namespace=DEFAULT), **plane.call)
        assert refusal(denied.value)[1] == Status.PermissionDenied
    status, _ = http_get(guarded.master, "/query_key?key=docs/a&namespace=", f"engine:{token}")
    assert status == 200
    shown = CliRunner().invoke(
        main, ["token", "show", "--token-file", str(guarded.folder / "own"), "--json"]
    )
    told = json.loads(shown.stdout)
    assert told["scopes"] == "verbs=read,list keys=docs/" and 890 < told["expires_in_s"] <= 900


def test_what_is_open_with_a_minted_token_ends_with_it(guarded: Guarded) -> None:
    line = guarded.mint("--ttl", "2s")
    store = guarded.connect(line, transport="tcp")
    assert store.put("brief", b"v") is Status.Ok
    with control(guarded.master, f"engine:{line.split()[3]}") as plane:
        watch = plane.master.Watch(master_pb2.WatchRequest(namespace=DEFAULT), **plane.call)
        next(watch)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as ended:
            list(watch)
        assert refusal(ended.value) == ("UNAUTHENTICATED", int(Status.Unauthenticated))
        assert time.monotonic() - began < 2.5
    wait_for(lambda: store.get("brief") is None, "the store to lose its sessions")
    with pytest.raises(kvstore.UnauthenticatedError, match="expired"):
        guarded.connect(line)


def test_nothing_but_the_secret_makes_a_token(guarded: Guarded) -> None:
    now_s = clock.unix_ms() // 1000
    good = minted.mint(ENGINE, "engine", Claims(now_s + 60))
    head, key, claims = good.split(":", 2)
    forged = {
        "another secret": minted.mint("x" * 20, "engine", Claims(now_s + 60)),
        "another name": minted.mint(ENGINE, "admin", Claims(now_s + 60)),
        "later": f"{head}:{key}:exp={now_s + 600}",
        "wider": f"{head}:{key}:{claims}+verbs=admin",
    }
    for what, token in forged.items():
        with pytest.raises(kvstore.UnauthenticatedError):
            guarded.connect(f"engine client default {token}")
        path, bearer = "/get_all_segments", f"engine:{token}"
        assert http_get(guarded.master, path, bearer)[0] == 401, what
        # What is right in between has guesses forgotten.
        assert http_get(guarded.master, path, f"engine:{good}")[0] == 200, what
        guarded.connect(f"engine client default {good}").close()


def attempt(endpoint: str, name: str, secret: str) -> tuple[int, str]:
    """Say hello: 0, or the status and the words of the refusal."""
    with Connection(endpoint) as connection:
        try:
            connection.handshake(hello_body(principal=name.encode(), token=b"x"), secret.encode())
        except Refusal as refused:
            return refused.args[0], refused.args[1]
    return 0, ""


def test_guesses_have_to_wait_and_nobody_elsewhere(guarded: Guarded) -> None:
    guarded.change(*LINES, "# other secrets: everything is forgotten")
    tcp, unix = guarded.cluster.address, str(guarded.node.ports["unix"])
    node_tcp = str(guarded.node.ports["tcp"])
    for endpoint in (tcp, node_tcp):
        answers = [attempt(endpoint, "engine", f"guess-number-{i}") for i in range(8)]
        assert all(code == Status.Unauthenticated for code, _ in answers)
        assert "try again in" in answers[-1][1]
        assert "try again in" in attempt(endpoint, "engine", ENGINE)[1], "the right one, too"
        assert attempt(endpoint, "admin", ADMIN)[0] == 0, "another principal"
    assert attempt(unix, "engine", ENGINE)[0] == 0, "another address"
    for i in range(8):
        status, text = http_get(guarded.master, "/get_all_segments", f"engine:guess-{i}")
        assert status == 401
    assert "try again in" in text
    for daemon, name in (
        (guarded.master, "kvstore_cluster_auth_failures_total"),
        (guarded.node, "kvstore_auth_failures_total"),
        (guarded.master, "kvstore_bearer_failures_total"),
    ):
        assert metric(daemon, name, result="wrong") >= 6
        assert metric(daemon, name, result="pauses") >= 1
        assert metric(daemon, name, result="paused") >= 2
    lines = [json.loads(x) for x in (guarded.folder / "audit.jsonl").read_text().splitlines()]
    (told,) = [line for line in lines if line["call"] == "Authenticate"]
    assert told["principal"] == "engine" and told["peer"] == "127.0.0.1"
    assert told["arguments"] == {"pause_ms": 1000} and told["outcome"] == "Unauthenticated"
    wait_for(lambda: attempt(tcp, "engine", ENGINE)[0] == 0, "the pause to end")
    assert attempt(tcp, "engine", ENGINE)[0] == 0
