"""Hot prefixes, from reads to the console, `top` and `status`: they are the truth."""

from __future__ import annotations

import json
import random
import urllib.parse
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from kvstore import Store
from kvstore._proto import node_pb2, types_pb2
from kvstore.cli.operator import main
from kvstore.errors import Status
from tests.support.cluster import Cluster
from tests.support.control import control, http_get
from tests.support.processes import Daemon, wait_for
from tests.support.simulated import Simulated, simulated

pytestmark = pytest.mark.cluster

PAGE = 4096
PAGES = 8
HOSTILE = '<img src=x onerror="document.title=1">[red]\u202e\x1b[2J\n'
CHAINS = ("a", "b", HOSTILE, *(f"c{number}" for number in range(30)))
"""From the most to the least popular one."""


def look(master: Daemon, token: str | None = None) -> list[dict[str, Any]]:
    status, body = http_get(master, "/console/api/prefixes", token)
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["prefixes"]
    return found


def keys_of(chain: str) -> list[str]:
    return [f"{chain}/{page}" for page in range(PAGES)]


def put(store: Store, chain: str) -> None:
    done = store.batch_put(keys_of(chain), [bytes(PAGE)] * PAGES, parent="-")
    assert set(done) == {Status.Ok}


def read(stores: list[Store], rounds: int) -> dict[str, int]:
    """Read chains, each half as often as the one before, and say how many objects of each.

    Engines read by shared memory and by socket, whole chains and ends of chains.
    """
    chosen = random.Random(3)
    weights = [2.0**-place for place in range(len(CHAINS))]
    truth = dict.fromkeys(CHAINS, 0)
    for turn, chain in enumerate(chosen.choices(CHAINS, weights, k=rounds)):
        first = 0 if turn % 3 else PAGES // 2
        got = stores[turn % len(stores)].batch_get(keys_of(chain)[first:])
        assert None not in got
        truth[chain] += len(got)
    return truth


def test_the_most_read_prefixes_are_the_truth(cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.start_node(name, hot_reads_per_s=0)  # a copy does not always know its chain
    stores = [
        cluster.connect(namespace="model/a", transport=transport) for transport in ("auto", "tcp")
    ]
    for chain in CHAINS:
        put(stores[0], chain)
    other = cluster.connect(namespace="")
    assert other.put("alone", bytes(PAGE)) is Status.Ok
    assert other.get("alone") is not None
    truth = read(stores, 1500)
    expected = [f"{chain}/0" for chain in CHAINS[:4]]
    total = sum(truth.values())

    def told() -> list[dict[str, Any]] | None:
        # Rates age all alike, so their shares are those of the reads once all are reported.
        rows = look(cluster.master)
        found = {row["key"]: row["reads_per_s"] for row in rows if row["namespace"] == "model/a"}
        reads = sum(found.values())
        shares = {key: rate / reads for key, rate in found.items()} if reads else {}
        close = all(
            abs(shares.get(f"{chain}/0", 0) - truth[chain] / total) < 0.02 for chain in CHAINS[:4]
        )
        return rows if close else None

    rows = wait_for(told, "the shares of the reads", 20)
    assert [row["key"] for row in rows[:4]] == expected
    for row in rows:
        assert row["key"] == "alone" or row["key"].endswith("/0"), "a page inside of a chain"
        assert row["read_bytes_per_s"] == pytest.approx(row["reads_per_s"] * PAGE)
    assert {(row["tenant"], row["namespace"]) for row in rows} == {
        ("default", "model/a"),
        ("default", ""),
    }
    # The same by the commands, where nothing of a name reaches the terminal or rich.
    where = ["--master", cluster.address]
    lately = cluster.cli("status")
    assert [row["key"] for row in lately["hot_prefixes"][:4]] == expected
    assert [row["key"] for row in cluster.cli("top")["prefixes"][:4]] == expected
    shown = CliRunner().invoke(main, ["top", "--once", *where], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "most read prefix" in shown.output and "default model/a" in shown.output
    assert "[red]\\u202e\\x1b[2J\\n/0" in shown.output
    assert "\u202e" not in shown.output and "\x1b[2J" not in shown.output
    path = f"/console/api/explain?namespace=model%2Fa&key={urllib.parse.quote(expected[2])}"
    status, body = http_get(cluster.master, path)
    assert status == 200 and json.loads(body)["object"]["size"] == PAGE


def test_a_tenant_sees_the_prefixes_of_its_own(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    secret = "secret-0123456789"
    names = (("root", "operator", "*"), ("one", "client", "default"), ("two", "client", "two"))
    lines = [f"{name} {role} {tenants} {secret}-{name}\n" for name, role, tenants in names]
    tokens.write_text("".join([*lines, f"a node * {secret}-a\n"]))
    for number, (name, _, _) in enumerate(names):
        own = tmp_path / name
        own.touch(0o600)
        own.write_text(lines[number])
    (tmp_path / "c").mkdir()
    options = ["--auth-token-file", str(tokens)]
    cluster = Cluster(tmp_path / "c", options, str(tmp_path / "root"))
    try:
        cluster.start_node("a", auth_token_file=str(tokens))
        for name, tenant in (("one", "default"), ("two", "two")):
            store = cluster.connect(tenant=tenant, token_file=str(tmp_path / name))
            assert store.put(f"of {name}", b"x") and store.get(f"of {name}")

        def seen(name: str) -> set[str]:
            return {row["key"] for row in look(cluster.master, f"{name}:{secret}-{name}")}

        wait_for(lambda: seen("root") == {"of one", "of two"}, "the operator to see both", 20)
        assert (seen("one"), seen("two")) == ({"of one"}, {"of two"})
        assert http_get(cluster.master, "/console/api/prefixes", f"a:{secret}-a")[0] == 403
        assert http_get(cluster.master, "/console/api/prefixes")[0] == 401
        where = ["--master", cluster.address, "--token-file", str(tmp_path / "one")]
        for command, name in (("top", "prefixes"), ("status", "hot_prefixes")):
            result = CliRunner().invoke(main, [command, "--json", *where])
            assert result.exit_code == 0, result.output
            assert [row["key"] for row in json.loads(result.stdout)[name]] == ["of one"]
    finally:
        cluster.close()


def test_what_a_node_reports_is_checked(cluster: Cluster) -> None:
    """A node of another build, or somebody with its token, breaks neither master nor page."""
    with simulated(cluster.master, [Simulated("a")]) as (node,), control(cluster.master) as plane:

        def beat(*uses: node_pb2.PrefixUse) -> None:
            request = node_pb2.HeartbeatRequest(
                node_id="a", session_id=node.session_id, prefixes=uses
            )
            plane.nodes.Heartbeat(request, **plane.call)

        def use(key: str = "k", tenant: str = "t", name: str = "n", **more: int) -> Any:
            space = types_pb2.Namespace(tenant=tenant, name=name)
            return node_pb2.PrefixUse(namespace=space, key=key, **{"reads": 1, **more})

        most = 2**64 - 1
        for wrong in (
            [use(f"k{number}") for number in range(65)],
            [use(key="")],
            [use(key="k" * 1025)],
            [use(tenant="")],
            [use(name="\n")],
        ):
            with pytest.raises(grpc.RpcError) as error:
                beat(*wrong)
            assert error.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.OUT_OF_RANGE,
            )
        assert look(cluster.master) == []
        beat(use(HOSTILE, reads=most, bytes=most), use("k", reads=0))
        assert look(cluster.master)[0]["key"] == HOSTILE
        assert (
            CliRunner().invoke(main, ["top", "--once", "--master", cluster.address]).exit_code == 0
        )
