"""A traced call goes on at the node and in its NVMe tier, as a collector sees it."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status, _native
from kvstore.errors import InvalidArgumentError
from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from tests.monitoring.collector import Collector, Received

pytestmark = pytest.mark.cluster
SIZE = 64 << 10
SEGMENT = 4 << 20


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def node(cluster: Cluster, collector: Collector, tmp_path: Path) -> Daemon:
    return cluster.start_node(
        "a",
        segment_size=SEGMENT,
        nvme_dir=str(tmp_path / "nvme"),
        nvme_size="64mb",
        promote_reads=4,  # what is on NVMe is read there
        prefetch_depth=0,
        otlp_endpoint=collector.endpoint,
        log_format="json",
        log_level="debug",
    )


@pytest.fixture
def provider(collector: Collector) -> Iterator[TracerProvider]:
    """What an engine sets up for itself."""
    made = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create({"service.name": "engine"}))
    made.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector.endpoint)))
    try:
        yield made
    finally:
        made.shutdown()


def wait_for_spans(collector: Collector, trace_id: str, *names: str) -> dict[str, Received]:
    def there() -> dict[str, Received] | None:
        found = {span.name: span for span in collector.spans(trace_id)}
        return found if set(names) <= set(found) else None

    return wait_for(there, f"{names} of trace {trace_id}: {collector.spans()}", 20)


def key_on_nvme_alone(store: kvstore.Store, node: Daemon) -> str:
    """Put three times what memory holds, and return an early key."""
    keys = [f"k/{i}" for i in range(3 * SEGMENT // SIZE)]
    for key in keys:
        assert store.put(key, proof(key, SIZE)) is Status.Ok
        wait_for(
            lambda: metric(node, "kvstore_unwritten_bytes") <= SEGMENT / 2, "NVMe to keep up", 20
        )
    return next(key for key in keys if store.explain(key)[0]["tiers"] == ["nvme"])


def only(spans: list[Received], name: str) -> Received:
    (found,) = (span for span in spans if span.name == name)
    return found


def test_a_get_from_nvme_is_one_trace_of_client_node_and_tier(
    cluster: Cluster, node: Daemon, collector: Collector, provider: TracerProvider
) -> None:
    key = key_on_nvme_alone(cluster.connect(), node)
    assert not collector.spans(), "calls of a store that is not traced have no spans"
    store = cluster.connect(transport="tcp", namespace="", tracing=provider)
    assert store.get(key) == proof(key, SIZE)
    call = only(collector.spans(), "kvstore.get")
    found = wait_for_spans(collector, call.trace_id, "kvstore.node.get", "kvstore.node.nvme.read")
    answer, read = found["kvstore.node.get"], found["kvstore.node.nvme.read"]
    assert (call.parent_id, answer.parent_id, read.parent_id) == ("", call.span_id, answer.span_id)
    assert len({call.span_id, answer.span_id, read.span_id}) == 3
    assert (call.service, answer.service, answer.instance) == ("engine", "kvstore-node", "a")
    assert call.attributes["kvstore.keys"] == call.attributes["kvstore.found"] == 1
    for span in (answer, read):
        assert span.attributes == {"kvstore.keys": 1, "kvstore.found": 1, "kvstore.bytes": SIZE}
    # One clock on one host: each lies within the one above it, but for the clock's granularity.
    slack_ns = 2_000_000
    assert call.start_ns - slack_ns <= answer.start_ns <= read.start_ns + slack_ns
    assert read.end_ns - slack_ns <= answer.end_ns <= call.end_ns + slack_ns
    lines = [json.loads(line) for line in node.log.read_text().splitlines() if line[:1] == "{"]
    logged = {line["span_id"]: line for line in lines if line["event"] == "span"}
    assert logged[read.span_id]["trace_id"] == call.trace_id
    assert logged[read.span_id]["parent_id"] == answer.span_id
    assert metric(node, "kvstore_spans_total", result="exported") == 2


def test_what_is_logged_for_a_traced_http_request_carries_its_ids(node: Daemon) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    for header in (f"00-{trace_id}-{span_id}-01", "00-no-trace", ""):
        request = urllib.request.Request(
            f"http://127.0.0.1:{node.ports['http_port']}/healthz",
            headers={"traceparent": header} if header else {},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
    lines = [json.loads(line) for line in node.log.read_text().splitlines() if line[:1] == "{"]
    requests = [line for line in lines if line["event"] == "request"][-3:]
    ids = [(line.get("trace_id"), line.get("span_id")) for line in requests]
    assert ids == [(trace_id, span_id), (None, None), (None, None)]


def test_puts_by_both_ways_go_on_at_the_node(
    cluster: Cluster, node: Daemon, collector: Collector, provider: TracerProvider
) -> None:
    ways = (("tcp", SIZE, "put"), ("auto", SIZE, "put"), ("auto", 2 * SIZE, "commit"))
    for transport, size, name in ways:
        store = cluster.connect(transport=transport, tracing=provider)
        assert store.put(f"{size} bytes by {transport}", b"x" * size) is Status.Ok
        call = collector.spans()[-1]
        assert call.name == "kvstore.put"
        found = wait_for_spans(collector, call.trace_id, f"kvstore.node.{name}")
        assert found[f"kvstore.node.{name}"].parent_id == call.span_id
        assert found[f"kvstore.node.{name}"].attributes["kvstore.found"] == 1


def test_a_call_is_below_the_callers_own_span(
    cluster: Cluster, node: Daemon, collector: Collector, provider: TracerProvider
) -> None:
    """With asyncio, too, where another thread makes the call."""

    async def ask() -> str:
        store = await kvstore.connect_async(cluster.address, tracing=provider)
        async with store:
            with provider.get_tracer("test").start_as_current_span("request") as request:
                assert await store.get("absent") is None
                return request.get_span_context().span_id.to_bytes(8, "big").hex()

    request_id = asyncio.run(ask())
    call = only(collector.spans(), "kvstore.get")
    assert call.parent_id == request_id
    assert call.attributes["kvstore.found"] == 0


def test_what_is_not_sampled_leaves_no_span_at_the_node(
    cluster: Cluster, node: Daemon, collector: Collector, provider: TracerProvider
) -> None:
    unsampled = TracerProvider(sampler=ALWAYS_OFF)
    quiet = cluster.connect(transport="tcp", tracing=unsampled)
    assert quiet.put("k", b"1") is Status.Ok
    assert quiet.get("k") == b"1"
    traced = cluster.connect(transport="tcp", tracing=provider)
    assert traced.get("k") == b"1"
    call = only(collector.spans(), "kvstore.get")
    wait_for_spans(collector, call.trace_id, "kvstore.node.get")
    assert {span.trace_id for span in collector.spans()} == {call.trace_id}
    unsampled.shutdown()


def test_a_flood_of_traced_requests_costs_a_bounded_number_of_spans(
    cluster: Cluster, node: Daemon, collector: Collector
) -> None:
    """Clients decide what is traced: the node keeps what its ring holds, and counts the others."""
    store = cluster.connect(transport="tcp")
    assert store.put("k", b"1") is Status.Ok
    requests = 0

    def dropped() -> float:
        nonlocal requests
        _native.set_trace(bytes(range(1, 25)))
        try:
            for _ in range(500):
                assert store.get("k") == b"1"
        finally:
            _native.set_trace(b"")
        requests += 500
        return metric(node, "kvstore_spans_total", result="dropped")

    collector.stop()  # what the node takes from the ring waits for a collector that is gone
    wait_for(dropped, "spans to be dropped", 60)
    assert requests > 2048
    assert store.get("k") == b"1"

    def warned() -> list[str]:
        lines = [json.loads(line) for line in node.log.read_text().splitlines() if line[:1] == "{"]
        return [line["event"] for line in lines if line["level"] in ("WARNING", "ERROR")]

    wait_for(warned, "a warning", 30)
    wait_for(lambda: metric(node, "kvstore_spans_total", result="failed") >= 2048, "it to fail", 60)
    assert warned() == ["spans_not_exported"]


def test_without_tracing_nothing_lies_between_store_and_client(cluster: Cluster) -> None:
    assert type(cluster.connect()._client) is _native.Client
    for wrong in ("yes", 1, object()):
        with pytest.raises(InvalidArgumentError, match="TracerProvider"):
            cluster.connect(tracing=wrong)
    with pytest.raises(InvalidArgumentError, match="16 bytes"):
        _native.set_trace(b"short")


def test_a_node_needs_the_packages_of_the_extra(cluster: Cluster, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    (blocked / "opentelemetry").mkdir(parents=True)
    (blocked / "opentelemetry/__init__.py").write_text("raise ImportError('not installed')\n")
    environment: dict[str, Any] = {"PYTHONPATH": str(blocked)}
    node = cluster.start_node(
        "b", wait=False, environment=environment, otlp_endpoint="http://127.0.0.1:1"
    )
    assert not node.wait_started_or_refused()
    said = node.log.read_text()
    assert "kvcache-store[otel]" in said and "Traceback" not in said
