"""Spans of requests that clients trace, sent to a collector by OTLP.

The native side makes them, where a client says that its call is traced, and keeps a bounded number;
what a collector does not take in time is dropped and counted. Nothing on the data path waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import CounterMetricFamily, Metric

from kvstore import __version__
from kvstore.errors import InvalidArgumentError
from kvstore.logging import EventLogger, Recurring
from kvstore.metrics import by_label
from kvstore.node.core_api import CoreSpan, NodeCoreApi

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_log = EventLogger("node.spans")
_POLL_S = 1.0
_TIMEOUT_S = 5.0
# By SpanKind of native spans.h: name, and whether it answers a client (else it is within a node).
_KINDS: Final = (("get", True), ("nvme.read", False), ("put", True), ("commit", True))


class SpanExport:
    """Takes the spans of a native node and sends them, until it is closed."""

    def __init__(self, endpoint: str, node_id: str) -> None:
        """Prepare the connection, which is made with the first spans.

        Args:
            endpoint: of the collector, http:// or https://; empty: nothing is ever taken.
            node_id: for the resource of the spans.

        Raises:
            InvalidArgumentError: The packages are missing.
        """
        self._send: Callable[[Sequence[CoreSpan]], bool] = lambda spans: True
        self._end: Callable[[], None] = lambda: None
        self.on = bool(endpoint)
        self._counts = {"exported": 0, "failed": 0}
        self._failing = Recurring(_log, "spans_not_exported")
        if self.on:
            self._connect(endpoint, node_id)

    def _connect(self, endpoint: str, node_id: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import SpanExportResult
        except ImportError as error:
            raise InvalidArgumentError(
                f"otlp_endpoint needs more packages ({error}): pip install 'kvcache-store[otel]'"
            ) from None
        # It logs each try; ours is one warning a minute.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_TIMEOUT_S
        )
        resource = Resource.create(
            {
                "service.name": "kvstore-node",
                "service.instance.id": node_id,
                "service.version": __version__,
            }
        )

        def send(spans: Sequence[CoreSpan]) -> bool:
            made = [_readable(span, resource) for span in spans]
            return exporter.export(made) is SpanExportResult.SUCCESS

        self._send, self._end = send, exporter.shutdown

    async def run(self, core: NodeCoreApi) -> None:
        """Send what has finished, once a second, until cancelled; returns where it is off."""
        while self.on:
            await asyncio.sleep(_POLL_S)
            await self.flush(core)

    async def flush(self, core: NodeCoreApi) -> None:
        """Send what has finished by now."""
        spans = core.take_spans() if self.on else []
        if not spans:
            return
        for span in spans:
            trace_id, parent_id, span_id, kind, _, lasted_us, keys, found, size = span
            _log.debug(
                "span",
                name=_KINDS[kind][0],
                trace_id=trace_id.hex(),
                span_id=span_id.hex(),
                parent_id=parent_id.hex(),
                lasted_us=lasted_us,
                keys=keys,
                found=found,
                bytes=size,
            )
        if await asyncio.to_thread(self._send, spans):
            self._counts["exported"] += len(spans)
            self._failing.end()
        else:
            self._counts["failed"] += len(spans)
            self._failing.warn(spans=len(spans), hint="is the collector of otlp_endpoint there?")

    async def close(self) -> None:
        """Let go of the connection."""
        await asyncio.to_thread(self._end)

    def families(self, core: NodeCoreApi) -> Iterator[Metric]:
        """Collect the metric."""
        family = CounterMetricFamily(
            "kvstore_spans",
            "Spans of traced requests: exported, failed (the collector did not take them), dropped "
            "(there were too many).",
            labels=["result"],
        )
        yield by_label(family, {**self._counts, "dropped": core.stats()["spans_dropped"]})


def _readable(span: CoreSpan, resource: Any) -> ReadableSpan:
    """Make a native span one of OpenTelemetry's."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

    trace_id, parent_id, span_id, kind, began_us, lasted_us, keys, found, size = span
    name, is_server = _KINDS[kind]
    trace = int.from_bytes(trace_id, "big")
    flags = TraceFlags(TraceFlags.SAMPLED)
    return ReadableSpan(
        name=f"kvstore.node.{name}",
        context=SpanContext(trace, int.from_bytes(span_id, "big"), False, flags),
        parent=SpanContext(trace, int.from_bytes(parent_id, "big"), is_server, flags),
        resource=resource,
        attributes={"kvstore.keys": keys, "kvstore.found": found, "kvstore.bytes": size},
        kind=SpanKind.SERVER if is_server else SpanKind.INTERNAL,
        instrumentation_scope=InstrumentationScope("kvstore", __version__),
        start_time=began_us * 1000,
        end_time=(began_us + lasted_us) * 1000,
    )
