"""The small HTTP server of master and node: /metrics, /healthz, /readyz, and further routes."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client.core import CounterMetricFamily, Metric

from kvstore.errors import InvalidArgumentError, Status
from kvstore.http_connections import Connections
from kvstore.limits import is_valid_name
from kvstore.logging import EventLogger, RecurringByKey, within_trace
from kvstore.metrics import CONTENT_TYPE, by_label
from kvstore.scopes import Need
from kvstore.security import Guard, Principal, Role
from kvstore.tasks import Readiness

_log = EventLogger("http")
_MAX_BODY_BYTES = 64 << 10
_MAX_CONNECTIONS = 256
_IDLE_S = 60.0
_HANDSHAKE_S = 5.0
"""Of TLS; then the connection is closed."""
_ACCEPT_TURNS = 3
"""Turns of the event loop that asyncio takes to accept a connection."""
_STOP_S = 5.0
"""What requests in progress get when the server stops."""
# Statuses as HTTP's; every other one is 500.
_HTTP = {
    Status.InvalidArgument: 400,
    Status.Unauthenticated: 401,
    Status.PermissionDenied: 403,
    Status.NotFound: 404,
    Status.TooLarge: 413,
    Status.NoSpace: 507,
    Status.Unavailable: 503,
    Status.Rebuilding: 503,
    Status.Overloaded: 503,
    Status.DeadlineExceeded: 504,
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_AnyHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _PeersFaults(logging.Filter):
    """Keeps what a peer does wrong from being an error of ours, with a traceback each time."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = RecurringByKey(_log, "http_request_malformed")

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | ConnectionError):
            return True
        host = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        self._seen.of(host).warn(peer=host, error=type(error).__name__)
        return False


_peers_faults = _PeersFaults()


def http_status(status: Status) -> int:
    """Return the HTTP status code of a status."""
    return _HTTP.get(status, 500)


def status_of(http: int) -> Status:
    """Return a status that has this HTTP status code."""
    if http == 200:
        return Status.Ok
    return next((status for status, code in _HTTP.items() if code == http), Status.Internal)


def _with_readable_expect(handle: _AnyHandler) -> _AnyHandler:
    """Refuse an `Expect` that is not ASCII: aiohttp would repeat it, and fail to encode that."""

    async def checked(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").isascii():
            return await handle(request)
        return web.Response(status=417)

    return checked


def json_response(content: Mapping[str, Any], status: int = 200) -> web.Response:
    """Make a response of one JSON object."""
    body = msgspec.json.encode(content)
    return web.Response(status=status, body=body, content_type="application/json")


def presented(request: web.Request) -> tuple[str | None, str]:
    """Return a request's authorization header, None for none, and the address it comes from."""
    return request.headers.get("Authorization"), request.remote or ""


def admitted(request: web.Request, guard: Guard, need: Need) -> tuple[Principal, str, str]:
    """Read which objects a request is about, and check that its sender may access them.

    Args:
        request: ?tenant_id= (default "default"), ?namespace= (default that of the Mooncake drop-in)
            and the authorization header count.
        guard: knows the principals.
        need: what the request does with objects.

    Returns:
        Principal, tenant and namespace.

    Raises:
        InvalidArgumentError: The tenant or the namespace is not a valid name.
        UnauthenticatedError: The token is missing or wrong.
        PermissionDeniedError: The principal may not use this tenant, or its scopes forbid it.
    """
    tenant = request.query.get("tenant_id", "default")
    namespace = request.query.get("namespace", "mooncake")
    if not (is_valid_name(tenant) and is_valid_name(namespace)):
        raise InvalidArgumentError("tenant_id or namespace is not a valid name")
    caller = guard.admit(*presented(request), (Role.CLIENT,), tenant, need=need)
    return caller, tenant, namespace


def bearer_failures(guard: Guard) -> Callable[[], Iterator[Metric]]:
    """Return what collects the metric of wrong tokens over gRPC and HTTP."""

    def collect() -> Iterator[Metric]:
        family = CounterMetricFamily(
            "kvstore_bearer_failures",
            "Wrong tokens over gRPC and HTTP; pauses that began after several, and attempts in "
            "one.",
            labels=["result"],
        )
        yield by_label(family, guard.failed.stats())

    return collect


class HttpServer:
    """Serves one process's metrics and health."""

    def __init__(
        self,
        listener: socket.socket,
        render: Callable[[], bytes],
        ready: Readiness,
        knows: Callable[[str | None, str], bool],
        routes: Iterable[web.RouteDef] = (),
        max_body_bytes: int = _MAX_BODY_BYTES,
        open_metrics: Callable[[], bool] = lambda: True,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare a server on a bound socket.

        Args:
            listener: from bind(); owned by the server.
            render: writes the metrics; runs in a thread.
            ready: for /readyz.
            knows: whether an authorization header (None: absent) from an address may see the
                details of /readyz.
            routes: further paths.
            max_body_bytes: larger bodies are refused before they are read completely.
            open_metrics: whether /metrics is for everybody; else for those whom `knows` says.
            context: of TLS; None: plain.
        """
        self._listener = listener
        self._routes = tuple(routes)
        self._max_body_bytes = max_body_bytes
        self._render = render
        self._ready = ready
        self._knows = knows
        self._open_metrics = open_metrics
        self._context = context
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        logging.getLogger("aiohttp.server").addFilter(_peers_faults)  # once
        self._connections = Connections(_MAX_CONNECTIONS, _IDLE_S)

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._listener.getsockname()[1])

    async def start(self) -> None:
        """Start serving."""
        app = web.Application(client_max_size=self._max_body_bytes, middlewares=[self._log_request])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_routes(self._routes)
        found = {
            f"{route.method} {route.resource.canonical}"
            for route in app.router.routes()
            if route.resource is not None
        }
        _log.debug("routes", paths=",".join(sorted(found)))
        # A compressed body is not what any path takes; decompressing it would cost memory.
        self._runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, shutdown_timeout=_STOP_S
        )
        await self._runner.setup()
        protocols = self._runner.server
        assert protocols is not None
        protocols.request_handler = _with_readable_expect(protocols.request_handler)
        self._server = await asyncio.get_running_loop().create_server(
            self._connections.watch(protocols),
            sock=self._listener,
            ssl=self._context,
            ssl_handshake_timeout=_HANDSHAKE_S if self._context else None,
        )

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._connections.end()
            # What was accepted already gets its answer before the server closes under it.
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            for _ in range(_ACCEPT_TURNS):
                await asyncio.sleep(0)
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._listener.close()

    @web.middleware
    async def _log_request(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        with within_trace(request.headers.get("traceparent", "")):
            with self._connections.request(request.protocol):
                response = await handler(request)
            _log.debug(
                "request",
                method=request.method,
                path=request.path,
                status=response.status,
                peer=request.remote or "",
            )
        return response

    async def _metrics(self, request: web.Request) -> web.Response:
        if not (self._open_metrics() or self._knows(*presented(request))):
            text = "a token is required (metrics_public): authorization: Bearer name:secret"
            return json_response({"error": text}, http_status(Status.Unauthenticated))
        body = await asyncio.to_thread(self._render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, details = self._ready()
        if not self._knows(*presented(request)):
            details = {}
        return web.Response(
            status=200 if ready else 503,
            body=msgspec.json.encode({"ready": ready, **details}) + b"\n",
            content_type="application/json",
        )
