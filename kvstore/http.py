"""The small HTTP server of master and node: /metrics, /healthz, /readyz, and further routes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from kvstore.errors import InvalidArgumentError, Status, UnavailableError
from kvstore.limits import is_valid_name
from kvstore.metrics import CONTENT_TYPE
from kvstore.security import Guard, Principal, Role

_MAX_BODY_BYTES = 64 << 10
_ANY_HOST = ("0.0.0.0", "::", "")
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

Readiness = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether the process is ready, and a JSON object with the details."""


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket, so that its port is known before anything is served.

    Args:
        host: an address or a name.
        port: 0 for any.

    Raises:
        UnavailableError: The address is in use or not local.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UnavailableError(f"http {host}:{port}: {error.strerror or error}") from error


def bracketed(host: str) -> str:
    """Put an IPv6 address in brackets, as a port follows."""
    return f"[{host}]" if ":" in host else host


def public_host(host: str, advertise_host: str) -> str:
    """Return the host under which others reach this process, ready for a port.

    Args:
        host: that the process listens on.
        advertise_host: announced in its place, if not empty.
    """
    public = advertise_host or host
    return bracketed(socket.gethostname() if public in _ANY_HOST else public)


def http_status(status: Status) -> int:
    """Return the HTTP status code of a status."""
    return _HTTP.get(status, 500)


def json_response(content: Mapping[str, Any], status: int = 200) -> web.Response:
    """Make a response of one JSON object."""
    body = msgspec.json.encode(content)
    return web.Response(status=status, body=body, content_type="application/json")


def admitted(request: web.Request, guard: Guard) -> tuple[Principal, str, str]:
    """Read which objects a request is about, and check that its sender may access them.

    Args:
        request: ?tenant_id= (default "default"), ?namespace= (default that of the Mooncake drop-in)
            and the authorization header count.
        guard: knows the principals.

    Returns:
        Principal, tenant and namespace.

    Raises:
        InvalidArgumentError: The tenant or the namespace is not a valid name.
        UnauthenticatedError: The token is missing or wrong.
        PermissionDeniedError: The principal may not use this tenant.
    """
    tenant = request.query.get("tenant_id", "default")
    namespace = request.query.get("namespace", "mooncake")
    if not (is_valid_name(tenant) and is_valid_name(namespace)):
        raise InvalidArgumentError("tenant_id or namespace is not a valid name")
    caller = guard.admit(request.headers.get("Authorization"), (Role.CLIENT,), tenant)
    return caller, tenant, namespace


class HttpServer:
    """Serves one process's metrics and health."""

    def __init__(
        self,
        listener: socket.socket,
        render: Callable[[], bytes],
        ready: Readiness,
        routes: Iterable[web.RouteDef] = (),
        max_body_bytes: int = _MAX_BODY_BYTES,
    ) -> None:
        """Prepare a server on a bound socket.

        Args:
            listener: from bind(); owned by the server.
            render: writes the metrics; runs in a thread.
            ready: for /readyz.
            routes: further paths.
            max_body_bytes: larger bodies are refused before they are read completely.
        """
        self._listener = listener
        self._routes = tuple(routes)
        self._max_body_bytes = max_body_bytes
        self._render = render
        self._ready = ready
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._listener.getsockname()[1])

    async def start(self) -> None:
        """Start serving."""
        app = web.Application(client_max_size=self._max_body_bytes)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_routes(self._routes)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._listener.close()

    async def _metrics(self, request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, body = self._ready()
        return web.Response(
            status=200 if ready else 503,
            body=msgspec.json.encode({"ready": ready, **body}) + b"\n",
            content_type="application/json",
        )
