"""upgrade.sh, with real nodes whose containers the test restarts as a kubelet would."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.payloads import proof

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "kubernetes" / "upgrade.sh"
STAND_IN = Path(__file__).with_name("stand_in_kubectl.py")
NAMES = ("cache-store-0", "cache-store-1", "cache-store-2")
OLD, NEW = "kvstore:0.1.0", "kvstore:0.2.0"


class Kubernetes:
    """The cluster's state, and a kubectl of it in a folder for PATH."""

    def __init__(self, folder: Path, strategy: str = "OnDelete") -> None:
        self.file = folder / "state.json"
        self.bin = folder / "bin"
        self.bin.mkdir()
        kubectl = self.bin / "kubectl"
        kubectl.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I -S "{STAND_IN}" "{self.file}" "$@"\n'
        )
        kubectl.chmod(0o755)
        pods = {
            name: {"place": f"uid-{name} host 10.0.0.1", "restarts": 0, "image": OLD, "ready": True}
            for name in NAMES
        }
        of_set = {"strategy": strategy, "container": "store", "image": OLD}
        self.file.write_text(json.dumps({"set": of_set, "pods": pods}))

    def change(self, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Apply a change to the state, and return it."""
        with self.file.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            state: dict[str, Any] = json.load(file)
            change(state)
            file.seek(0)
            file.truncate()
            json.dump(state, file)
        return state

    def upgrade(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPT), "--namespace", "vllm", *options, "statefulset/cache-store", NEW]
        path = f"{self.bin}:{os.environ['PATH']}"
        return subprocess.run(
            command, capture_output=True, text=True, timeout=110, env={**os.environ, "PATH": path}
        )


@pytest.fixture
def kubernetes(tmp_path: Path) -> Kubernetes:
    return Kubernetes(tmp_path)


class Kubelet:
    """Restarts a pod's container once its image has changed."""

    def __init__(self, kubernetes: Kubernetes, restart: Callable[[str], None]) -> None:
        self.kubernetes = kubernetes
        self.restart = restart
        self.running = dict.fromkeys(NAMES, OLD)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        while not self.stop.wait(0.05):
            pods = self.kubernetes.change(lambda state: None)["pods"]
            for name in NAMES:
                image = pods[name]["image"]
                if image != self.running[name]:
                    self.set(name, ready=False)
                    self.restart(name)
                    self.running[name] = image
                    self.set(name, restarts=pods[name]["restarts"] + 1, ready=True)

    def set(self, name: str, **values: Any) -> None:
        self.kubernetes.change(lambda state: state["pods"][name].update(values))

    def __enter__(self) -> Kubelet:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    one = Cluster(folder)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.cluster
def test_three_nodes_are_upgraded_and_keep_what_they_hold(
    cluster: Cluster, kubernetes: Kubernetes
) -> None:
    for name in NAMES:
        cluster.start_node(name)
    store = cluster.connect()
    keys = [f"page/{i}" for i in range(60)]
    for key in keys:
        assert store.put(key, proof(key, 200_000)).name == "Ok"
    pids = {name: cluster.nodes[name].pid for name in NAMES}

    def restart(name: str) -> None:
        cluster.nodes[name].terminate()
        cluster.start_node(name)

    with Kubelet(kubernetes, restart):
        done = kubernetes.upgrade()
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        assert f"{name}: has {NEW}, in place, restarts 0 -> 1" in done.stdout
        assert cluster.nodes[name].pid != pids[name]
    assert kubernetes.change(lambda state: None)["set"]["image"] == NEW
    for key in keys:
        assert store.get(key) == proof(key, 200_000), f"{key} was lost"
    again = kubernetes.upgrade()
    assert again.returncode == 0 and again.stdout.count(f"has {NEW}\n") == len(NAMES)


def test_a_set_that_would_make_new_pods_is_refused(tmp_path: Path) -> None:
    done = Kubernetes(tmp_path, "RollingUpdate").upgrade()
    assert done.returncode == 3 and "it must be OnDelete" in done.stderr
    assert done.stdout == ""


def test_nothing_is_changed_while_another_pod_is_not_ready(kubernetes: Kubernetes) -> None:
    kubernetes.change(lambda state: state["pods"][NAMES[2]].update(ready=False))
    done = kubernetes.upgrade()
    assert done.returncode == 1
    assert f"{NAMES[0]} not changed: {NAMES[2]} is not ready" in done.stderr


def test_it_stops_at_a_pod_that_does_not_come_back(kubernetes: Kubernetes) -> None:
    done = kubernetes.upgrade("--timeout-s", "1")
    assert done.returncode == 1
    assert f"{NAMES[0]}: not ready within 1 s" in done.stderr
    pods = kubernetes.change(lambda state: None)["pods"]
    assert [pods[name]["image"] for name in NAMES] == [NEW, OLD, OLD]


def test_it_stops_at_a_pod_that_was_made_anew(kubernetes: Kubernetes) -> None:
    def replace(name: str) -> None:
        kubernetes.change(lambda state: state["pods"][name].update(place="uid-new b 10.0.0.2"))

    with Kubelet(kubernetes, replace):
        done = kubernetes.upgrade()
    assert done.returncode == 1 and "is a new pod; its cache is lost" in done.stderr


def test_a_dry_run_changes_nothing(kubernetes: Kubernetes) -> None:
    before = kubernetes.file.read_text()
    done = kubernetes.upgrade("--dry-run")
    assert done.returncode == 0 and done.stdout.count("would get") == len(NAMES)
    assert json.loads(kubernetes.file.read_text()) == json.loads(before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs KIND/NAME and IMAGE"),
        (["deployment/vllm", NEW], "must be statefulset/NAME or daemonset/NAME"),
        (["--timeout-s", "soon", "statefulset/a", NEW], "is no number of seconds"),
        (["--timeout-s"], "--timeout-s needs a value"),
        (["--image", "a"], "unknown option --image"),
    ],
)
def test_wrong_arguments_are_said(arguments: list[str], said: str) -> None:
    done = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and said in done.stderr


def test_help_has_an_example() -> None:
    done = subprocess.run([str(SCRIPT), "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and "Example:" in done.stdout
