"""Engines on a node's host: who maps its memory, who does not, and how the others get to know."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.other_user import (
    GROUP,
    NOBODY,
    needs_another_user,
    needs_namespaces,
    open_folder,
    run_client,
)
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster


def refused(cluster: Cluster, cause: str) -> float:
    return metric(cluster.nodes["a"], "kvstore_attaches_refused_total", cause=cause)


def assert_mapped(seen: dict[str, Any]) -> None:
    assert seen["lines"] == []
    [peer] = seen["peers"]
    assert (peer["path"], peer["cause"], peer["same_host"]) == ("shm", None, True)
    assert seen["stats"]["paths"] == {"shm": 1}
    assert seen["stats"]["hits_tcp"] == seen["stats"]["put_bytes_tcp"] == 0


def assert_warned_once(seen: dict[str, Any], cause: str, *words: str) -> None:
    """Two stores of a process tried again and again; its log has one line."""
    [line] = seen["lines"]
    assert line.startswith(f"node a is on this host, but its memory cannot be mapped ({cause})")
    [peer] = seen["peers"]
    assert (peer["path"], peer["cause"], peer["same_host"]) == ("tcp", cause, True)
    assert peer["attach_failures"] >= 1
    for word in words:
        assert word in line
    assert peer["why"] in line and peer["setting"] in line
    stats = seen["stats"]
    assert (stats["paths"], stats["unattached"]) == ({"tcp": 1}, {cause: 1})
    assert stats["nodes"][0]["why"] == peer["why"]
    assert stats["hits_shm"] == 0 and stats["hits_tcp"] == 20


def test_a_client_of_the_same_user_maps_the_memory_and_says_so(cluster: Cluster) -> None:
    cluster.start_node("a")
    assert_mapped(run_client(cluster.address, "k"))
    tcp = run_client(cluster.address, "tcp", transport="tcp")
    assert tcp["lines"] == [], "whoever asks for TCP gets no warning"
    [peer] = tcp["peers"]
    assert (peer["path"], peer["cause"]) == ("tcp", "transport")
    assert refused(cluster, "permission") == 0


def test_another_user_is_told_once_and_by_the_node_too(cluster: Cluster) -> None:
    needs_another_user()
    cluster.start_node("a")
    seen = run_client(cluster.address, "k", user=NOBODY)
    assert_warned_once(seen, "permission", f"uid {NOBODY}", "socket_dir", "socket_group")
    assert refused(cluster, "permission") >= 1
    with pytest.raises(AssertionError, match=r"socket_group.*: a: connect\(.*Permission"):
        run_client(cluster.address, "k", user=NOBODY, transport="shm")


def test_a_tenant_without_shared_memory_is_told(cluster: Cluster) -> None:
    cluster.start_node("a")
    seen = run_client(cluster.address, "k", tenant="research")
    assert_warned_once(seen, "tenant", "shm_write")
    assert refused(cluster, "tenant") >= 1


def test_a_command_about_one_object_does_not_lecture(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_node("a")
    file = tmp_path / "value"
    file.write_bytes(b"value")
    command = [sys.executable, "-m", "kvstore.cli.operator", "put", "k", str(file)]
    command += ["--master", cluster.address, "--tenant", "research"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert refused(cluster, "tenant") >= 1


def test_members_of_the_socket_group_map_the_memory(cluster: Cluster) -> None:
    needs_another_user()
    with open_folder() as folder:
        node = cluster.start_node("a", socket_dir=str(folder), socket_group=str(GROUP))
        place = folder / "a"
        socket = place / "node.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o660
        assert stat.S_IMODE(place.stat().st_mode) == 0o750
        assert socket.stat().st_gid == place.stat().st_gid == GROUP
        assert not (cluster.segment_dirs["a"] / "node.sock").exists()
        assert_mapped(run_client(cluster.address, "member", user=NOBODY, groups=[7, GROUP]))
        assert_warned_once(
            run_client(cluster.address, "stranger", user=NOBODY, groups=[7]), "permission"
        )
        # The node itself looks at who connects, whatever became of the permissions.
        place.chmod(0o777)
        socket.chmod(0o777)
        seen = run_client(cluster.address, "intruder", user=NOBODY, groups=[7])
        assert_warned_once(seen, "user", "socket_group", "auth_token_file")
        assert refused(cluster, "user") >= 1
        assert_mapped(run_client(cluster.address, "owner"))
        # The folder outlives the node, for containers that mount it: the next life takes it.
        inode = place.stat().st_ino
        node.kill()
        again = cluster.start_node("a", socket_dir=str(folder), socket_group=str(GROUP))
        assert stat.S_IMODE(place.stat().st_mode) == 0o750
        assert again.terminate() == 0
        assert list(place.iterdir()) == [] and place.stat().st_ino == inode
        last = cluster.start_node("a", socket_dir=str(folder), keep_segment=False)
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert last.terminate() == 0
        assert list(folder.iterdir()) == []


def test_a_token_opens_the_socket_to_every_user(tmp_path: Path) -> None:
    needs_another_user()
    names = {"engine": "client", "a": "node", "ops": "operator"}
    lines = [f"{name} {role} default,* {name * 20:.32}" for name, role in names.items()]
    with open_folder() as folder:
        everyone, engine, ops = folder / "everyone", folder / "engine", folder / "ops"
        for path, content in ((everyone, lines), (engine, lines[:1]), (ops, lines[2:])):
            path.write_text("\n".join(content) + "\n")
            path.chmod(0o600)
        os.chown(engine, NOBODY, NOBODY)
        master_options = ["--auth-token-file", str(everyone)]
        cluster = Cluster(tmp_path, master_options, operator_token_file=str(ops))
        try:
            cluster.start_node(
                "a",
                auth_token_file=str(everyone),
                socket_dir=str(folder / "sockets"),
                socket_mode="0666",
            )
            assert_mapped(run_client(cluster.address, "k", user=NOBODY, token_file=str(engine)))
        finally:
            cluster.close()


def test_a_container_needs_to_see_nothing_but_the_socket_folder(cluster: Cluster) -> None:
    needs_namespaces()
    hide = "mount -t tmpfs none /dev/shm"
    cluster.start_node("a")
    seen = run_client(cluster.address, "hidden", shell=hide)
    assert_warned_once(seen, "not_found", "socket_dir", "mount")
    assert refused(cluster, "not_found") >= 1
    cluster.nodes["a"].terminate()
    with open_folder() as folder:
        cluster.start_node("a", socket_dir=str(folder))
        shown = f"mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}; {hide}"
        assert_mapped(run_client(cluster.address, "shown", shell=shown))


def reads_without_memory(store: kvstore.Store) -> bool:
    """Read; whether that did not use a node's memory any more, with the reason."""
    assert store.get("k") in (None, b"v")
    [peer] = store.peers()
    return peer["path"] != "shm" and bool(peer["why"])


def test_a_restart_is_no_reason_to_warn(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.start_node("a")
    store = cluster.connect(timeout_ms=1000)
    with caplog.at_level(logging.WARNING, "kvstore"):
        for _ in range(2):
            assert store.put("k", b"v", upsert=True) is Status.Ok
            cluster.nodes["a"].kill()
            wait_for(lambda: reads_without_memory(store), "the death to be noticed")
            cluster.start_node("a")
            wait_for(lambda: store.peers()[0]["path"] == "shm", "the memory to be mapped again")
            assert store.get("k") == b"v"
    assert caplog.records == []


def test_asyncio_has_peers_too(cluster: Cluster) -> None:
    cluster.start_node("a")

    async def paths() -> list[str]:
        async with await kvstore.connect_async(cluster.address) as store:
            return [peer["path"] for peer in await store.peers()]

    assert asyncio.run(paths()) == ["shm"]


def test_a_closed_store_has_no_peers(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect()
    store.close()
    with pytest.raises(kvstore.ClosedError):
        store.peers()
    assert store.stats()["nodes"][0]["node_id"] == "a"
