"""Malformed, truncated, oversized, wrong-version and unauthenticated frames at a live node."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.wire import (
    ALL_TYPES,
    CLIENT_TO_NODE,
    GET,
    HEADER,
    HELLO,
    HELLO_MAGIC,
    PING,
    PONG,
    REFUSED,
    Connection,
    Refusal,
    column,
    frame,
    hello_body,
    keys_field,
    number,
    text,
)

pytestmark = pytest.mark.cluster

FRAMES = 10_000


def _plausible_body(draw: random.Random) -> bytes:
    """A body that many messages would accept: keys, and columns of as many rows."""
    keys = [b"hostile/%d" % draw.randrange(100) for _ in range(draw.randrange(0, 4))]
    rows = len(keys)
    return (
        keys_field(1, keys)
        + column(2, "Q", [draw.choice([0, 1, 64, 1 << 40, (1 << 64) - 1]) for _ in range(rows)])
        + column(3, "B", [draw.randrange(0, 4) for _ in range(rows)])
        + number(40, draw.choice([0, 10, 1 << 31]), 4)
    )


def _cut(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw))] if raw else raw


def _flip(raw: bytes, draw: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(draw.randrange(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _grow_body_length(raw: bytes, draw: random.Random) -> bytes:
    return struct.pack("<I", draw.choice([9 << 20, 0xFFFFFFFF])) + raw[4:]


def _grow_payload_length(raw: bytes, draw: random.Random) -> bytes:
    return raw[:16] + struct.pack("<Q", draw.choice([1, 1 << 33, (1 << 64) - 1])) + raw[24:]


def _inner_length(raw: bytes, draw: random.Random) -> bytes:
    if len(raw) < HEADER.size + 6:
        return raw
    return raw[: HEADER.size + 2] + struct.pack("<I", draw.randrange(1 << 32)) + raw[30:]


def _noise(raw: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(max(len(raw), 32))


MUTATORS: list[Callable[[bytes, random.Random], bytes]] = [
    lambda raw, draw: raw,
    _cut,
    _flip,
    _grow_body_length,
    _grow_payload_length,
    _inner_length,
    _noise,
]


def _throw(endpoint: str, raw: bytes, authenticated: bool) -> None:
    """Send one frame and half-close; the peer must answer or close, and never hang."""
    with Connection(endpoint, timeout_s=20) as connection:
        if authenticated:
            connection.handshake()
        try:
            connection.send(raw)
            connection.socket.shutdown(1)
            while connection.socket.recv(65536):
                pass
        except (ConnectionError, BrokenPipeError):
            pass


def test_ten_thousand_hostile_frames_leave_a_live_node_serving(cluster: Cluster) -> None:
    cluster.start_node("a")
    store = cluster.connect(transport="tcp")
    assert store.put("witness", b"unharmed") is Status.Ok
    node = cluster.cli("nodes")[0]
    used = node["used_bytes"]
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    kinds = [*ALL_TYPES, 0, 0xFFFF]
    sent = 0
    while sent < FRAMES:
        for kind in kinds:
            for mutate in MUTATORS:
                raw = mutate(frame(kind, _plausible_body(draw)), draw)
                authenticated = sent % 2 == 0
                _throw(node["endpoints"]["tcp"], raw, authenticated)
                sent += 1
        assert store.get("witness") == b"unharmed"
    assert cluster.nodes["a"].process.poll() is None
    local = cluster.connect()
    assert local.get("witness") == b"unharmed"
    assert local.put("after", b"x") is Status.Ok
    assert cluster.cli("nodes")[0]["used_bytes"] <= used + (1 << 20)


def test_each_kind_of_bad_frame_is_named(cluster: Cluster) -> None:
    cluster.start_node("a")
    endpoint = cluster.cli("nodes")[0]["endpoints"]["tcp"]

    def refusal(raw: bytes, welcome_first: bool = False) -> int:
        with Connection(endpoint) as connection:
            if welcome_first:
                connection.handshake()
            connection.send(raw)
            got = connection.receive()
            with pytest.raises(ConnectionError):
                connection.receive()
            return int(Refusal(got.body).code)

    wrong_version = frame(HELLO, hello_body(versions=(9 << 16, 9 << 16)), request=HELLO_MAGIC)
    assert refusal(wrong_version) == Status.VersionMismatch
    feature = frame(HELLO, hello_body(required=1 << 40), request=HELLO_MAGIC)
    assert refusal(feature) == Status.VersionMismatch
    assert refusal(frame(PING)) in (Status.ProtocolError, Status.Unauthenticated)
    assert refusal(b"GET / HTTP/1.1\r\nHost: kvstore\r\n\r\n") == Status.ProtocolError
    oversized = HEADER.pack(64 << 20, CLIENT_TO_NODE[1], 0, 1, 0)
    assert refusal(oversized, welcome_first=True) in (Status.TooLarge, Status.ProtocolError)
    cut_field = frame(GET, b"\x01\x00\xff\xff\xff\xff")
    assert refusal(cut_field, welcome_first=True) == Status.ProtocolError


def test_unknown_fields_of_a_later_minor_version_are_skipped(cluster: Cluster) -> None:
    cluster.start_node("a")
    endpoint = cluster.cli("nodes")[0]["endpoints"]["tcp"]
    later = hello_body(versions=(1 << 16, (1 << 16) + 1), extra=text(46, b"from the future"))
    with Connection(endpoint) as connection:
        welcome = connection.handshake(later)
        assert int.from_bytes(welcome[1], "little") == 1 << 16
        got = connection.call(PING, number(1, 7, 8) + text(45, b"unknown") + text(900, b"tag"))
        assert got.kind == PONG


TOKENS = "worker client default s3cret-of-the-worker\na node * s3cret-of-the-node\n"
TOKENS += "admin operator * s3cret-of-the-admin\n"


def test_without_the_token_nothing_but_the_refusal_happens(tmp_path: Path) -> None:
    folder = tmp_path

    def token_file(name: str, content: str) -> str:
        path = folder / name
        path.write_text(content)
        path.chmod(0o600)
        return str(path)

    everyone = token_file("all", TOKENS)
    lines = TOKENS.splitlines(keepends=True)
    worker, admin = token_file("worker", lines[0]), token_file("admin", lines[2])
    wrong = token_file("wrong", "worker client default not-the-secret-of-the-worker\n")
    cluster = Cluster(folder, ["--auth-token-file", everyone], operator_token_file=admin)
    try:
        cluster.start_node("a", auth_token_file=everyone)
        _assert_only_the_right_token_works(cluster, worker, wrong)
    finally:
        cluster.close()


def _assert_only_the_right_token_works(cluster: Cluster, worker: str, wrong: str) -> None:
    import kvstore

    store = cluster.connect(token_file=worker)
    assert store.put("k", b"v") is Status.Ok
    assert cluster.connect(token_file=worker, transport="tcp").get("k") == b"v"
    for bad in (None, wrong):
        with pytest.raises(kvstore.UnauthenticatedError):
            cluster.connect(token_file=bad).get("k")
    with pytest.raises(kvstore.PermissionDeniedError):
        cluster.connect(token_file=worker, tenant="somebody-else").get("k")
    for endpoint in (cluster.address, cluster.cli("nodes")[0]["endpoints"]["tcp"]):
        with Connection(endpoint) as connection:
            connection.send(frame(HELLO, hello_body(), request=HELLO_MAGIC))
            got = connection.receive()
            assert got.kind == REFUSED and Refusal(got.body).code == Status.Unauthenticated
        with Connection(endpoint) as connection:
            body = hello_body(principal=b"worker", token=b"x")
            with pytest.raises(Refusal) as refused:
                connection.handshake(body, token=b"not-the-secret")
            assert refused.value.code == Status.Unauthenticated
