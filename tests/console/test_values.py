"""The numbers on the pages are those of /metrics: three real nodes, and two hundred on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore._proto import node_pb2
from kvstore.master.history import CAUSES, REASONS
from tests.console.pages import refreshed, rows, text, values, visit
from tests.support.browser import Page
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import wait_for
from tests.support.simulated import Simulated, simulated

pytestmark = [pytest.mark.console, pytest.mark.cluster, pytest.mark.timeout(600)]

MANY = 200


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, one with NVMe, that have served puts, reads by two ways, misses, evictions."""
    folder = tmp_path_factory.mktemp("busy")
    (folder / "nvme").mkdir()
    config = folder / "master.json"
    config.write_text('{"bytes_per_token": "1kb", "prefill_tokens_per_s": 2000}')
    cluster = Cluster(folder, ["--config", str(config)])
    try:
        tiered = {"nvme_dir": str(folder / "nvme"), "nvme_size": "64mb"}
        for name, more in (("a", {}), ("b", {}), ("c", tiered)):
            cluster.start_node(name, segment_size="8mb", **more)  # type: ignore[arg-type]
        size = 64 << 10
        for namespace, count in (("sglang-model", 500), ("vllm-model", 100)):
            store = cluster.connect(namespace=namespace)
            for number in range(count):
                store.put(f"k{number}", proof(f"k{number}", size))
                store.get(f"k{number // 3}")
            for number in range(count):
                store.get(f"k{number}")  # some have been evicted by now
            store.get("nobody")
        by_socket = cluster.connect(namespace="vllm-model", transport="tcp")
        assert by_socket.get("k99") == proof("k99", size)
        yield cluster
    finally:
        cluster.close()


def total(cluster: Cluster, name: str, **labels: str) -> float:
    return metric(cluster.master, f"kvstore_cluster_{name}", **labels)


def settled(cluster: Cluster) -> None:
    """Wait until the master's metrics have all that the nodes' own have."""

    def told() -> bool:
        nodes = cluster.nodes.values()
        for name in ("bytes_total", "hits_total", "puts_total", "evictions_total"):
            own = sum(metric(node, f"kvstore_{name}") for node in nodes)
            try:
                if own != total(cluster, name):
                    return False
            except AssertionError:
                return False  # no node has reported yet
        return True

    wait_for(told, "the nodes' reports", 20)


def test_the_overview(page: Page, busy: Cluster) -> None:
    settled(busy)
    page.shape(1280, 900)
    visit(page, busy.master, "overview")
    page.click("input[name=window][value='21600000']")
    refreshed(page)
    shown = values(page)
    hits = total(busy, "hits_total", seen_by="client", path="shm")
    hits += total(busy, "hits_total", seen_by="node", path="socket")
    missed = {reason: total(busy, "lookups_total", result=reason) for reason in REASONS}
    assert missed["absent"] == 2 and missed["evicted"] > 0
    read = total(busy, "bytes_total", operation="get")
    wanted = {
        "hits": hits,
        "misses": sum(missed.values()),
        "hit_ratio": hits / (hits + sum(missed.values())),
        "read_bytes": read,
        "read_bytes.socket": total(busy, "bytes_total", operation="get", path="socket"),
        "read_bytes.shm": total(busy, "bytes_total", operation="get", path="shm"),
        "put_bytes": total(busy, "bytes_total", operation="put"),
        "puts_ok": total(busy, "puts_total", result="ok"),
        "evictions": total(busy, "evictions_total"),
        "evictions.memory": total(busy, "evictions_by_cause_total", cause="memory"),
        "objects": total(busy, "objects"),
        "object_bytes": total(busy, "object_bytes"),
        "replicas": total(busy, "replicas"),
        "used_bytes": total(busy, "node_used_bytes"),
        "capacity_bytes": total(busy, "node_capacity_bytes"),
        "nvme_object_bytes": metric(busy.nodes["c"], "kvstore_nvme_object_bytes"),
        "saved_tokens": read / 1024,
        "saved_s": read / 1024 / 2000,
        **{f"misses.{reason}": count for reason, count in missed.items() if count},
    }
    assert {name: shown[name] for name in wanted} == pytest.approx(wanted)
    # Whatever is 0 has no row, and nothing else is on the page.
    for cause in CAUSES:
        assert (f"evictions.{cause}" in shown) == (cause == "memory")
    assert f"{wanted['hits']:,.0f} read" in text(page)
    assert "3 nodes" in text(page, "#state")


def test_the_nodes(page: Page, busy: Cluster) -> None:
    settled(busy)
    visit(page, busy.master, "nodes")
    found = {row["node_id"]: row for row in rows(page, "Nodes")}
    assert [*found] == ["a", "b", "c"]
    for name, row in found.items():
        own = busy.nodes[name]
        assert row["state"] == "alive"
        assert row["used_bytes"] == total(busy, "node_used_bytes", node=name)
        assert row["used_bytes"] == metric(own, "kvstore_used_bytes")
        assert row["used_bytes.of"] == total(busy, "node_capacity_bytes", node=name)
        assert row["replicas"] == total(busy, "node_replicas", node=name)
        assert row["index_entries"] == metric(own, "kvstore_index_entries", state="used")
    assert found["c"]["nvme"] == metric(busy.nodes["c"], "kvstore_nvme_object_bytes") > 0
    assert "nvme" not in found["b"]


def test_the_tenants(page: Page, busy: Cluster) -> None:
    settled(busy)
    visit(page, busy.master, "tenants")
    spaces = {row["namespace"]: row for row in rows(page, "Namespaces")}
    assert {*spaces} == {"sglang-model", "vllm-model"}
    for name, row in spaces.items():
        assert row["objects"] == total(busy, "namespace_objects", namespace=name)
        assert row["bytes"] == total(busy, "namespace_bytes", namespace=name)
        found = total(busy, "namespace_lookups_total", namespace=name, result="hit")
        assert row["keys_found"] == found
        missed = total(busy, "namespace_lookups_total", namespace=name, result="miss")
        assert row["keys_looked_up"] == found + missed
    (owner,) = rows(page, "Tenants")
    assert owner["hits"] == total(busy, "tenant_hits_total", tenant="default")
    assert owner["bytes"] == sum(row["bytes"] for row in spaces.values())


def test_the_prefixes(page: Page, busy: Cluster) -> None:
    store = busy.connect(namespace="vllm-model")
    keys = [f"prompt/{number}" for number in range(4)]
    store.batch_put(keys, [b"x" * 100] * 4, parent="-")
    for _ in range(500):
        store.batch_get(keys)

    def told() -> bool:
        visit(page, busy.master, "prefixes")
        first = rows(page, "Hot prefixes")[0]
        return (first.get("key"), first.get("namespace")) == ("prompt/0", "vllm-model")

    wait_for(told, "the page to show the chain that is read most", 30)
    shown = rows(page, "Hot prefixes")
    assert not {*keys[1:]} & {row["key"] for row in shown}
    rates = [row["reads_per_s"] for row in shown]
    assert rates == sorted(rates, reverse=True) and rates[0] > 2 * rates[1]
    assert shown[0]["read_bytes_per_s"] == pytest.approx(100 * rates[0])


def test_the_events(page: Page, busy: Cluster) -> None:
    visit(page, busy.master, "events")
    kinds = page.evaluate("[...document.querySelectorAll('.event')].map((one) => one.dataset.kind)")
    assert kinds.count("joined") == 3 and kinds.count("evicted") == 1 and kinds[-1] == "started"
    evicted = int(total(busy, "evictions_total"))
    assert f"{evicted:,} objects evicted for room in memory" in text(page)


def test_a_key(page: Page, busy: Cluster) -> None:
    store = busy.connect(namespace="vllm-model")
    store.put("found here", b"x" * 1234)
    visit(page, busy.master, "explain")
    page.type("#namespace", "vllm-model")
    page.type("#key", "found here")
    page.click("form button")
    page.wait("!document.querySelector('.result').hidden", "the explanation")
    assert values(page)["size"] == 1234
    assert "It can be read." in text(page)
    page.type("#key", "it's nowhere")
    page.click("form button")
    page.wait("document.querySelector('.result').innerText.includes('no such')", "the answer")
    assert "kvstore explain 'it'\\''s nowhere' --tenant default" in text(page)


def test_two_hundred_nodes(page: Page, tmp_path: Path, pictures: Path) -> None:
    config = tmp_path / "master.json"
    config.write_text('{"node_ttl_ms": 60000}')  # one thread speaks for all of them
    cluster = Cluster(tmp_path, ["--config", str(config)])
    nodes = [
        Simulated(
            f"gpu-{number:03}",
            used_bytes=(number + 1) << 30,
            index_entries=1000 * number,
            labels={"rack": f"r{number // 20}"},
            counters=[
                ("hits", ["client", "shm"], 3 * number),
                ("bytes", ["get", "shm"], number << 20),
                ("evictions", [], number),
                ("evictions_by_cause", ["memory"], number),
            ],
            health=node_pb2.NodeHealth(
                software_version="0.1.0", lacks=["index: it cannot grow"] if number == 150 else []
            ),
        )
        for number in range(MANY)
    ]
    try:
        with simulated(cluster.master, nodes):
            wait_for(lambda: all(node.beats > 1 for node in nodes), "every heartbeat", 60)
            page.shape(1280, 900)
            visit(page, cluster.master, "nodes")
            assert values(page)["shown"] == MANY
            assert len(rows(page, "Nodes")) == 100
            # Those with problems are among the first hundred.
            assert "gpu-150" in {row["node_id"] for row in rows(page, "Nodes")}
            page.screenshot(pictures / "nodes-200.png", whole=False)
            page.evaluate("document.querySelector('#view > div > button').click()")
            found = {row["node_id"]: row for row in rows(page, "Nodes")}
            assert len(found) == MANY
            for node in nodes:
                row = found[node.node_id]
                used = total(cluster, "node_used_bytes", node=node.node_id)
                assert row["used_bytes"] == node.used_bytes == used
                assert row["index_entries"] == node.index_entries
            page.type("#filter", "rack=r3")
            assert {row["node_id"] for row in rows(page, "Nodes")} == {
                f"gpu-{number:03}" for number in range(60, 80)
            }
            visit(page, cluster.master, "overview")
            shown = values(page)
            assert shown["hits"] == total(cluster, "hits_total") == 3 * sum(range(MANY))
            assert shown["read_bytes"] == total(cluster, "bytes_total") == sum(range(MANY)) << 20
            assert shown["evictions"] == total(cluster, "evictions_total")
            assert shown["used_bytes"] == total(cluster, "node_used_bytes")
            assert "200 nodes" in text(page, "#state")
            page.screenshot(pictures / "overview-200.png")
    finally:
        cluster.close()
