"""Damaged token files, configurations, headers and bodies: accepted, or refused with a sentence."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore import config, security
from kvstore.config import MasterConfig, NodeConfig
from kvstore.errors import InvalidArgumentError, KvstoreError, UnauthenticatedError
from kvstore.node.rest import Rest
from kvstore.security import ANYBODY, Guard

SECRETS = ("a-secret-of-sixteen", "another-secret-of-it", "the-third-secret-of-it")
TOKENS = f"""\
# name role tenants secret
engine client default,research {SECRETS[0]}
engine client default,research {SECRETS[1]}
node-* node * {SECRETS[1]}
ops operator * {SECRETS[2]}
""".encode()
NODE = json.dumps(
    {
        "master_address": ["127.0.0.1:50051", "10.0.0.1"],
        "node_id": "a",
        "segment_size": "64mb",
        "labels": {"rack": "1"},
        "shm_tenants": ["default"],
        "rest_api": "all",
        "demote_ahead": 0.5,
        "metrics_public": True,
        "audit_log": "stderr",
    }
).encode()
MASTER = json.dumps({"port": 0, "heartbeat_ms": 500, "node_ttl_ms": 5000}).encode()
PUT = json.dumps({"key": "k", "value": "v" * 40}).encode()
# What tends to break parsers.
ODDITIES = (b"\0", b"\xff\xfe", b"\n", b"\r", b'"', b"{", b"[" * 3000, b"9" * 400, b"1e999", b"NaN")


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Cut, flip, repeat, and put odd things anywhere."""
    places = st.integers(0, len(whole))

    def cut(at: int) -> bytes:
        return whole[:at]

    def flip(places_and_bits: list[tuple[int, int]]) -> bytes:
        changed = bytearray(whole)
        for place, bit in places_and_bits:
            changed[place % len(changed)] ^= 1 << bit
        return bytes(changed)

    def insert(at: int, what: bytes) -> bytes:
        return whole[:at] + what + whole[at:]

    def repeat(begin: int, size: int) -> bytes:
        return whole[:begin] + whole[begin : begin + size] + whole[begin:]

    return st.one_of(
        st.builds(cut, places),
        st.builds(flip, st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=8)),
        st.builds(insert, places, st.sampled_from(ODDITIES) | st.binary(max_size=20)),
        st.builds(repeat, places, places),
        st.binary(max_size=200),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "file"
    path.touch(0o600)
    return path


@given(raw=damaged(TOKENS))
@settings(max_examples=120, deadline=None)
def test_token_files(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    try:
        found = security.load_principals(file)
    except InvalidArgumentError as error:
        assert not any(secret in str(error) for secret in SECRETS)
        assert "\n" not in str(error)
        return
    guard = Guard(found)
    for principal in found:
        ((_, header),) = security.bearer(principal)
        assert guard.identify(header, "") == principal
        assert guard.still_admits(principal)


@given(raw=damaged(NODE))
@settings(max_examples=120, deadline=None)
def test_node_configurations(file: Path, raw: bytes) -> None:
    load(NodeConfig, file, raw)


@given(raw=damaged(MASTER))
@settings(max_examples=80, deadline=None)
def test_master_configurations(file: Path, raw: bytes) -> None:
    load(MasterConfig, file, raw)


def load(kind: type[Any], file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    try:
        loaded = config.load(kind, file, {})
    except InvalidArgumentError as error:
        assert str(file) in str(error)
    else:
        assert isinstance(loaded, kind)


@given(header=st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=120, deadline=None)
def test_authorization_headers(header: str) -> None:
    guard = Guard(
        [security.Principal("e", security.Role.CLIENT, ("t",), security.Secret("s" * 20))]
    )
    for given_ in (header, f"Bearer {header}", f"Bearer e:{header}", f"bearer {header}:{'s' * 20}"):
        assert len(guard.claimed(given_)) <= 255
        try:
            assert guard.identify(given_, "") is not ANYBODY
        except UnauthenticatedError:
            assert not guard.knows(given_, "")
        else:
            assert given_.split(" ", 1)[1].strip() == f"e:{'s' * 20}"


class _Client:
    """Takes what a put has made of its body."""

    def __init__(self) -> None:
        self.puts: list[tuple[str, bytes]] = []

    def put(self, key: str, value: bytes, *_: object) -> int:
        self.puts.append((key, value))
        return 0


@given(raw=damaged(PUT))
@settings(max_examples=120, deadline=None)
def test_bodies_of_puts(raw: bytes) -> None:
    node = config.load(NodeConfig, None, {"master_address": "127.0.0.1:1", "rest_api": "all"})
    client = _Client()

    async def put() -> web.Response:
        return await Rest(node, "127.0.0.1:1", ())._put_body(bytearray(raw), client)  # type: ignore[arg-type]

    try:
        response = asyncio.run(put())
    except KvstoreError:
        return
    assert response.status == (200 if client.puts else 400)
    for key, value in client.puts:
        assert 1 <= len(key.encode()) <= 1024 and isinstance(value, bytes)
