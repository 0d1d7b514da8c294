"""Files of master and node, what may happen to them, and what comes of it.

Each start ends in service, with the same state and no wrong bytes, or with a documented exit code
and one sentence: never with a traceback, a hang or a signal. Every bit of the records:
tests/unit/test_lmdb_state.py; of a node's memory and disk: tests/fault/, native/tests/store/ and
native/tests/nvme/.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kvstore
from kvstore import Status
from kvstore.master import state_export
from tests.support.cluster import Cluster
from tests.support.control import ready
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

SERVES = 0
USAGE, FAILED = 2, 5
"""Exit codes (kvstore/README.md)."""
_START_S = 60.0
_KEYS = [f"key/{number}" for number in range(40)]
_SIZE = 20_000
_TOKENS = "admin operator * a-secret-of-sixteen\nnode-a node * another-of-sixteen\n"


# --- Damages: each takes a file that is whole ---


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(at: float) -> Callable[[Path], None]:
    """Flip a bit at a byte, or at a share of the file."""

    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(int(at * path.stat().st_size) if at < 1 else int(at))
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x04]))

    return damage


def change(value: bytes) -> Callable[[Path], None]:
    """Flip a bit of a value, also in the copies that earlier transactions have left."""

    def damage(path: Path) -> None:
        path.write_bytes(path.read_bytes().replace(value, value[:-1] + bytes([value[-1] ^ 0x04])))

    return damage


def garble(path: Path) -> None:
    path.write_bytes(b"something else\n" * 1000)


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_link(path: Path) -> None:
    """Point to a device that never ends."""
    path.unlink()
    path.symlink_to("/dev/zero")


def delete(path: Path) -> None:
    path.unlink()


Damage = Callable[[Path], None]


class Outcome(NamedTuple):
    code: int
    words: str = ""


KEPT = Outcome(SERVES)


def judge(daemon: Daemon, expected: Outcome) -> bool:
    """Check how a start ends; whether it serves."""
    serves = daemon.wait_started_or_refused(_START_S)
    log = daemon.log.read_text()
    assert "Traceback" not in log, log
    if serves:
        assert expected.code == SERVES, f"serves instead of: {expected}\n{log}"
        return True
    code = daemon.process.wait()
    assert code == expected.code, f"exit code {code} instead of {expected}\n{log}"
    (sentence,) = [line for line in log.splitlines() if line.startswith("kvstore-")]
    assert expected.words in sentence, sentence
    return False


def each(cases: dict[str, Any], run: Callable[[str], None]) -> None:
    """Run the cases two at a time; fail with all of them that failed."""
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(run, name) for name in cases}
    failed = {name: future.exception() for name, future in futures.items() if future.exception()}
    assert not failed, "\n\n".join(f"{name}: {error}" for name, error in failed.items())


# --- The master's state ---

_DATA, _CLUSTER = "data.mdb", "cluster"
MASTER: dict[str, tuple[str, Damage, Outcome]] = {
    "state cut": (_DATA, lambda path: os.truncate(path, 5 * 4096), Outcome(FAILED, "cut short")),
    "state emptied": (_DATA, empty, Outcome(FAILED, "missing or empty")),
    "state deleted": (_DATA, delete, Outcome(FAILED, "missing or empty")),
    "state of another format": (_DATA, garble, Outcome(FAILED, "not a meta page of LMDB")),
    "state a FIFO": (_DATA, to_fifo, Outcome(FAILED, "not a regular file")),
    "state a folder": (_DATA, to_folder, Outcome(FAILED, "not a regular file")),
    "state a link": (_DATA, to_link, Outcome(FAILED, "not a regular file")),
    "magic flipped": (_DATA, flip(16), Outcome(FAILED, "not a meta page of LMDB")),
    "transaction flipped": (_DATA, flip(4096 + 144), Outcome(FAILED, "is damaged")),
    "cluster's file cut": (_CLUSTER, cut, KEPT),
    "cluster's file emptied": (_CLUSTER, empty, KEPT),
    "cluster's file deleted": (_CLUSTER, delete, KEPT),
    "cluster's file flipped": (_CLUSTER, flip(20), KEPT),
    "cluster's file a FIFO": (_CLUSTER, to_fifo, KEPT),
    "cluster's file a link": (_CLUSTER, to_link, KEPT),
    "cluster's file a folder": (_CLUSTER, to_folder, Outcome(FAILED, "Is a directory")),
    "lock a folder": ("lock", to_folder, Outcome(FAILED, "Is a directory")),
    "lock a FIFO": ("lock", to_fifo, Outcome(FAILED, "not a regular file")),
    "lock a link": ("lock", to_link, Outcome(FAILED, "symbolic links")),
    "readers' file cut": ("lock.mdb", cut, KEPT),
    "readers' file garbled": ("lock.mdb", garble, KEPT),
    "readers' file a folder": ("lock.mdb", to_folder, Outcome(FAILED, "Is a directory")),
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a master that a node has joined, with a log of removes."""
    folder = tmp_path_factory.mktemp("base")
    cluster = Cluster(folder)
    try:
        cluster.start_node("a")
        cluster.start_node("b").kill()  # so that the log is not trimmed
        store = cluster.connect()
        for key in _KEYS:
            assert store.put(key, key.encode()) is Status.Ok
        assert set(store.batch_remove(_KEYS)) <= {Status.Ok, Status.Partial}
    finally:
        cluster.close()
    return folder / "master"


def start_master(folder: Path, *options: str) -> Daemon:
    ports = ["--port", "0", "--grpc-port", "0", "--http-port", "0"]
    arguments = ["-m", "kvstore.cli.master", "--data-dir", str(folder / "data"), *ports]
    return Daemon("master", [*arguments, *options], folder)


def test_the_masters_state(state: Path, tmp_path: Path) -> None:
    whole = state_export.check(state, keep=True)
    assert whole.counts["ops"] == len(_KEYS) and whole.counts["nodes"] == 2
    cases = dict(MASTER)
    for table, rows in whole.rows.items():
        value = max(rows.values(), key=len)
        cases[f"{table} flipped"] = (_DATA, change(value), Outcome(FAILED, f"table {table}, rec"))

    def run(name: str) -> None:
        file, damage, expected = cases[name]
        folder = tmp_path / name.replace(" ", "-")
        shutil.copytree(state, folder / "data")
        damage(folder / "data" / file)
        master = start_master(folder)
        try:
            if judge(master, expected):
                told = json.loads((folder / "master.ports").read_text())
                assert told["cluster_id"] == whole.cluster_id
                assert master.terminate() == 0
                after = state_export.check(folder / "data", keep=True)
                assert after.rows["ops"] == whole.rows["ops"]
        finally:
            master.kill()

    each(cases, run)


def test_a_foreign_state_and_a_foreign_clusters_file(state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    master = start_master(other)
    master.wait_started()
    assert master.terminate() == 0
    for file in (_DATA, _CLUSTER):
        folder = tmp_path / file
        shutil.copytree(state, folder / "data")
        shutil.copy(other / "data" / file, folder / "data" / file)
        master = start_master(folder)
        judge(master, Outcome(FAILED, "but its state (data.mdb) is of cluster"))


def master_command(cluster: Cluster, *options: str) -> None:
    """Run kvstore-master on the cluster's data directory for something else than serving."""
    command = [sys.executable, "-m", "kvstore.cli.master"]
    command += ["--data-dir", str(cluster.folder / "master"), *options]
    subprocess.run(command, check=True, capture_output=True)


def test_a_lost_data_directory_begins_no_cluster_beside_the_old_one(cluster: Cluster) -> None:
    node = cluster.start_node("a")
    cluster.expected_errors.append("new_cluster_refused")
    store = cluster.connect()
    assert store.put("k", b"value") is Status.Ok
    assert cluster.master.terminate() == 0
    export = cluster.folder / "state.jsonl"
    master_command(cluster, "--export", str(export))
    shutil.rmtree(cluster.folder / "master")
    cluster.restart_master()
    wait_for(lambda: ready(cluster.master)[0] == 503, "the node to present its cluster", 20)
    assert "--import" in ready(cluster.master)[1]["nodes_refused"]
    newcomer = cluster.start_node("b", wait=False)
    wait_for(lambda: "restore the state" in newcomer.log.read_text(), "b to be refused", 20)
    assert cluster.node_states() == {}
    newcomer.terminate()
    assert node.process.poll() is None

    assert cluster.master.terminate() == 0
    master_command(cluster, "--import", str(export), "--force")
    cluster.restart_master()
    cluster.wait_state("a", "alive")
    wait_for(lambda: store.get("k") == b"value", "the object to be known again", 20)
    assert node.process.poll() is None  # it has served all the time


def test_a_new_cluster_by_decision_admits_nodes_that_give_up_the_old_one(cluster: Cluster) -> None:
    cluster.start_node("a").kill()
    cluster.expected_errors.append("new_cluster_refused")
    assert cluster.master.terminate() == 0
    shutil.rmtree(cluster.folder / "master")
    cluster.master_options.append("--new-cluster")
    cluster.restart_master()
    cluster.start_node("b")
    refused = cluster.start_node("a", wait=False)
    assert refused.process.wait(30) == FAILED
    assert "belongs to cluster" in refused.log.read_text()
    assert "discard_foreign_segment" in refused.log.read_text()
    cluster.start_node("a", discard_foreign_segment=True)


# --- Configuration and tokens ---


def config_file(text: bytes) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(text)

    return damage


CONFIG: dict[str, tuple[Damage, Outcome]] = {
    "cut": (cut, Outcome(USAGE, "not JSON")),
    "emptied": (empty, Outcome(USAGE, "not JSON")),
    "deleted": (delete, Outcome(USAGE, "No such file")),
    "not UTF-8": (flip(1), Outcome(USAGE, "not JSON")),
    "a FIFO": (to_fifo, Outcome(USAGE, "nothing to read")),
    "a folder": (to_folder, Outcome(USAGE, "Is a directory")),
    "an endless link": (to_link, Outcome(USAGE, "larger than 1 MiB")),
    "999 gb": (config_file(b'{"node_ttl_ms": 99999999999999}'), Outcome(USAGE, "node_ttl_ms")),
    "a NUL": (config_file(b'{"host": "a\\u0000"}'), Outcome(USAGE, "cannot be printed")),
    "a key twice": (config_file(b'{"port": 0, "port": 0}'), Outcome(USAGE, "stands there twice")),
    "too deep": (config_file(b"[" * 100_000), Outcome(USAGE, "nested too deeply")),
}
TOKENS: dict[str, tuple[Damage, Outcome]] = {
    "cut": (lambda path: os.truncate(path, 20), Outcome(USAGE, "tokens")),
    "emptied": (empty, Outcome(USAGE, "tokens")),
    "deleted": (delete, Outcome(USAGE, "No such file")),
    "not UTF-8": (config_file(b"\xff\xfe\n"), Outcome(USAGE, "tokens")),
    "readable by all": (lambda path: path.chmod(0o644), Outcome(USAGE, "tokens")),
    "a FIFO": (to_fifo, Outcome(USAGE, "tokens")),
    "a folder": (to_folder, Outcome(USAGE, "tokens")),
    "an endless link": (to_link, Outcome(USAGE, "tokens")),
}


@pytest.mark.parametrize("which", ["config", "tokens"])
def test_configuration_and_tokens(which: str, tmp_path: Path) -> None:
    cases = CONFIG if which == "config" else TOKENS

    def run(name: str) -> None:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        tokens, config = folder / "tokens", folder / "config.json"
        tokens.write_text(_TOKENS)
        tokens.chmod(0o600)
        config.write_text(json.dumps({"auth_token_file": str(tokens), "node_ttl_ms": 5000}))
        damage, expected = cases[name]
        damage(config if which == "config" else tokens)
        master = start_master(folder, "--config", str(config))
        try:
            assert not judge(master, expected)
        finally:
            master.kill()

    each(cases, run)


# --- The node's memory and disk ---

NODE: dict[str, tuple[str, Damage, Outcome]] = {
    "segment cut": ("memory/segment", cut, KEPT),
    "segment emptied": ("memory/segment", empty, KEPT),
    "segment deleted": ("memory/segment", delete, KEPT),
    "segment flipped": ("memory/segment", flip(5000), KEPT),
    "segment a FIFO": ("memory/segment", to_fifo, KEPT),
    "segment a link": ("memory/segment", to_link, KEPT),
    "index cut": ("memory/index", cut, KEPT),
    "index emptied": ("memory/index", empty, KEPT),
    "index flipped": ("memory/index", flip(40), KEPT),
    "index a FIFO": ("memory/index", to_fifo, KEPT),
    "index a link": ("memory/index", to_link, KEPT),
    "clients cut": ("memory/clients", cut, KEPT),
    "clients flipped": ("memory/clients", flip(2), Outcome(FAILED, "not a clients file")),
    "clients a FIFO": ("memory/clients", to_fifo, Outcome(FAILED, "no regular file")),
    "cluster's id garbled": ("memory/cluster_id", garble, KEPT),
    "cluster's id a FIFO": ("memory/cluster_id", to_fifo, KEPT),
    "log file cut": ("disk/segment-0.kvs", cut, KEPT),
    "log file emptied": ("disk/segment-0.kvs", empty, KEPT),
    "log file's header flipped": ("disk/segment-0.kvs", flip(20), KEPT),
    "catalog cut": ("disk/catalog/data.mdb", cut, KEPT),
    "catalog emptied": ("disk/catalog/data.mdb", empty, KEPT),
    "catalog's root flipped": ("disk/catalog/data.mdb", flip(4096 + 140), KEPT),
    "catalog a FIFO": ("disk/catalog/data.mdb", to_fifo, KEPT),
    "catalog a link": ("disk/catalog/data.mdb", to_link, KEPT),
    "catalog a folder": ("disk/catalog/data.mdb", to_folder, Outcome(FAILED, "Is a directory")),
}


def copy(folder: Path, to: Path) -> None:
    """Copy a folder; holes of its files stay holes, which the index mostly consists of."""
    to.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", str(folder), str(to)], check=True)


class Machine:
    """A node with memory and disk, whose folders are restored for each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(folder)
        self.memory = Path(f"/dev/shm/kvstore-test-{self.cluster.run_id}-a")
        self.base = folder / "whole"

    def start(self) -> Daemon:
        return self.cluster.start_node(
            "a",
            wait=False,
            segment_size="4mb",
            nvme_dir=str(self.folder / "disk"),
            nvme_size="8mb",
        )

    def save(self) -> None:
        """Keep the folders as the killed node left them."""
        copy(self.memory, self.base / "memory")
        copy(self.folder / "disk", self.base / "disk")

    def restore(self) -> None:
        for name, place in (("memory", self.memory), ("disk", self.folder / "disk")):
            shutil.rmtree(place)
            copy(self.base / name, place)

    def path(self, file: str) -> Path:
        folder, _, rest = file.partition("/")
        return (self.memory if folder == "memory" else self.folder / "disk") / rest


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        made.cluster.close()


def no_wrong_bytes(store: kvstore.Store) -> int:
    """Read all objects; the number that was found."""
    found = store.batch_get(_KEYS)
    for key, value in zip(_KEYS, found, strict=True):
        assert value in (None, proof(key, _SIZE)), f"wrong bytes of {key}"
    return sum(value is not None for value in found)


def test_a_nodes_files(machine: Machine) -> None:
    cluster = machine.cluster
    node = machine.start()
    node.wait_started()
    store = cluster.connect()
    for key in _KEYS:
        assert store.put(key, proof(key, _SIZE)) is Status.Ok
    assert cluster.cli("snapshot", "a")["done"]
    node.kill()
    machine.save()
    failed = {}
    for name, (file, damage, expected) in NODE.items():
        machine.restore()
        damage(machine.path(file))
        node.log.unlink(missing_ok=True)
        node = machine.start()
        try:
            if judge(node, expected):
                no_wrong_bytes(store)
                wait_for(
                    lambda name=name: store.put(f"after/{name}", b"value") is Status.Ok,  # type: ignore[misc]
                    "a put",
                )
        except AssertionError as error:
            failed[name] = error
        finally:
            node.kill()
    assert not failed, "\n\n".join(f"{name}: {error}" for name, error in failed.items())
