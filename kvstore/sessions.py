"""The sessions of a server, listed and ended over HTTP by operators of every tenant.

GET /sessions lists them; DELETE /sessions?id=N or ?principal=NAME ends them. A request has a bearer
token, or a proof (kvstore.proofs). Whoever has a valid token may connect again: to keep somebody
out, take the token out of the token file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict

from aiohttp import web

from kvstore.audit import Record
from kvstore.errors import InvalidArgumentError, KvstoreError, Status
from kvstore.http import http_status, json_response, presented
from kvstore.proofs import Proofs
from kvstore.scopes import ADMINISTRATION
from kvstore.security import EVERY_TENANT, Guard, Role, require

_REASON = "ended by an operator"


class CoreSession(TypedDict):
    """A session of the block protocol, as the native side tells it."""

    id: int
    principal: str
    role: int
    tenant: str
    namespace: str
    client: str
    address: str
    pid: int
    """Of a peer on a Unix socket; 0 for others."""
    age_ms: int
    in_progress: int
    outgoing: bool
    """This process has connected to its peer: a node's link to its master."""


class SessionCore(Protocol):
    """A native server: NodeCoreApi, MasterCoreApi."""

    def sessions(self) -> list[CoreSession]:
        """Every session of the block port."""

    def end_sessions(self, ids: Sequence[int], reason: str) -> int:
        """End some of them; how many there were."""


class Session(TypedDict):
    """A session or a call, as /sessions tells it."""

    id: str
    kind: str
    """block, or grpc for a call in progress."""
    principal: str
    role: str
    tenant: str
    namespace: str
    client: str
    """The name that a client gives itself; the method of a call."""
    peer: str
    age_ms: int
    in_progress: int


class OtherSessions(Protocol):
    """Further ones of a server: the master's gRPC calls."""

    def sessions(self) -> Iterable[Session]:
        """All of them."""

    def end(self, ids: Sequence[str], reason: str) -> int:
        """End some of them; how many there were."""


class Sessions:
    """Lists and ends the sessions of one server."""

    def __init__(
        self,
        core: SessionCore,
        guard: Guard,
        server: str,
        record: Record,
        others: OtherSessions | None = None,
    ) -> None:
        """Keep what is asked.

        Args:
            core: with the sessions of the block port.
            guard: knows the principals.
            server: this one, as in kvstore.proofs.
            record: notes in the audit log what was ended.
            others: further ones.
        """
        self._core = core
        self._guard = guard
        self._proofs = Proofs(guard, server)
        self._record = record
        self._others = others

    def routes(self) -> list[web.RouteDef]:
        """The paths, for the HTTP server."""
        return [web.get("/sessions", self._list), web.delete("/sessions", self._end)]

    def _admit(self, request: web.Request) -> str:
        header, peer = presented(request)
        principal = self._proofs.identify(header, peer, request.method, request.raw_path)
        require(principal, (Role.OPERATOR,), EVERY_TENANT, need=ADMINISTRATION)
        return principal.name

    async def _list(self, request: web.Request) -> web.Response:
        who, outcome = self._guard.claimed(request.headers.get("Authorization")), Status.Ok
        try:
            who = self._admit(request)
        except KvstoreError as error:
            outcome = error.status
            return _refused(error)
        finally:
            self._record(
                "ListSessions",
                principal=who,
                peer=request.remote or "",
                via="http",
                outcome=outcome,
                arguments={},
                repeats=True,
            )
        return json_response({"sessions": await self._all()})

    async def _end(self, request: web.Request) -> web.Response:
        wanted = _wanted(request)
        who = self._guard.claimed(request.headers.get("Authorization"))
        outcome, ended = Status.Ok, 0
        try:
            who = self._admit(request)
            if len(wanted) != 1:
                raise InvalidArgumentError("give ?id= or ?principal=")
            ended = await self._end_chosen(wanted)
        except KvstoreError as error:
            outcome = error.status
            return _refused(error)
        finally:
            self._record(
                "EndSessions",
                principal=who,
                peer=request.remote or "",
                via="http",
                outcome=outcome,
                arguments={**wanted, "ended": ended},
                repeats=outcome is not Status.Ok,
            )
        return json_response({"ended": ended})

    async def _all(self) -> list[Session]:
        found = [_of_block(one) for one in await asyncio.to_thread(self._core.sessions)]
        return [*found, *(self._others.sessions() if self._others else ())]

    async def _end_chosen(self, wanted: Mapping[str, str]) -> int:
        def chosen(one: Session) -> bool:
            return one["id"] == wanted.get("id") or one["principal"] == wanted.get("principal")

        ids = [one["id"] for one in await self._all() if chosen(one)]
        numbers = [int(one) for one in ids if one.isdecimal()]
        ended = await asyncio.to_thread(self._core.end_sessions, numbers, _REASON)
        return ended + (self._others.end(ids, _REASON) if self._others else 0)


def _wanted(request: web.Request) -> dict[str, str]:
    return {name: request.query[name] for name in ("id", "principal") if name in request.query}


def _of_block(session: CoreSession) -> Session:
    where = f"pid {session['pid']}" if session["pid"] else session["address"]
    return Session(
        id=str(session["id"]),
        kind="link" if session["outgoing"] else "block",
        principal=session["principal"],
        role=Role(session["role"]).name.lower(),
        tenant=session["tenant"],
        namespace=session["namespace"],
        client=session["client"],
        peer=where,
        age_ms=session["age_ms"],
        in_progress=session["in_progress"],
    )


def _refused(error: KvstoreError) -> web.Response:
    return json_response({"error": str(error)}, http_status(error.status))
