"""Read-only queries over HTTP: nodes, keys and the replicas of a key.

Paths and formats are those that engines and routers poll at a Mooncake master. A query about keys
concerns one namespace: ?tenant_id= (default "default") and ?namespace= (default "mooncake", that of
the drop-in). With a token file, all but /health need a client's token
(`authorization: Bearer name:secret`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from kvstore.audit import Record
from kvstore.errors import KvstoreError, Status
from kvstore.http import admitted, http_status, json_response, presented
from kvstore.limits import LIST_PAGE_KEYS, is_valid_key
from kvstore.master.core_api import CoreObject, MasterCoreApi
from kvstore.master.recorded import recorded
from kvstore.master.registry import Registry
from kvstore.scopes import LISTING, Need, Verb
from kvstore.security import Guard, Role
from kvstore.text import printable

_TEXT = "text/plain"
_MAX_KEYS = 1000

Answer = Callable[[web.Request, str, str], Awaitable[web.StreamResponse]]


class Queries:
    """Answers from the master's directory."""

    def __init__(
        self, core: MasterCoreApi, registry: Registry, guard: Guard, record: Record
    ) -> None:
        """Keep the directory, the nodes, the principals and the audit log, which hears of lists."""
        self._record = record
        self._core = core
        self._registry = registry
        self._guard = guard

    def routes(self) -> list[web.RouteDef]:
        """The paths, for the HTTP server."""
        return [
            web.get("/health", self._health),
            web.get("/get_all_segments", self._segments),
            web.get("/get_all_keys", self._about_keys(self._keys, lambda request: None)),
            web.get("/query_key", self._about_keys(self._key, lambda request: [_key_of(request)])),
            web.get("/batch_query_keys", self._about_keys(self._batch, _keys_of)),
        ]

    def _about_keys(
        self, answer: Answer, asked: Callable[[web.Request], list[str] | None]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return a handler; `asked` are the keys of a request, None: all of the namespace."""

        async def checked(request: web.Request) -> web.StreamResponse:
            outcome = Status.Ok
            try:
                keys = asked(request)
                need = LISTING if keys is None else Need(Verb.READ, keys)
                _, tenant, namespace = admitted(request, self._guard, need)
                await recorded(self._core, tenant, namespace, keys or [])
            except KvstoreError as error:
                outcome = error.status
                return _refused(error)
            finally:
                if keys is None:
                    self._note_list(request, outcome)
            return await answer(request, tenant, namespace)

        return checked

    def _note_list(self, request: web.Request, outcome: Status) -> None:
        header, peer = presented(request)
        self._record(
            "get_all_keys",
            principal=self._guard.claimed(header),
            peer=peer,
            via="http",
            outcome=outcome,
            arguments={
                "tenant": request.query.get("tenant_id", "default"),
                "namespace": request.query.get("namespace", "mooncake"),
            },
            repeats=True,
        )

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _segments(self, request: web.Request) -> web.Response:
        try:
            self._guard.admit(*presented(request), (Role.CLIENT,))
        except KvstoreError as error:
            return _refused(error)
        nodes = self._registry.cluster.nodes.values()
        names = sorted(node.node_id for node in nodes if node.session_id)
        return web.Response(text="".join(f"{name}\n" for name in names))

    async def _keys(self, request: web.Request, tenant: str, namespace: str) -> web.StreamResponse:
        """Write one key per line, page by page, so that millions need no memory."""
        response = web.StreamResponse(headers={"Content-Type": f"{_TEXT}; charset=utf-8"})
        await response.prepare(request)
        cursor = 0
        while True:
            page, cursor = await asyncio.to_thread(
                self._core.list_keys, tenant, namespace, "", cursor, LIST_PAGE_KEYS
            )
            await response.write("".join(f"{printable(key)}\n" for key in page).encode())
            if cursor == 0:
                break
        await response.write_eof()
        return response

    async def _key(self, request: web.Request, tenant: str, namespace: str) -> web.Response:
        """Return the replicas of a key as JSON, one per line."""
        key = _key_of(request)
        if not is_valid_key(key):
            return web.Response(status=400, text="?key= is missing or wrong\n")
        found = await asyncio.to_thread(self._core.inspect, tenant, namespace, key)
        if found is None:
            return web.Response(status=404, text="OBJECT_NOT_FOUND")
        lines = [msgspec.json.encode(replica).decode() for replica in _replicas(found)]
        return web.Response(text="".join(f"{line}\n" for line in lines))

    async def _batch(self, request: web.Request, tenant: str, namespace: str) -> web.Response:
        """Return the replicas of several keys, separated by commas, as one JSON object."""
        keys = _keys_of(request)
        if not keys or len(keys) > _MAX_KEYS:
            wrong = f"?keys=a,b,… must contain 1 to {_MAX_KEYS} keys"
            return json_response({"success": False, "error": wrong}, status=400)

        def look() -> dict[str, Any]:
            return {key: self._known(tenant, namespace, key) for key in keys}

        return json_response({"success": True, "data": await asyncio.to_thread(look)})

    def _known(self, tenant: str, namespace: str, key: str) -> dict[str, Any]:
        found = self._core.inspect(tenant, namespace, key) if is_valid_key(key) else None
        if found is None:
            return {"ok": False, "error": "OBJECT_NOT_FOUND"}
        return {"ok": True, "values": _replicas(found)}


def _key_of(request: web.Request) -> str:
    return request.query.get("key", "")


def _keys_of(request: web.Request) -> list[str]:
    return [key for key in request.query.get("keys", "").split(",") if key]


def _refused(error: KvstoreError) -> web.Response:
    return web.Response(status=http_status(error.status), text=f"{error}\n")


def _replicas(found: CoreObject) -> list[dict[str, Any]]:
    return [
        {
            "size_": found["size"],
            "buffer_address_": 0,
            "protocol_": "",
            "transport_endpoint_": replica["node_id"],
        }
        for replica in found["replicas"]
    ]
