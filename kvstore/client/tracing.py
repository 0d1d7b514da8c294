"""Spans of OpenTelemetry around the calls of a store, and their trace in its requests.

Loaded only for a store that is to be traced: any other has no code of it in its way. The native
core sends trace and span of a sampled call along with its requests; nodes that export spans hang
theirs below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from kvstore import _native
from kvstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Found = Callable[[Any], int]
"""Says how many objects a reading call has found, by its answer."""


def _one(answer: Any) -> int:
    return int(answer is not None and not _is_status(answer))


def _each(answer: Any) -> int:
    return sum(map(_one, answer))


def _length(answer: Any) -> int:
    return int(answer[0])


def _is_status(answer: Any) -> bool:
    return isinstance(answer, int) and answer < 0


# The client's calls that have a span, its name, and what they find; the others ask no node.
_CALLS: Final[Mapping[str, tuple[str, Found | None]]] = {
    "get": ("get", _one),
    "batch_get": ("batch_get", _each),
    "batch_get_bytearrays": ("batch_get", _each),
    "get_into": ("get_into", _one),
    "batch_get_into": ("batch_get_into", _each),
    "batch_get_into_pointers": ("batch_get_into", _each),
    "device_get": ("batch_get_into", None),
    "view": ("view", _one),
    "size": ("size", _one),
    "sizes": ("batch_sizes", _each),
    "prefix_length": ("prefix_length", _length),
    "lease": ("lookup", None),
    "prefetch": ("prefetch", None),
    "put": ("put", None),
    "batch_put": ("batch_put", None),
    "batch_put_from": ("batch_put", None),
    "device_put": ("batch_put", None),
    "remove": ("remove", None),
    "set_pin": ("unpin", None),
    "flush": ("flush", None),
}


def tracer_of(tracing: object) -> Tracer:
    """Return the tracer that makes a store's spans.

    Args:
        tracing: True for the process's global provider, or a provider.

    Raises:
        InvalidArgumentError: The package is missing, or it is no provider.
    """
    try:
        from opentelemetry import trace
    except ImportError:
        raise InvalidArgumentError(
            "tracing needs the package opentelemetry-api: pip install 'kvcache-store[otel]'"
        ) from None
    if isinstance(tracing, bool):
        return trace.get_tracer("kvstore")
    if not isinstance(tracing, trace.TracerProvider):
        raise InvalidArgumentError(f"tracing is a {type(tracing).__name__}, not a TracerProvider")
    return tracing.get_tracer("kvstore")


class TracedClient:
    """A native client whose calls are spans; everything else is the client's own."""

    def __init__(
        self, client: _native.Client, tracer: Tracer, *, tenant: str, namespace: str
    ) -> None:
        """Trace the calls of a client, with tenant and namespace as attributes of its spans."""
        from opentelemetry.trace import SpanKind

        self._native = client
        self._tracer = tracer
        self._kind = SpanKind.CLIENT
        self._names = {"kvstore.tenant": tenant, "kvstore.namespace": namespace}

    def __getattr__(self, name: str) -> Any:
        """Return the client's own attribute, or the call within a span; that is made once."""
        own = getattr(self._native, name)
        if name not in _CALLS:
            return own
        traced = self._traced(own, *_CALLS[name])
        setattr(self, name, traced)
        return traced

    def _traced(
        self, call: Callable[..., Any], name: str, found: Found | None
    ) -> Callable[..., Any]:
        def in_span(*args: Any, **kwargs: Any) -> Any:
            with self._tracer.start_as_current_span(
                f"kvstore.{name}", kind=self._kind, attributes=self._names
            ) as span:
                context = span.get_span_context()
                if not context.trace_flags.sampled:
                    return call(*args, **kwargs)
                _native.set_trace(
                    context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")
                )
                try:
                    answer = call(*args, **kwargs)
                finally:
                    _native.set_trace(b"")
                if args:
                    count = 1 if isinstance(args[0], str) else len(args[0])
                    span.set_attribute("kvstore.keys", count)
                if found is not None:
                    span.set_attribute("kvstore.found", found(answer))
                return answer

        return in_span
