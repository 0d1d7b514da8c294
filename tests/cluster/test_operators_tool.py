"""The operator's tool on a real cluster: what it says, asks and refuses, and how it exits."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvstore import Status
from kvstore.cli.output import Exit
from kvstore.replay.payload import payload
from tests.support.cluster import Cluster
from tests.support.processes import wait_for
from tests.support.tool import Ran, run, run_on_terminal

pytestmark = pytest.mark.cluster

HOSTILE = "evil\x1b[2Jkey\nsecond line\x9b31m\u202ereversed\\"


@pytest.fixture
def tool(cluster: Cluster) -> Callable[..., Ran]:
    """Runs a command on the cluster, which has a node."""
    cluster.start_node("a", segment_size="32mb")
    return lambda *arguments, **more: run(*arguments, "--master", cluster.address, **more)


def on_terminal(cluster: Cluster, *arguments: str, **more: Any) -> Ran:
    return run_on_terminal(*arguments, "--master", cluster.address, **more)


def shown(ran: Ran) -> Any:
    assert ran.code == 0, ran
    return json.loads(ran.out)


# --- what reaches a terminal ---


def test_no_key_writes_to_the_terminal(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    store = cluster.connect()
    assert store.put(HOSTILE, b"\x1b[31mred")
    store.put("plain\\key", b"text\n")
    for command in ("ls", "exists", "explain", "inspect", "get", "unpin", "rm"):
        arguments = [command] if command == "ls" else [command, HOSTILE]
        for ran in (tool(*arguments), on_terminal(cluster, *arguments)):
            text = (ran.out + ran.err).replace("\r\n", "\n")
            if command == "get" and not ran.err and ran.code == 0:
                assert ran.out == "\x1b[31mred", "a pipe takes the bytes themselves"
                continue
            bold = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
            assert not set("\x1b\x9b\u202e") & set(bold), (command, ran)
            assert "\nsecond line" not in text, (command, ran)
    assert tool("ls").out == "plain\\key\n", "a printable key is shown as it is"


def test_json_is_exact(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    store = cluster.connect()
    names = [HOSTILE, "日本語", "emoji 🦊", "tab\t"]
    store.batch_put(names, [b"v"] * len(names))
    assert sorted(shown(tool("ls", "--json"))) == sorted(names)
    assert shown(tool("exists", HOSTILE, "--json")) == {HOSTILE: True}
    assert shown(tool("ls", "--json", PYTHONIOENCODING="ascii")).count("日本語") == 1
    assert "日本語" in tool("ls", "--json").out
    assert "\x9b" not in tool("ls", "--json").out


def test_tables_are_never_cut(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    name = "node-with-a-name-" + "x" * 200
    cluster.start_node(name, segment_size="32mb")
    key = "k" * 1000
    cluster.connect().put(key, b"v")
    for ran in (tool("nodes", COLUMNS="20"), on_terminal(cluster, "nodes", columns=20)):
        assert name in ran.out.replace("\r\n", "\n"), ran
        assert "…" not in ran.out
    assert key in tool("inspect", key).out
    header, *rows = tool("nodes").out.splitlines()
    assert {
        line.index(state)
        for line, state in zip([header, *rows], ["state", "alive", "alive"], strict=True)
    } == {header.index("state")}


# --- get, and what a miss says ---


def test_get_says_why_there_is_nothing(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    store = cluster.connect()
    absent = tool("get", "nobody")
    assert absent.code == Exit.MISS and "absent" in absent.err
    store.put("gone", b"v")
    store.remove("gone")
    removed = tool("get", "gone")
    assert removed.code == Exit.MISS and "it was removed (removed)" in removed.err
    assert store.put("brief", b"v", ttl_ms=1)
    wait_for(lambda: tool("get", "brief").code == Exit.MISS, "the object to expire")
    assert shown_anyway(tool("get", "nobody", "--json")) == {
        "key": "nobody",
        "found": False,
        "reason": "absent",
        "size": None,
        "data_base64": None,
    }


def shown_anyway(ran: Ran) -> Any:
    return json.loads(ran.out)


def test_get_as_json_and_into_a_file(
    cluster: Cluster, tool: Callable[..., Ran], tmp_path: Path
) -> None:
    data = bytes(range(256))
    cluster.connect().put("k", data)
    found = shown(tool("get", "k", "--json"))
    assert base64.b64decode(found["data_base64"]) == data and found["size"] == 256
    file = tmp_path / "out"
    assert shown(tool("get", "k", "--json", "-o", str(file)))["output"] == str(file)
    assert file.read_bytes() == data
    nowhere = tool("get", "k", "-o", str(tmp_path / "no" / "file"))
    assert nowhere.code == Exit.USAGE and "Traceback" not in nowhere.err
    terminal = on_terminal(cluster, "get", "k")
    assert terminal.code == Exit.USAGE and "-o FILE" in terminal.out


def test_dead_nodes_keep_their_rows(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    store = cluster.connect()
    store.put("k", b"v", pin="hard", ttl_ms=3_600_000)
    alive = tool("inspect", "k")
    assert alive.code == 0
    lines = dict(line.split(None, 1) for line in alive.out.splitlines()[:7])
    assert (lines["size"], lines["pin"]) == ("1 B (1 bytes)", "hard")
    assert lines["expires"] in ("in 1 h", "in 59 min 59 s", "in 59 min 58 s"), lines
    assert "{" not in alive.out and "None" not in alive.out
    record = shown(tool("inspect", "k", "--json"))
    assert record["replicas"] == [
        {"node_id": "a", "tier": "dram", "state": "alive", "down_since_ms": None}
    ]
    assert 3_500_000 < record["ttl_left_ms"] <= 3_600_000
    cluster.nodes["a"].kill()
    cluster.wait_state("a", "dead")
    for command, words in (("inspect", "node_down since 20"), ("explain", "node_down since 20")):
        ran = tool(command, "k")
        assert ran.code == Exit.UNAVAILABLE, ran
        (row,) = [line for line in ran.out.splitlines() if line.startswith("a ")]
        assert words in row, ran
        document = shown_anyway(tool(command, "k", "--json"))
        row = document["replicas"][0] if command == "inspect" else document[0]
        assert row["node_id"] == "a" and row["down_since_ms"] > 0
    got = tool("get", "k")
    assert got.code == Exit.UNAVAILABLE and "node_down" in got.err
    assert tool("explain", "never put").code == Exit.MISS


# --- flush and namespaces ---


def test_a_flush_names_what_it_empties(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    llama = cluster.connect(namespace="llama-3/bf16")
    llama.batch_put(["a", "b"], [b"12345", b"1"])
    cluster.connect().put("kept", b"v")
    refused = tool("flush")
    assert refused.code == Exit.USAGE and "--namespace" in refused.err and "--all" in refused.err
    assert tool("flush", "--all", "--namespace", "x").code == Exit.USAGE
    misspelt = tool("flush", "--namespace", "lama-3/bf16")
    assert misspelt.code == Exit.MISS and "did you mean 'llama-3/bf16'?" in misspelt.err
    assert llama.get("a") == b"12345"
    asked = on_terminal(cluster, "flush", "--namespace", "llama-3/bf16", answer="n\n")
    assert asked.code == Exit.FAILED and "flush 2 objects (6 B)" in asked.out
    assert llama.get("a") == b"12345"
    gone = tool("flush", "--namespace", "llama-3/bf16")
    assert gone.code == 0 and "2 objects (6 B) went" in gone.out
    assert llama.get("a") is None and cluster.connect().get("kept") == b"v"
    llama.put("c", b"v")
    asked = on_terminal(cluster, "flush", "--namespace", "", answer="y\n")
    assert asked.code == 0 and cluster.connect().get("kept") is None
    every = shown(tool("flush", "--all", "--json"))
    assert {one["namespace"]: one["objects"] for one in every}["llama-3/bf16"] == 1
    assert llama.get("c") is None
    llama.put("d", b"v")
    assert on_terminal(cluster, "flush", "--all", "--yes").code == 0
    assert llama.get("d") is None


def test_namespaces_are_listed(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    for tenant, namespace, count in (("t", "n", 3), ("default", "", 1), ("t", "m", 2)):
        with_names = cluster.connect(tenant=tenant, namespace=namespace, transport="tcp")
        keys = [f"k/{i}" for i in range(count)]
        with_names.batch_put(keys, [bytes(100)] * count)
        assert with_names.exists("k/0") and not with_names.exists("nobody")
    listed = shown(tool("namespaces", "--json"))
    assert [(one["tenant"], one["namespace"], one["objects"], one["bytes"]) for one in listed] == [
        ("t", "n", 3, 300),
        ("t", "m", 2, 200),
        ("default", "", 1, 100),
    ]
    assert all(one["keys_looked_up"] > one["keys_found"] >= 1 for one in listed)
    assert [one["namespace"] for one in shown(tool("namespaces", "--json", "--tenant", "t"))] == [
        "n",
        "m",
    ]
    assert "(default)" in tool("namespaces").out


# --- put, ls, unpin ---


def test_put_takes_what_the_library_takes(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    store = cluster.connect()
    few = tool("put", "k", "--replicas", "3", "--pin", "hard", "--parent", "before", input=b"1")
    assert few.code == 0 and "1 living node" in few.err and few.out.startswith("Ok")
    assert tool("put", "k", input=b"2").out.startswith("AlreadyExists")
    assert tool("put", "k", "--upsert", input=b"3").out.startswith("Ok")
    assert store.get("k") == b"3"
    store.put("pinned", b"v", pin="hard")
    assert tool("unpin", "pinned").out == "unpinned 1\n"
    found = store.inspect("pinned")
    assert found is not None and found["pin"] is None
    assert tool("unpin", "nobody").code == Exit.MISS
    assert tool("put", "k2", "--ttl-ms", "-1", input=b"").code == Exit.USAGE


def test_a_list_that_stops_says_so(cluster: Cluster, tool: Callable[..., Ran]) -> None:
    store = cluster.connect()
    keys = [f"k/{i:04}" for i in range(1200)]
    store.batch_put(keys, [b"v"] * len(keys))
    cut = tool("ls")
    assert len(cut.out.splitlines()) == 1000 and "stopped at 1,000" in cut.err and cut.code == 0
    whole = tool("ls", "--limit", "0")
    assert sorted(whole.out.splitlines()) == keys and not whole.err
    exact = tool("ls", "k/00", "--limit", "100")
    assert len(exact.out.splitlines()) == 100 and not exact.err
    assert len(json.loads(tool("ls", "--json", "--limit", "7").out)) == 7


# --- which master ---


def test_every_wrong_port_is_recognized(cluster: Cluster) -> None:
    node = cluster.start_node("a", segment_size="32mb")
    master = cluster.master.ports
    for port, word in (
        (master["http_port"], "the HTTP port of a kvstore master"),
        (node.ports["http_port"], "the HTTP port of a kvstore node"),
        (master["grpc_port"], "a gRPC port"),
    ):
        for command in (["nodes"], ["get", "k"]):
            ran = run(*command, "--master", f"127.0.0.1:{port}", "--timeout-ms", "2000")
            assert ran.code in (Exit.UNAVAILABLE, Exit.FAILED), ran
            assert word in ran.err and "block port" in ran.err, ran
            assert f"127.0.0.1:{port}" in ran.err and "Traceback" not in ran.err


def test_no_answer_names_address_and_time(cluster: Cluster) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{silent.getsockname()[1]}"
        ran = run("nodes", "--master", closed)
        assert ran.code == Exit.UNAVAILABLE and f"nothing listens at {closed}" in ran.err
        silent.listen()
        ran = run("get", "k", "--master", closed, "--timeout-ms", "300")
        assert ran.code == Exit.UNAVAILABLE and closed in ran.err and "300 ms" in ran.err
    ran = run("nodes", "--master", "no.such.host.invalid", "--timeout-ms", "3000")
    assert ran.code == Exit.UNAVAILABLE and "no.such.host.invalid" in ran.err
    assert run("nodes", "--master", "http://127.0.0.1").code == Exit.USAGE
    assert run("nodes", "--timeout-ms", "0").code == Exit.USAGE


def test_a_list_of_masters_is_tried_in_order(cluster: Cluster) -> None:
    cluster.start_node("a", segment_size="32mb")
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        several = f"127.0.0.1:{dead.getsockname()[1]},{cluster.address}"
        for command in (["nodes"], ["ls"], ["namespaces"]):
            assert run(*command, "--master", several).code == 0
            assert run(*command, KVSTORE_MASTER=several).code == 0


# --- replay ---


def test_a_replay_needs_the_option_and_cleans_up(
    cluster: Cluster, tool: Callable[..., Ran]
) -> None:
    store = cluster.connect()
    replay = ["replay", "--block-bytes", "4kb", "--limit", "20", "--json"]
    alone = run(*replay, KVSTORE_MASTER=cluster.address)
    assert alone.code == 0 and "only with --master" in alone.err
    assert "segment_bytes" in json.loads(alone.out), "it ran on an embedded store"
    assert not list(store.keys())
    assert store.put("replay/4096/0", payload(0, 4096)), "of somebody else"
    report = shown(tool(*replay))
    assert report["puts"]["Ok"] > 10 and report["hit_rate"] > 0
    assert list(store.keys()) == ["replay/4096/0"]
    assert shown(tool(*replay, "--keep"))["puts"]["Ok"] > 10
    assert len(list(store.keys())) > 10
    assert store.remove("replay/4096/0") is Status.Ok
