"""A node that stops to be restarted, or upgraded in place: nobody stalls, and no put fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import kvstore
from kvstore import MissReason, Status
from tests.fault.paced import paced
from tests.fault.replay_restart import other_version
from tests.fault.test_hung_node import keys_on
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(600)]

SIZE = 8 << 10
TIMEOUT_MS = 10_000


def fill(store: kvstore.Store, *node_ids: str) -> dict[str, list[str]]:
    """Put until each node holds twenty objects; the keys of each."""
    keys: list[str] = []
    held: dict[str, list[str]] = {}
    for turn in range(60):
        more = [f"k/{turn}/{i}" for i in range(20)]
        assert store.batch_put(more, [proof(key, SIZE) for key in more]) == [Status.Ok] * len(more)
        keys += more
        held = {name: keys_on(store, keys, name) for name in node_ids}
        if min(map(len, held.values())) >= 20:
            return held
    raise AssertionError(f"objects lie on one node: { {n: len(k) for n, k in held.items()} }")


def missed(store: kvstore.Store, keys: list[str]) -> list[MissReason]:
    """The reasons of a batch of gets; what is found is right."""
    reasons: list[MissReason] = []
    found = store.batch_get(keys, reasons=reasons)
    for key, data in zip(keys, found, strict=True):
        assert data is None or bytes(data) == proof(key, SIZE), f"wrong bytes of {key}"
    return reasons


def wait_found(store: kvstore.Store, keys: list[str]) -> None:
    wait_for(lambda: not any(missed(store, keys)), "the node's objects", 30)


def test_a_node_is_upgraded_in_place(cluster: Cluster, tmp_path: Path) -> None:
    package = other_version(tmp_path)
    nodes = {name: cluster.start_node(name, restart_ms=60_000) for name in "ab"}
    near = cluster.connect(timeout_ms=TIMEOUT_MS)
    far = cluster.connect(transport="tcp", timeout_ms=TIMEOUT_MS)
    held = fill(near, "a", "b")
    on_a, on_b = held["a"], held["b"]
    for store in (near, far):
        assert not any(missed(store, on_a + on_b))
    ports = {name: nodes["a"].ports[name] for name in ("port", "http_port")}

    assert nodes["a"].terminate() == 0
    assert cluster.node_states() == {"a": "restarting", "b": "alive"}
    # On its host its memory is read still, of which the master says what is valid.
    assert not any(missed(near, on_a + on_b))
    assert near.prefix_length(on_a) == len(on_a)
    # From elsewhere nobody waits for it.
    begun = time.monotonic()
    assert missed(far, on_a) == [MissReason.Restarting] * len(on_a)
    assert far.prefix_length(on_a) == 0
    assert time.monotonic() - begun < TIMEOUT_MS / 1000 / 2, "a get waited for the node"
    assert not any(missed(far, on_b))
    changed, removed, kept = on_a[0], on_a[1], on_a[2:]
    for store, name in ((near, "near"), (far, "far")):
        keys = [f"{name}/{i}" for i in range(20)]
        assert store.batch_put(keys, [proof(key, SIZE) for key in keys]) == [Status.Ok] * 20
    assert near.put(changed, b"another version", upsert=True) is Status.Ok
    assert near.get(changed) == b"another version"
    assert near.remove(removed) is Status.Partial  # the node has not heard of it
    assert near.get(removed) is None

    config = {**cluster.configs["a"], **ports}
    again = cluster.start_node("a", package=package, **config)
    assert again.ports["port"] == ports["port"]
    for store in (near, far):
        wait_found(store, kept)
        assert store.get(changed) == b"another version"
        assert store.get(removed) is None
    versions = {one["node_id"]: one["state"] for one in cluster.cli("nodes")}
    assert versions == {"a": "alive", "b": "alive"}


def test_no_put_fails_and_no_get_waits_for_the_node(cluster: Cluster) -> None:
    """Paced clients beside the restart, in processes of their own; they verify what they read."""
    nodes = {name: cluster.start_node(name, restart_ms=60_000) for name in "abc"}
    ports = {name: nodes["a"].ports[name] for name in ("port", "http_port")}
    with paced(cluster.address, ("auto", "tcp"), rate=100.0) as clients:
        fill(cluster.connect(timeout_ms=TIMEOUT_MS), "a")
        begun = time.monotonic()
        assert nodes["a"].terminate() == 0
        cluster.start_node("a", **cluster.configs["a"], **ports)
        outage_ms = (time.monotonic() - begun) * 1000
        seen = {one.transport: one.stop() for one in clients}
    for transport, one in seen.items():
        assert one["gets"] > 0 and one["puts"] > 0, transport
        assert one["failed_puts"] == 0, f"{transport}: {one['failures']}"
        assert one["wrong_bytes"] == 0, transport
        assert one["worst_get_ms"] < outage_ms / 2, f"{transport}: {one['worst_gets']}"


def test_a_node_does_not_return(cluster: Cluster) -> None:
    nodes = {name: cluster.start_node(name, restart_ms=4000) for name in "ab"}
    near = cluster.connect(timeout_ms=TIMEOUT_MS)
    on_a = fill(near, "a")["a"]
    assert nodes["a"].terminate() == 0
    cluster.wait_state("a", "restarting")
    cluster.wait_state("a", "dead")
    assert missed(near, on_a) == [MissReason.NodeDown] * len(on_a)
    assert near.prefix_length(on_a) == 0


def test_a_node_returns_without_its_memory(cluster: Cluster) -> None:
    """What others read until it is back is not what it comes back with."""
    nodes = {name: cluster.start_node(name, restart_ms=60_000) for name in "ab"}
    near = cluster.connect(timeout_ms=TIMEOUT_MS)
    on_a = fill(near, "a")["a"]
    assert nodes["a"].terminate() == 0
    for file in cluster.segment_dirs["a"].iterdir():
        if file.name.startswith(("segment", "index", "clients")):
            file.unlink()
    assert not any(missed(near, on_a))
    cluster.start_node("a", **cluster.configs["a"])
    wait_for(lambda: all(missed(near, on_a)), "the objects to be gone", 30)
    key = "after"
    assert near.put(key, proof(key, SIZE)) is Status.Ok and near.get(key) == proof(key, SIZE)


def test_a_master_that_restarts_meanwhile_takes_the_node_back(cluster: Cluster) -> None:
    nodes = {name: cluster.start_node(name, restart_ms=60_000) for name in "ab"}
    near = cluster.connect(timeout_ms=TIMEOUT_MS)
    on_a = fill(near, "a")["a"]
    assert nodes["a"].terminate() == 0
    cluster.master.terminate()
    cluster.restart_master()
    cluster.wait_state("b", "alive")
    # It knows no announcement of the one before, and waits for nobody.
    assert cluster.node_states()["a"] == "dead"
    wait_for(lambda: near.put("new", b"new").ok, "puts to be granted", 30)
    cluster.start_node("a", **cluster.configs["a"])
    wait_found(near, on_a)
