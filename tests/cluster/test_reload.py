"""A configuration that changes while a cluster serves: what is taken over, refused, or waits."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import heartbeats, metric, ready
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster


def reloads(daemon: Daemon, result: str) -> float:
    return metric(daemon, "kvstore_config_reloads_total", result=result)


def wait_reload(daemon: Daemon, result: str, before: float) -> None:
    wait_for(lambda: reloads(daemon, result) > before, f"a reload to be {result}", 10)


class ConfigFile:
    """A process's configuration file, and changes to single keys of it."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def change(self, **values: Any) -> None:
        """Replace the file by a rename, so that it is never read half written."""
        self.values.update(values)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.values))
        temporary.rename(self.path)


@contextmanager
def configured(tmp_path: Path, **values: Any) -> Iterator[tuple[Cluster, ConfigFile]]:
    """A cluster whose master has a configuration file of its own."""
    file = ConfigFile(tmp_path / "master.json", {})
    file.change(**values)
    cluster = Cluster(tmp_path, ["--config", str(file.path)])
    try:
        yield cluster, file
    finally:
        cluster.close()


def node_file(cluster: Cluster, node_id: str) -> ConfigFile:
    path = cluster.folder / f"{node_id}.json"
    return ConfigFile(path, json.loads(path.read_text()))


@contextmanager
def load(stores: list[kvstore.Store]) -> Iterator[Callable[[], int]]:
    """Put and get all along, in a thread a store; no answer but the right one is accepted.

    Yields a function that tells how many operations were made.
    """
    stop = threading.Event()
    failures: list[str] = []
    done = [0] * len(stores)

    def work(number: int, store: kvstore.Store) -> None:
        i = 0
        while not stop.is_set():
            key = f"load/{number}/{i}"
            value = proof(key, (4096, 65_536, 1 << 20)[i % 3])
            status = store.put(key, value)
            if status is not Status.Ok:
                failures.append(f"put {key}: {status.name}")
            elif store.get(key) != value:
                failures.append(f"get {key}")
            i += 1
            done[number] = i
            stop.wait(0.001)

    threads = [
        threading.Thread(target=work, args=(number, store)) for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:5]


def test_a_reload_under_load_fails_no_request_and_takes_effect(tmp_path: Path) -> None:
    values = {"heartbeat_ms": 1000, "node_ttl_ms": 20_000, "slow_start_ms": 1}
    with configured(tmp_path, **values) as (cluster, master):
        a = cluster.start_node("a", segment_size="128mb")
        cluster.start_node("b", segment_size="128mb")
        stores = [cluster.connect(transport=transport) for transport in ("auto", "tcp")]
        node = node_file(cluster, "a")
        with load(stores) as operations:

            def works_on() -> None:
                """Let some requests pass under what is in effect now."""
                enough = operations() + 50
                wait_for(lambda: operations() >= enough, "requests to go on", 30)

            works_on()
            for round_number in range(3):
                before = reloads(cluster.master, "applied"), reloads(a, "applied")
                short = round_number % 2 == 0
                master.change(
                    heartbeat_ms=100 if short else 1000,
                    node_ttl_ms=2000 if short else 20_000,
                    repair_copies=round_number,
                    slow_start_ms=1 + round_number,
                )
                node.change(
                    reservation_ms=2000 if short else 30_000,
                    client_cap_bytes="16mb" if short else 0,
                    shm_write=["default", "other"] if short else ["default"],
                    labels={"host": "a", "rack": f"r{round_number}"},
                    log_level="debug" if short else "info",
                )
                wait_reload(cluster.master, "applied", before[0])
                wait_reload(a, "applied", before[1])
                works_on()
            assert cluster.node_states() == {"a": "alive", "b": "alive"}
        # What the last round asked for is in effect.
        wait_for(
            lambda: (
                next(n for n in cluster.cli("nodes") if n["node_id"] == "a")["labels"]["rack"]
                == "r2"
            ),
            "the master to know the new label",
        )
        other = cluster.connect(tenant="other", transport="auto")
        other.put("k", b"mapped now")
        assert other.get("k") == b"mapped now"
        assert other.stats()["hits_shm"] == 1, other.stats()
        for daemon in (cluster.master, a):
            assert reloads(daemon, "refused") == 0 and reloads(daemon, "failed") == 0
            assert metric(daemon, "kvstore_config_restart_needed") == 0


def test_a_shorter_ttl_is_followed_by_nodes_and_master(tmp_path: Path) -> None:
    values = {"heartbeat_ms": 1000, "node_ttl_ms": 600_000}
    with configured(tmp_path, **values) as (cluster, master):
        node = cluster.start_node("a")
        before = sum(heartbeats(cluster.master))
        master.change(heartbeat_ms=50, node_ttl_ms=1000)
        cluster.master.signal(signal.SIGHUP)
        wait_for(
            lambda: sum(heartbeats(cluster.master)) >= before + 20,
            "many heartbeats",
        )
        node.freeze()
        cluster.wait_state("a", "dead")
        node.signal(signal.SIGCONT)
        cluster.wait_state("a", "alive")


def test_sighup_takes_over_at_once_what_the_watch_would(cluster: Cluster) -> None:
    a = cluster.start_node("a")
    before = reloads(a, "unchanged")
    for _ in range(3):  # quicker than the watch
        a.signal(signal.SIGHUP)
        wait_reload(a, "unchanged", before)
        before = reloads(a, "unchanged")
    node_file(cluster, "a").change(reservation_ms=5000)
    a.signal(signal.SIGHUP)
    wait_reload(a, "applied", 0)
    assert "reason=sighup applied=reservation_ms" in a.log.read_text()
    node_file(cluster, "a").change(reservation_ms=6000)
    wait_reload(a, "applied", 1)
    assert "reason=file applied=reservation_ms" in a.log.read_text()
    assert reloads(a, "unchanged") == before, "one change is one reload"


def test_a_config_map_is_exchanged_behind_its_link(tmp_path: Path) -> None:
    """The way kubelet updates a mounted ConfigMap: ..data is renamed onto its successor."""
    volume = tmp_path / "volume"
    volume.mkdir()

    def publish(version: int, values: dict[str, Any]) -> None:
        folder = volume / f"..{version}"
        folder.mkdir()
        (folder / "master.json").write_text(json.dumps(values))
        (volume / "..data_tmp").symlink_to(folder.name)
        os.rename(volume / "..data_tmp", volume / "..data")

    publish(1, {"repair_copies": 7})
    (volume / "master.json").symlink_to("..data/master.json")
    cluster = Cluster(tmp_path, ["--config", str(volume / "master.json")])
    try:
        publish(2, {"repair_copies": 8, "event_loops": 3})
        wait_reload(cluster.master, "applied", 0)
        line = next(x for x in cluster.master.log.read_text().splitlines() if "reloaded" in x)
        assert "reason=file" in line and "applied=repair_copies" in line
        assert "restart_needed=event_loops" in line
    finally:
        cluster.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"reservation_ms": 1000, "clie', "not JSON"),
        ('{"reservation_sm": 1000}', "did you mean 'reservation_ms'"),
        ('{"reservation_ms": -1}', "reservation_ms"),
        ('{"auth_token_file": "/nowhere/token"}', "/nowhere/token"),
    ],
)
def test_a_bad_file_is_refused_and_the_old_configuration_stays(
    cluster: Cluster, content: str, words: str
) -> None:
    a = cluster.start_node("a", shm_write=["one"])
    file = node_file(cluster, "a")
    file.path.write_text(content)
    wait_reload(a, "refused", 0)
    code, body = ready(a)
    assert code == 200 and words in body["config_refused"]
    assert words in a.log.read_text()
    assert metric(a, "kvstore_config_refused") == 1
    store = cluster.connect(tenant="one")
    assert store.put("k", b"v") is Status.Ok and store.get("k") == b"v"
    assert store.stats()["hits_shm"] == 1, "the old shm_write count"
    file.change(shm_write=["one", "two"])
    wait_reload(a, "applied", 0)
    assert ready(a) == (200, {"ready": True, "link": "up"})
    assert metric(a, "kvstore_config_refused") == 0


def test_what_needs_a_restart_is_named_until_it_is_done_or_taken_back(cluster: Cluster) -> None:
    a = cluster.start_node("a")
    file = node_file(cluster, "a")
    size = file.values["segment_size"]
    file.change(segment_size="32mb", event_loops=3, reservation_ms=7000)
    wait_reload(a, "applied", 0)
    assert ready(a)[1]["restart_needed"] == ["segment_size", "event_loops"]
    assert metric(a, "kvstore_config_restart_needed") == 2
    assert "restart_needed=segment_size,event_loops" in a.log.read_text()
    assert metric(a, "kvstore_capacity_bytes") == 64 << 20
    file.change(segment_size=size)
    wait_reload(a, "unchanged", 0)
    assert ready(a)[1]["restart_needed"] == ["event_loops"]


def test_a_node_moves_to_another_address_of_its_master(cluster: Cluster) -> None:
    a = cluster.start_node("a")
    file = node_file(cluster, "a")
    store = cluster.connect()
    store.put("k", b"v")
    port = cluster.master.ports["port"]
    file.change(master_address=["127.0.0.1:1"])  # nobody there: the old one goes on
    wait_reload(a, "applied", 0)
    wait_for(lambda: "new_master_not_found" in a.log.read_text(), "the search to fail")
    assert cluster.node_states() == {"a": "alive"}
    assert store.get("k") == b"v" and ready(a)[0] == 200
    file.change(master_address=[f"localhost:{port}"])
    wait_for(lambda: f"master=localhost:{port}" in a.log.read_text(), "the node to move")
    wait_for(lambda: ready(a)[0] == 200, "the new link")
    cluster.wait_state("a", "alive")
    wait_for(lambda: store.get("k") == b"v", "the object to be known")
    assert store.put("k2", b"v") is Status.Ok


def test_a_node_that_waits_for_a_wrong_master_joins_the_right_one(cluster: Cluster) -> None:
    a = cluster.start_node("a", wait=False, master_address="127.0.0.1:1")
    wait_for(lambda: "master_not_joined" in a.log.read_text(), "the node to look for it")
    node_file(cluster, "a").change(master_address=cluster.address, reservation_ms=5000)
    a.wait_started()
    assert reloads(a, "applied") == 1
    assert cluster.connect().put("k", b"v") is Status.Ok


def test_another_advertised_host_reaches_the_cluster(tmp_path: Path) -> None:
    with configured(tmp_path) as (cluster, master):
        cluster.start_node("a")
        node_file(cluster, "a").change(advertise_host="localhost")
        master.change(advertise_host="localhost")
        wait_for(
            lambda: cluster.cli("status")["grpc_endpoint"].startswith("localhost:"), "the master's"
        )
        wait_for(
            lambda: cluster.cli("nodes")[0]["endpoints"]["tcp"].startswith("tcp://localhost:"),
            "the node's",
        )
        store = cluster.connect(transport="tcp")
        assert store.put("k", b"v") is Status.Ok and store.get("k") == b"v"


TOKENS = """\
engine    client    default  {client}
a         node      *        {node}
admin     operator  *        operator-secret-0123456789
"""
OPERATOR = "admin:operator-secret-0123456789"


def is_refused(store: kvstore.Store) -> bool:
    try:
        list(store.keys(""))
    except kvstore.UnauthenticatedError:
        return True
    return False


def test_tokens_are_rotated_in_their_file(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"

    def write(client: str, node: str, more: str = "") -> None:
        temporary = tmp_path / "tokens.new"
        temporary.write_text(TOKENS.format(client=client, node=node) + more)
        temporary.chmod(0o600)
        temporary.rename(tokens)

    first, second = "first-secret-0123456789", "second-secret-0123456789"
    write(first, first)
    admin, mine = tmp_path / "admin", tmp_path / "mine"
    for path, line in ((admin, TOKENS.splitlines()[2]), (mine, "")):
        path.touch(0o600)
        path.write_text(line)
    cluster = Cluster(tmp_path, ["--auth-token-file", str(tokens)], str(admin))
    try:
        a = cluster.start_node("a", auth_token_file=str(tokens))

        def connect(secret: str) -> kvstore.Store:
            mine.write_text(f"engine client default {secret}\n")
            return cluster.connect(token_file=str(mine))

        store = connect(first)
        assert store.put("k", b"v") is Status.Ok
        # Both secrets for a while: nobody is disconnected, and everybody can change over.
        write(first, first, f"engine client default {second}\na node * {second}\n")
        for daemon in (cluster.master, a):
            wait_reload(daemon, "applied", 0)
        early = connect(second)
        assert early.get("k") == store.get("k") == b"v"
        losses = metric(a, "kvstore_link_losses_total")
        write(second, second)
        for daemon in (cluster.master, a):
            wait_reload(daemon, "applied", 1)
        wait_for(lambda: is_refused(store), "the session with the first secret to end", 2)
        assert early.get("k") == b"v"
        # The node's own session has ended, too: it has come back with its new secret.
        wait_for(lambda: metric(a, "kvstore_link_losses_total") > losses, "the link to break")
        wait_for(lambda: ready(a)[0] == 200, "the node to be back", 20)
        wait_for(lambda: early.put("k3", b"v") is Status.Ok, "puts to be served")
        # The node presents its new secret to a master that knows no other one.
        losses = metric(a, "kvstore_link_losses_total")
        cluster.master.kill()
        cluster.restart_master()
        wait_for(lambda: metric(a, "kvstore_link_losses_total") > losses, "the link to break")
        wait_for(lambda: ready(a)[0] == 200, "the node to be back", 20)
        cluster.wait_state("a", "alive")
        assert connect(second).get("k") == b"v"
        with pytest.raises(kvstore.UnauthenticatedError):
            connect(first)
        tokens.chmod(0o644)
        wait_reload(a, "refused", 0)
        assert connect(second).get("k") == b"v"
        assert "config_refused" in ready(a, OPERATOR)[1]
        assert ready(a) == (200, {"ready": True}), "details are for those who have a token"
        tokens.chmod(0o600)
        wait_for(
            lambda: "config_refused" not in ready(a, OPERATOR)[1], "the file to be taken again"
        )
        assert ready(cluster.master) == (200, {"ready": True})
        assert "rebuilding" in ready(cluster.master, OPERATOR)[1]
    finally:
        cluster.close()
