"""Who may use a node's REST interface. What it does is tested in a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from kvstore.config import NodeConfig, load
from kvstore.errors import InvalidArgumentError
from kvstore.node.rest import Rest
from kvstore.security import Principal, Role, Secret

ENGINE = Principal("engine", Role.CLIENT, ("t1",), Secret("s" * 32))
NODE = Principal("a", Role.NODE, ("*",), Secret("n" * 32))


def config(**values: Any) -> NodeConfig:
    return load(NodeConfig, None, {"master_address": "127.0.0.1:1", **values})


class _Transport(asyncio.Transport):
    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 1)})


def ask(rest: Rest, query: str = "", peer: str = "127.0.0.1", authorization: str = "") -> int:
    """Status of /api/exist/k; 503 when it went as far as to look for the master."""
    (route,) = [route for route in rest.routes() if route.path.startswith("/api/exist")]
    request = make_mocked_request(
        "GET",
        f"/api/exist/k{query}",
        headers={"Authorization": authorization} if authorization else {},
        match_info={"key": "k"},
        transport=_Transport(peer),
    )

    async def answer() -> web.StreamResponse:
        response: web.StreamResponse = await route.handler(request)
        return response

    return asyncio.run(answer()).status


def test_it_is_off_unless_it_is_switched_on() -> None:
    assert config().rest_api == "off"
    assert Rest(config(), "127.0.0.1:1", ()).routes() == []
    with pytest.raises(InvalidArgumentError, match="rest_api"):
        config(rest_api="yes")


def test_localhost_means_this_host() -> None:
    here, everywhere = (
        Rest(config(rest_api=who), "127.0.0.1:1", ()) for who in ("localhost", "all")
    )
    assert ask(here, peer="127.0.0.1") == ask(here, peer="::1") == 503
    assert ask(here, peer="::ffff:127.0.0.1") == 503
    assert ask(here, peer="10.0.0.9") == ask(here, peer="::ffff:10.0.0.9") == 403
    assert ask(everywhere, peer="10.0.0.9") == 503


def test_with_principals_a_request_needs_a_clients_token() -> None:
    rest = Rest(config(rest_api="all"), "127.0.0.1:1", (ENGINE, NODE))
    engine = "Bearer engine:" + "s" * 32
    assert ask(rest) == 401
    assert ask(rest, authorization="Bearer engine:wrong") == 401
    assert ask(rest, authorization=engine) == 403, "the tenant is another one"
    assert ask(rest, "?tenant_id=t1", authorization=engine) == 503
    assert ask(rest, authorization="Bearer a:" + "n" * 32) == 403, "a node is no client"
    rest.replace((NODE,))
    assert ask(rest, "?tenant_id=t1", authorization=engine) == 401
