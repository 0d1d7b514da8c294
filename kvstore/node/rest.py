"""Objects over HTTP, for scripts and for users of Mooncake's store service.

Off by default; `rest_api` enables it for this host only, or for everyone who reaches the HTTP port.
With a token file each request needs a client's `authorization: Bearer name:secret` and runs as that
client. Objects are those of the tenant "default" and the namespace "mooncake" unless ?tenant_id=
and ?namespace= name others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from kvstore import _native, audit
from kvstore.audit import Record
from kvstore.config import NodeConfig
from kvstore.errors import KvstoreError, Status
from kvstore.http import admitted, http_status, json_response, status_of
from kvstore.limits import LIST_PAGE_KEYS, is_valid_key
from kvstore.node.rest_bodies import Bodies, send
from kvstore.scopes import Need, Verb
from kvstore.security import Guard, Principal

_MAX_CLIENTS = 16
_TIMEOUT_MS = 10_000

Answer = Callable[[web.Request, "_native.Client"], Awaitable[web.StreamResponse]]
_Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Put(msgspec.Struct):
    """Body of /api/put."""

    key: str
    value: str


class Rest:
    """The routes, and the clients that serve them."""

    def __init__(
        self,
        config: NodeConfig,
        master: str,
        principals: tuple[Principal, ...],
        record: Record = lambda *_, **__: None,
        tls: _native.Tls | None = None,
    ) -> None:
        """Keep the configuration; nothing is connected yet.

        Args:
            config: of the node.
            master: block address of the master.
            principals: of the token file; empty without one.
            record: notes in the audit log who removed what, and who guesses tokens.
            tls: of the node; None: plain.
        """
        self._record = record
        self._tls = tls
        self._bodies = Bodies(config.rest_max_body)
        self._allowed = config.rest_api
        self._masters = [master, *(one for one in config.addresses() if one != master)]
        self.guard = Guard(principals or None)
        self.guard.on_pause = audit.pauses(record)
        """Knows the principals."""
        self._clients: OrderedDict[tuple[Principal, str, str], _native.Client] = OrderedDict()
        self._lock = threading.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for the HTTP server; none when the interface is off."""
        if self._allowed == "off":
            return []
        return [
            web.put("/api/put", self._for_client(self._put, Verb.WRITE)),
            web.get("/api/get/{key:.+}", self._for_client(self._get, Verb.READ)),
            web.get("/api/exist/{key:.+}", self._for_client(self._exist, Verb.READ)),
            web.delete(
                "/api/remove/{key:.+}",
                self._audited("remove", self._for_client(self._remove, Verb.REMOVE)),
            ),
            web.delete(
                "/api/remove_all",
                self._audited("remove_all", self._for_client(self._remove_all, None)),
            ),
        ]

    def knows(self, authorization: str | None, peer: str) -> bool:
        """Say whether an authorization header is that of a principal."""
        return self.guard.knows(authorization, peer)

    def replace(self, principals: tuple[Principal, ...]) -> None:
        """Use other principals from now on."""
        self.guard.replace(principals or None)
        with self._lock:
            self._clients.clear()  # dropped, not closed: requests may be using them

    def close(self) -> None:
        """Disconnect the clients."""
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    def _for_client(self, answer: Answer, verb: Verb | None) -> _Answer:
        """Return a handler; what needs no `verb` on its key removes every key.

        The key of a put is in its body: block ports check what the client asks there, once more.
        """

        def need(request: web.Request) -> Need:
            if verb is None:
                return Need(Verb.REMOVE, prefix="")
            key = request.match_info.get("key")
            return Need(verb, () if key is None else [key])

        async def checked(request: web.Request) -> web.StreamResponse:
            if self._allowed == "localhost" and not _is_local(request):
                return _error(403, "this interface is limited to this host (rest_api)")
            if not is_valid_key(request.match_info.get("key", "-")):
                return _error(400, "not a key")
            try:
                caller, tenant, namespace = admitted(request, self.guard, need(request))
                client = await asyncio.to_thread(self._client, caller, tenant, namespace)
                return await answer(request, client)
            except KvstoreError as error:
                return _error(http_status(error.status), str(error))

        return checked

    def _audited(self, call: str, answer: _Answer) -> _Answer:
        """Tell the audit log, too; the master tells of what this client asks of it then."""

        async def noted(request: web.Request) -> web.StreamResponse:
            response = await answer(request)
            outcome = status_of(response.status)
            self._record(
                call,
                principal=self.guard.claimed(request.headers.get("Authorization")),
                peer=request.remote or "",
                via="http",
                outcome=outcome,
                arguments={
                    "tenant": request.query.get("tenant_id", "default"),
                    "namespace": request.query.get("namespace", "mooncake"),
                },
                repeats=outcome is not Status.Ok,
            )
            return response

        return noted

    def _client(self, caller: Principal, tenant: str, namespace: str) -> _native.Client:
        named = self.guard.required
        key = (caller, tenant, namespace)
        with self._lock:
            client = self._clients.get(key)
            if client is None:
                client = self._clients[key] = _native.Client(
                    masters=self._masters,
                    tenant=tenant,
                    namespace=namespace,
                    principal=caller.name if named else "",
                    token=caller.secret.reveal() if named else "",
                    client_name="node's HTTP port",
                    timeout_ms=_TIMEOUT_MS,
                    transport=0,
                    stripes=1,
                    tls=self._tls,
                )
            self._clients.move_to_end(key)
            # Dropped, not closed: another request may be using it.
            while len(self._clients) > _MAX_CLIENTS:
                self._clients.popitem(last=False)
        return client

    async def _put(self, request: web.Request, client: _native.Client) -> web.Response:
        with self._bodies.room() as room:
            return await self._put_body(await self._bodies.receive(request, room), client)

    async def _put_body(self, body: bytearray, client: _native.Client) -> web.Response:
        try:
            put = msgspec.json.decode(body, type=_Put)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _error(400, f'the body is not {{"key": …, "value": …}}: {error}')
        if not is_valid_key(put.key):
            return _error(400, "not a key")
        value = put.value.encode()
        code = await asyncio.to_thread(client.put, put.key, value, 1, 0, 0, None)
        if code in (Status.Ok, Status.AlreadyExists):
            return json_response({"status": "success"})
        return _failed("PUT operation failed", code)

    async def _get(self, request: web.Request, client: _native.Client) -> web.StreamResponse:
        key = request.match_info["key"]
        size = await asyncio.to_thread(client.size, key)
        if size >= 0:
            with self._bodies.room(size):
                found = await asyncio.to_thread(client.get, key)
                if found is not None:
                    return await send(request, found)
            size = await asyncio.to_thread(client.size, key)
        if size in (Status.NotFound, Status.Removed, Status.Expired):
            return _error(404, "Key not found")
        return _failed("GET operation failed", size)

    async def _exist(self, request: web.Request, client: _native.Client) -> web.Response:
        size = await asyncio.to_thread(client.size, request.match_info["key"])
        if size >= 0 or size == Status.NotFound:
            return json_response({"exists": size >= 0})
        return _failed("Exist check failed", size)

    async def _remove(self, request: web.Request, client: _native.Client) -> web.Response:
        codes, _ = await asyncio.to_thread(client.remove, [request.match_info["key"]])
        if codes[0] in (Status.Ok, Status.Partial):
            return json_response({"status": "success"})
        return _failed("Remove operation failed", codes[0])

    async def _remove_all(self, request: web.Request, client: _native.Client) -> web.Response:
        def carry_out() -> tuple[int, int]:
            count, cursor = 0, b""
            while True:
                page, cursor = client.list_keys("", cursor, LIST_PAGE_KEYS)
                count += len(page)
                if not cursor:
                    return count, client.flush()

        count, code = await asyncio.to_thread(carry_out)
        if code in (Status.Ok, Status.Partial):
            return json_response({"status": f"success removed {count} keys"})
        return _failed("RemoveAll operation failed", code)


def _is_local(request: web.Request) -> bool:
    try:
        peer = ipaddress.ip_address(request.remote or "")
        # A socket that listens on "::" writes IPv4 peers as ::ffff:a.b.c.d.
        return (getattr(peer, "ipv4_mapped", None) or peer).is_loopback
    except ValueError:
        return False


def _failed(what: str, code: int) -> web.Response:
    """Make the response for a failed call; a size means that the object has appeared since."""
    if code >= 0:
        return _error(503, what)
    status = Status(code) if code in Status._value2member_map_ else Status.Internal
    return _error(http_status(status), f"{what}: {status}")


def _error(status: int, text: str) -> web.Response:
    response = json_response({"error": text}, status)
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response
