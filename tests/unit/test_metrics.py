"""Metrics out of native counters: names, labels, histograms, both expositions whole."""

from __future__ import annotations

import re
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvstore import __version__, metrics
from kvstore._proto import node_pb2
from kvstore.activity import OPERATIONS, Activity
from kvstore.errors import InvalidArgumentError, MissReason, TooLargeError
from kvstore.limits import MAX_ACTIVITY_COUNTERS, MAX_LACKS
from kvstore.master import convert
from kvstore.master import http as master_http
from kvstore.master.core_api import CoreNamespace
from kvstore.master.journal import Journal
from kvstore.master.model import Cluster, Endpoints, Health, Node, Nvme
from kvstore.master.registry import Registry
from kvstore.metrics import Counter, Gauge, Labelled, LabelledGauge
from kvstore.node import activity as node_activity
from kvstore.node import health as node_health
from kvstore.node import http as node_http
from kvstore.node.core_api import NodeCoreApi
from tests.support.fake_core import FakeCore


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_rows_become_families() -> None:
    rows = (
        Counter("c_total", "c", "A counter."),
        Gauge("g", "g", "A gauge."),
        Labelled("l_total", "l", "kind", "Labelled."),
    )
    stats = {"c": 3, "g": 4.5, "l": {"x": 1, "y": 2}}
    found = samples(metrics.renderer(lambda: metrics.families(rows, stats))())
    assert found["c_total", frozenset()] == 3
    assert found["g", frozenset()] == 4.5
    assert found["l_total", frozenset({("kind", "y")})] == 2
    assert ("process_resident_memory_bytes", frozenset()) in found


def test_buckets_are_counted_at_the_first_bound_above_them() -> None:
    buckets = [(5, 1), (10, 2), (11, 4), (2_000_000, 8), (60_000_000, 16)]
    found = dict(metrics.cumulate(buckets, (10e-6, 25e-6, 1.0, 10.0)))
    assert found == {"1e-05": 3, "2.5e-05": 7, "1": 7, "10": 15, "+Inf": 31}
    assert list(metrics.cumulate([], (1.0,))) == [("1", 0), ("+Inf", 0)]


def test_a_latency_is_in_seconds() -> None:
    family = metrics.latency_family(
        "x_seconds", "Help.", ["operation"], {("put",): metrics.Latency(((100, 4),), 400)}
    )
    found = samples(metrics.renderer(lambda: [family])())
    put = ("operation", "put")
    assert found["x_seconds_sum", frozenset({put})] == pytest.approx(400e-6)
    assert found["x_seconds_count", frozenset({put})] == 4
    assert found["x_seconds_bucket", frozenset({put, ("le", "5e-05")})] == 0
    assert found["x_seconds_bucket", frozenset({put, ("le", "0.0001")})] == 4


def test_names_follow_the_rules() -> None:
    rows: list[metrics.Row] = [*master_http.ROWS, *node_http.ROWS]
    for row in rows:
        assert row.name.startswith("kvstore_")
        assert (row in master_http.ROWS) == row.name.startswith("kvstore_cluster_")
        assert isinstance(row, Gauge | LabelledGauge) != row.name.endswith("_total"), row.name
        assert re.fullmatch(r"[a-z_]+", row.name) and row.help.endswith(".")


def native_stats(rows: tuple[metrics.Row, ...]) -> dict[str, Any]:
    return {row.key: {"hit": 1} if isinstance(row, Labelled | LabelledGauge) else 1 for row in rows}


def test_the_masters_exposition() -> None:
    core = FakeCore()
    core.stats = lambda: native_stats(master_http.ROWS)  # type: ignore[method-assign]
    done = Activity(
        {("hits", ("client", "shm")): 8, ("evictions", ()): 2},
        {"get": metrics.Latency(((100, 4),), 400)},
    )
    node = Node(
        "a", 1, 1, 0, session_id=1, published=Endpoints(tcp="t"), capacity_bytes=100, activity=done
    )
    registry = cast(
        Registry, SimpleNamespace(cluster=Cluster(0, nodes=MappingProxyType({"a": node})))
    )
    journal = cast(Journal, SimpleNamespace(written=5, failures=0, refusal="full"))
    calls = {("Register", "Ok"): 2}
    core.uses = [
        {
            "tenant": "t",
            "namespace": name,
            "epoch": 0,
            "objects": 2,
            "bytes": size,
            "keys_looked_up": 7,
            "keys_found": 4,
        }
        for name, size in (("small", 1), ("large", 9), ("middle", 5))
    ]
    render = metrics.renderer(master_http.collector(core, registry, journal, calls, lambda: 2))
    found = samples(render())
    a = ("node", "a")
    assert found["kvstore_cluster_node_capacity_bytes", frozenset({a})] == 100
    assert found["kvstore_cluster_node_used_bytes", frozenset({a})] == 0
    assert found["kvstore_cluster_nodes", frozenset({("state", "alive")})] == 1
    shm = frozenset({a, ("seen_by", "client"), ("path", "shm")})
    assert found["kvstore_cluster_hits_total", shm] == 8
    assert found["kvstore_cluster_evictions_total", frozenset({a})] == 2
    get = frozenset({a, ("operation", "get"), ("le", "0.0001")})
    assert found["kvstore_cluster_latency_seconds_bucket", get] == 4
    assert found["kvstore_cluster_lookups_total", frozenset({("result", "hit")})] == 1
    assert found["kvstore_cluster_journal_written_total", frozenset()] == 5
    assert found["kvstore_cluster_journal_full", frozenset()] == 1
    large = frozenset({("tenant", "t"), ("namespace", "large")})
    assert found["kvstore_cluster_namespace_bytes", large] == 9
    assert found["kvstore_cluster_namespace_lookups_total", large | {("result", "miss")}] == 3
    shown = {dict(labels)["namespace"] for name, labels in found if name.endswith("space_objects")}
    assert shown == {"large", "middle"}, "no more than configured"
    assert found["kvstore_cluster_namespaces", frozenset()] == 3
    assert (
        found["kvstore_cluster_rpc_total", frozenset({("method", "Register"), ("status", "Ok")})]
        == 2
    )
    ready = master_http.readiness(registry)
    assert ready() == (True, {"rebuilding": False, "awaited_nodes": []})


class FakeNode:
    prefault_error = ""

    def stats(self) -> dict[str, Any]:
        histogram = {"buckets": [(10, 1)], "sum": 10}
        stats = native_stats(node_http.ROWS)
        stats.update({f"{operation}_us": histogram for operation in OPERATIONS})
        stats.update({key: 7 for _, _, key in node_activity._OF_NODE})
        stats |= {"hits": 9, "hits_dram": 6, "hits_nvme": 3}
        stats["misses"] = {reason.value: 0 for reason in MissReason if reason.value != "none"}
        stats["link"] = "syncing"
        stats["prefault_error"] = self.prefault_error
        stats["index_error"] = ""
        stats["ucx_errors"] = {}
        stats["nvme"] = None
        return stats

    def beginning(self) -> dict[str, Any]:
        return {"restart_loses": ""}

    def client_counters(self) -> list[dict[str, Any]]:
        return [
            {"tenant": "default", "counters": {"misses_absent": 2, "hits_shm": 5}},
            {"tenant": "default", "counters": {"misses_absent": 1, "hits_shm": 1}},
            {"tenant": "other", "counters": {"hits_shm": 4}},
        ]


def test_the_nodes_exposition() -> None:
    fake = FakeNode()
    core = cast(NodeCoreApi, fake)
    found = samples(metrics.renderer(node_http.collector(core))())
    default = ("tenant", "default")
    assert found["kvstore_client_hits_shm_total", frozenset({default})] == 6
    assert found["kvstore_client_misses_total", frozenset({default, ("reason", "absent")})] == 3
    for labels, count in (
        ({("seen_by", "node"), ("path", "socket")}, 9),
        ({("seen_by", "client"), ("path", "shm")}, 10),
    ):
        assert found["kvstore_hits_total", frozenset(labels)] == count
    absent = {("seen_by", "client"), ("reason", "absent")}
    assert found["kvstore_misses_total", frozenset(absent)] == 3
    checksum = {("seen_by", "node"), ("reason", "checksum")}
    assert found["kvstore_misses_total", frozenset(checksum)] == 0
    for tier, count in (("dram", 6 + 10), ("nvme", 3)):
        assert found["kvstore_tier_hits_total", frozenset({("tier", tier)})] == count
    assert found["kvstore_link", frozenset({("state", "syncing")})] == 1
    assert found["kvstore_puts_total", frozenset({("result", "exists")})] == 7
    shm = frozenset({("operation", "put"), ("path", "shm")})
    assert found["kvstore_bytes_total", shm] == 7
    assert found["kvstore_latency_seconds_count", frozenset({("operation", "get")})] == 1
    assert node_http.readiness(core)() == (False, {"link": "syncing"})
    fake.prefault_error = "memory was taken"
    assert node_http.readiness(core)()[1]["prefault_error"] == "memory was taken"


def test_a_heartbeat_carries_what_was_done() -> None:
    fake = FakeNode()
    done = node_activity.of(fake.stats(), fake.client_counters())
    told = convert.activity_from(node_activity.to_wire(done))
    assert told.latencies == done.latencies
    assert told.counters == {name: count for name, count in done.counters.items() if count}


def test_a_heartbeat_carries_the_health() -> None:
    nvme: dict[str, Any] = {
        "state": "read_only",
        "capacity_bytes": 9,
        "object_bytes": 4,
        "objects": 2,
    }
    stats = {**FakeNode().stats(), "index_error": "no room", "nvme": {**nvme, "error": "full"}}
    told = node_health.of(stats, "", ["ucx: gone"], "`port`: wrong")
    assert convert.health_from(told) == Health(
        __version__,
        ("index: no room", "nvme read only: full", "ucx: gone"),
        "`port`: wrong",
        Nvme(**nvme),
    )
    # An older node says nothing; a hostile one is cut and escaped.
    assert convert.health_from(node_pb2.HeartbeatRequest().health) == Health()
    wire = node_pb2.NodeHealth(lacks=["\x1b[2J" + "x" * 10_000] * 100)
    (first, *others) = convert.health_from(wire).lacks
    assert first.startswith("\\x1b[2J") and len(first) < 300 and len(others) == MAX_LACKS - 1


def test_evictions_by_cause_and_what_tenants_read() -> None:
    stats = {**FakeNode().stats(), "evictions": 9, "index_evictions": 2, "expirations": 5}
    stats["nvme"] = {"dropped_objects": 3}
    clients = [
        {"tenant": f"t{number}", "counters": {"hits_shm": number, "bytes_read_ucx": 2 * number}}
        for number in range(30)
    ]
    counters = node_activity.of(stats, [*clients, clients[29]]).counters
    causes = {"memory": 7, "index": 2, "nvme": 3, "expired": 5}
    assert all(counters["evictions_by_cause", (name,)] == n for name, n in causes.items())
    hits = {labels[0]: n for (family, labels), n in counters.items() if family == "tenant_hits"}
    assert len(hits) == 16 and hits["t29"] == 58 and hits["t28"] == 28 and "t5" not in hits
    assert counters["tenant_read_bytes", ("t29",)] == 116
    assert len(counters) <= MAX_ACTIVITY_COUNTERS


def test_a_hostile_activity_is_refused_and_an_unknown_one_ignored() -> None:
    wire = node_pb2.Activity
    unknown = wire(
        counters=[wire.Counter(family="sunspots", value=1), wire.Counter(family="hits", value=1)],
        latencies=[wire.Latency(operation="nap")],
    )
    assert convert.activity_from(unknown) == Activity({}, {})
    many = [wire.Counter(family="hits", labels=["a", str(i)]) for i in range(257)]
    for bad, error in (
        (wire(counters=many), TooLargeError),
        (wire(latencies=[wire.Latency()] * 17), TooLargeError),
        (wire(counters=[wire.Counter(family="hits", labels=["a\n", "b"])]), InvalidArgumentError),
        (wire(latencies=[wire.Latency(bounds_us=[1, 2], counts=[1])]), InvalidArgumentError),
        (wire(latencies=[wire.Latency(bounds_us=[2, 1], counts=[1, 1])]), InvalidArgumentError),
    ):
        with pytest.raises(error):
            convert.activity_from(bad)


def use(tenant: str, namespace: str, looked_up: int, found: int) -> CoreNamespace:
    return {
        "tenant": tenant,
        "namespace": namespace,
        "epoch": 0,
        "objects": 1,
        "bytes": 1,
        "keys_looked_up": looked_up,
        "keys_found": found,
    }


def tenant_lookups(
    counted: master_http.TenantLookups, uses: list[CoreNamespace]
) -> dict[tuple[str, str], float]:
    found = samples(metrics.renderer(lambda: counted.families(uses))())
    return {
        (dict(labels)["tenant"], dict(labels)["result"]): value
        for (name, labels), value in found.items()
        if name == "kvstore_cluster_tenant_lookups_total"
    }


def test_a_tenants_lookups_never_fall_when_its_namespaces_go() -> None:
    counted = master_http.TenantLookups()
    seen = tenant_lookups(counted, [use("t", "a", 10, 4), use("t", "b", 5, 5), use("u", "", 1, 0)])
    assert seen == {("t", "hit"): 9, ("t", "miss"): 6, ("u", "hit"): 0, ("u", "miss"): 1}
    seen = tenant_lookups(counted, [use("t", "b", 7, 6)])  # a has gone
    assert (seen["t", "hit"], seen["t", "miss"], seen["u", "miss"]) == (10, 7, 1)
    seen = tenant_lookups(counted, [use("t", "a", 3, 3), use("t", "b", 7, 6)])  # and is new
    assert (seen["t", "hit"], seen["t", "miss"]) == (13, 7)
    # It went and came again between two scrapes.
    seen = tenant_lookups(counted, [use("t", "a", 2, 1), use("t", "b", 7, 6)])
    assert (seen["t", "hit"], seen["t", "miss"]) == (14, 8)


def test_many_tenants_share_one_series() -> None:
    counted = master_http.TenantLookups()
    uses = [use(f"t{i}", "", 2, 1) for i in range(3 * master_http.MOST_TENANTS)]
    for _ in range(2):
        seen = tenant_lookups(counted, uses)
    assert len(seen) == 2 * (master_http.MOST_TENANTS + 1)
    assert seen["", "hit"] == 2 * master_http.MOST_TENANTS
    seen = tenant_lookups(counted, [use("t0", "", 3, 2), *uses[1:]])
    assert seen["t0", "hit"] == 2


def test_a_hostile_name_stays_one_label() -> None:
    """Names may hold what the text format uses itself."""
    core = FakeCore()
    core.stats = lambda: native_stats(master_http.ROWS)  # type: ignore[method-assign]
    name = 'x"} 1\\n# {a="b",\u2028'
    core.uses = [use(name, name, 7, 4)]
    registry = cast(Registry, SimpleNamespace(cluster=Cluster(0)))
    journal = cast(Journal, SimpleNamespace(written=0, failures=0, refusal=""))
    render = metrics.renderer(master_http.collector(core, registry, journal, {}, lambda: 20))
    found = samples(render())
    labels = frozenset({("tenant", name), ("namespace", name)})
    assert found["kvstore_cluster_namespace_bytes", labels] == 1
    hits = frozenset({("tenant", name), ("result", "hit")})
    assert found["kvstore_cluster_tenant_lookups_total", hits] == 4
