"""Serves the console over HTTP: its files to everybody, its data to those who may see it.

The files hold no data, so they need no token: with a token file the page asks for one and sends it
as a bearer token with each request for data. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from typing import Any, Final

from aiohttp import web

from kvstore.errors import InvalidArgumentError, KvstoreError
from kvstore.http import http_status, json_response, presented
from kvstore.limits import is_valid_key, is_valid_name
from kvstore.master.console.views import Views
from kvstore.master.history import KEPT_MS
from kvstore.scopes import ADMINISTRATION, LISTING, Need, Verb
from kvstore.security import EVERY_TENANT, Guard, Principal, Role

_DEFAULT_WINDOW_MS: Final = 3600 * 1000
_MIN_WINDOW_MS: Final = 1000
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Own files only, nothing inline, nowhere else; strings never become markup (trusted types).
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_ANY_ROLE: Final = (Role.CLIENT, Role.NODE, Role.OPERATOR)

Look = Callable[[web.Request, Principal], Any]
"""Reads the answer, or returns what is awaited for it; runs in a thread."""


class Console:
    """The paths under /console."""

    def __init__(self, views: Views, guard: Guard) -> None:
        """Read the files.

        Args:
            views: what is shown.
            guard: knows the principals.
        """
        self._views = views
        self._guard = guard
        self._files = {
            file.name: (file.read_bytes(), _TYPES[f".{file.name.rpartition('.')[2]}"])
            for file in files("kvstore.master.console").joinpath("static").iterdir()
        }

    def routes(self) -> list[web.RouteDef]:
        """The paths, for the HTTP server."""
        roles = (Role.CLIENT,)
        return [
            web.get("/console", self._redirect),
            web.get("/console/", partial(self._file, name="index.html")),
            web.get("/console/{file}", self._file),
            web.get("/console/api/overview", self._answer(self._overview, _ANY_ROLE)),
            web.get("/console/api/nodes", self._answer(self._nodes, _ANY_ROLE)),
            web.get("/console/api/namespaces", self._answer(self._namespaces, roles, LISTING)),
            web.get("/console/api/prefixes", self._answer(self._prefixes, roles, LISTING)),
            web.get(
                "/console/api/events",
                self._answer(self._events, (Role.OPERATOR,), ADMINISTRATION, EVERY_TENANT),
            ),
            web.get("/console/api/explain", self._answer(self._explain, roles)),
        ]

    async def _redirect(self, request: web.Request) -> web.Response:
        # Relative, as a proxy may have put something before the path.
        return web.Response(status=308, headers={"Location": "console/"})

    async def _file(self, request: web.Request, name: str = "") -> web.Response:
        found = self._files.get(name or request.match_info["file"])
        if found is None:
            return web.Response(status=404, text="there is no such file\n")
        body, kind = found
        headers = {**HEADERS, "Cache-Control": "no-cache"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    def _answer(
        self,
        look: Look,
        roles: tuple[Role, ...],
        need: Need | None = None,
        tenant: str | None = None,
    ) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            try:
                principal = self._guard.admit(*presented(request), roles, tenant, need=need)
                found = await asyncio.to_thread(look, request, principal)
                if isinstance(found, Awaitable):
                    found = await found
            except KvstoreError as error:
                response = json_response({"error": str(error)}, http_status(error.status))
            else:
                response = json_response(found)
            response.headers.update({**HEADERS, "Cache-Control": "no-store"})
            return response

        return answer

    def _overview(self, request: web.Request, principal: Principal) -> dict[str, Any]:
        length_ms = _window_ms(request)
        found = self._views.overview(length_ms)
        if request.query.get("history") == "1":
            found["history"] = self._views.history(length_ms)
        return found

    def _nodes(self, request: web.Request, principal: Principal) -> dict[str, Any]:
        return {"nodes": self._views.nodes()}

    def _namespaces(self, request: web.Request, principal: Principal) -> dict[str, Any]:
        return self._views.namespaces(principal)

    def _prefixes(self, request: web.Request, principal: Principal) -> dict[str, Any]:
        return self._views.prefixes(principal)

    def _events(self, request: web.Request, principal: Principal) -> dict[str, Any]:
        return {"events": self._views.events()}

    def _explain(self, request: web.Request, principal: Principal) -> Awaitable[dict[str, Any]]:
        tenant = request.query.get("tenant", "default")
        namespace, key = request.query.get("namespace", ""), request.query.get("key", "")
        if not (tenant and is_valid_name(tenant) and is_valid_name(namespace)):
            raise InvalidArgumentError("tenant or namespace is not a valid name")
        if not is_valid_key(key):
            raise InvalidArgumentError("key must have 1 to 1024 bytes of UTF-8")
        need = Need(Verb.READ, [key])
        self._guard.admit(*presented(request), (Role.CLIENT,), tenant, need=need)
        return self._views.explain(tenant, namespace, key)


def _window_ms(request: web.Request) -> int:
    text = request.query.get("window_ms", str(_DEFAULT_WINDOW_MS))
    # int() alone would take more digits than it can read in time.
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise InvalidArgumentError("window_ms must be a number of milliseconds")
    return min(max(int(text), _MIN_WINDOW_MS), KEPT_MS)
