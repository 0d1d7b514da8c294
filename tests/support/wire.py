"""A second implementation of the block protocol, for tests that must misbehave.

Written from the comments of native/src/wire/{frame,fields,messages_*}.h. It shares no code
with the product, so what both agree on is the format and not a common mistake.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import hmac
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

HEADER = struct.Struct("<IHHQQ")
HELLO_MAGIC = int.from_bytes(b"KVSTORE1", "little")
VERSION_1_0 = 1 << 16
SLOT_PAGE = 4096

HELLO, CHALLENGE, AUTH, WELCOME, REFUSED, ERROR, STATUS_REPLY = 1, 2, 3, 4, 5, 6, 7
PING, PONG, SLOT_READY, RESERVE, COMMIT, ABORT, GET, PUT = (
    0x08,
    0x09,
    0x40,
    0x42,
    0x44,
    0x46,
    0x48,
    0x4A,
)
CLIENT_TO_NODE = (0x08, 0x40, 0x42, 0x44, 0x46, 0x48, 0x4A, 0x4C, 0x4E, 0x50, 0x52, 0x54, 0x56)
ALL_TYPES = (*range(1, 10), *range(0x20, 0x2E), *range(0x40, 0x5C), *range(0x80, 0x8E))


def number(tag: int, value: int, size_bytes: int) -> bytes:
    return struct.pack("<HI", tag, size_bytes) + value.to_bytes(size_bytes, "little", signed=False)


def text(tag: int, value: bytes) -> bytes:
    return struct.pack("<HI", tag, len(value)) + value


def column(tag: int, code: str, values: Sequence[int]) -> bytes:
    raw = struct.pack(f"<{len(values)}{code}", *values)
    return struct.pack("<HI", tag, len(raw)) + raw


def keys_field(tag: int, keys: Sequence[bytes]) -> bytes:
    ends, total = [], 0
    for key in keys:
        total += len(key)
        ends.append(total)
    raw = struct.pack(f"<I{len(ends)}I", len(keys), *ends) + b"".join(keys)
    return struct.pack("<HI", tag, len(raw)) + raw


def fields(body: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(body):
        tag, length = struct.unpack_from("<HI", body, at)
        found[tag] = body[at + 6 : at + 6 + length]
        at += 6 + length
    return found


def unpack(code: str, raw: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw))


def frame(kind: int, body: bytes = b"", payload: bytes = b"", request: int = 1) -> bytes:
    return HEADER.pack(len(body), kind, 0, request, len(payload)) + body + payload


@dataclass
class Frame:
    kind: int
    request: int
    body: bytes
    payload: bytes
    fds: list[int] = field(default_factory=list)


class Refusal(Exception):
    """The peer answered Refused or Error: (code, sentence)."""

    def __init__(self, body: bytes) -> None:
        got = fields(body)
        self.code = struct.unpack("<i", got[1])[0]
        super().__init__(self.code, got.get(2, b"").decode())


def hello_body(
    *,
    tenant: bytes = b"default",
    namespace: bytes = b"",
    versions: tuple[int, int] = (VERSION_1_0, VERSION_1_0),
    required: int = 0,
    principal: bytes = b"",
    token: bytes = b"",
    features: int = 7,
    extra: bytes = b"",
) -> bytes:
    body = number(1, versions[0], 4) + number(2, versions[1], 4)
    body += number(3, features, 8) + number(4, required, 8) + text(7, tenant) + text(8, namespace)
    if token:
        body += text(9, principal) + number(10, 1, 1)
    return body + text(11, os.urandom(32)) + extra


class Connection:
    """One connection, in the calling thread, with a deadline on every step."""

    def __init__(self, endpoint: str, timeout_s: float = 10.0) -> None:
        if endpoint.startswith("unix:"):
            path = endpoint.removeprefix("unix:").removeprefix("//")
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout_s)
            self.socket.connect("\0" + path[1:] if path.startswith("@") else path)
        else:
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            self.socket = socket.create_connection((host, int(port)), timeout_s)
        self.welcome: dict[int, bytes] = {}
        self.fds: list[int] = []
        self._requests = 0

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part, ancillary, _, _ = self.socket.recvmsg(size - len(data), socket.CMSG_SPACE(12))
            for level, kind, raw in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array.array("i")
                    fds.frombytes(raw[: len(raw) - len(raw) % 4])
                    self.fds += list(fds)
            if not part:
                raise ConnectionError("closed by the peer")
            data += part
        return data

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def receive(self) -> Frame:
        body_bytes, kind, _, request, payload_bytes = HEADER.unpack(self._receive(HEADER.size))
        return Frame(kind, request, self._receive(body_bytes), self._receive(payload_bytes))

    def handshake(self, body: bytes | None = None, token: bytes = b"") -> dict[int, bytes]:
        """Say hello; the Welcome's fields. Raises Refusal."""
        body = hello_body() if body is None else body
        self.send(frame(HELLO, body, request=HELLO_MAGIC))
        got = self.receive()
        if got.kind == CHALLENGE:
            message = b"kvstore 1 client proof" + hashlib.sha256(body).digest()
            message += hashlib.sha256(got.body).digest()
            self.send(frame(AUTH, text(1, hmac.digest(token, message, "sha256"))))
            got = self.receive()
        if got.kind != WELCOME:
            raise Refusal(got.body)
        self.welcome = fields(got.body)
        return self.welcome

    def call(self, kind: int, body: bytes = b"", payload: bytes = b"") -> Frame:
        self._requests += 1
        self.send(frame(kind, body, payload, self._requests))
        got = self.receive()
        if got.kind == ERROR:
            raise Refusal(got.body)
        assert got.request == self._requests
        return got

    def statuses(self, kind: int, body: bytes = b"", payload: bytes = b"") -> list[int]:
        got = self.call(kind, body, payload)
        assert got.kind == STATUS_REPLY
        return unpack("i", fields(got.body).get(1, b""))


class LocalClient:
    """A same-host writer that does each step of a put by hand."""

    def __init__(self, unix_endpoint: str, hello: bytes | None = None, token: bytes = b"") -> None:
        self.connection = Connection(unix_endpoint)
        welcome = self.connection.handshake(hello, token)
        assert len(self.connection.fds) == 3, "no shared memory was offered"
        self.slot = int.from_bytes(welcome[13], "little") - 1
        segment_fd, index_fd, slot_fd = self.connection.fds
        assert fcntl.fcntl(index_fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        fcntl.lockf(slot_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SLOT_PAGE)
        assert self.connection.statuses(SLOT_READY, number(1, self.slot, 4)) in ([0], [])
        self.segment = mmap.mmap(segment_fd, int.from_bytes(welcome[15], "little"))

    def reserve(self, key: bytes, size: int, timeout_ms: int = 5000) -> tuple[int, int, int]:
        """Return (status, generation, offset)."""
        body = keys_field(1, [key]) + column(2, "Q", [size]) + number(40, timeout_ms, 4)
        got = fields(self.connection.call(RESERVE, body).body)
        generation, offset = unpack("Q", got.get(2, b"")), unpack("Q", got.get(3, b""))
        return unpack("i", got[1])[0], (generation or [0])[0], (offset or [0])[0]

    def write(self, offset: int, data: bytes) -> None:
        self.segment[offset : offset + len(data)] = data

    def commit(self, generation: int, crc: int, timeout_ms: int = 5000) -> int:
        body = column(1, "Q", [generation]) + column(2, "I", [crc]) + number(40, timeout_ms, 4)
        return self.connection.statuses(COMMIT, body)[0]

    def abort(self, generation: int) -> int:
        return self.connection.statuses(ABORT, column(1, "Q", [generation]))[0]


def mint(secret: bytes, name: bytes, claims: bytes) -> bytes:
    """A minted token, as native/src/wire/README.md describes it."""
    message = b"kvstore 1 minted token\n" + name + b"\n" + claims
    return b"kvt1:" + hmac.new(secret, message, "sha256").hexdigest().encode() + b":" + claims


def of_token(token: bytes) -> tuple[bytes, bytes]:
    """What proves a hello, and the field that it has to have for that."""
    if not token.startswith(b"kvt1:"):
        return token, b""
    _, key, claims = token.split(b":", 2)
    return key, text(23, claims)


def crc32c(data: bytes) -> int:
    """Bitwise CRC32C; slow and obviously right."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# A program for python_process with the repository's root, a node's Unix endpoint and a size: it
# reserves a block by hand, maps it, writes half of it, prints the generation, and commits once it
# is sent a line.
HALF_A_PUT = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.wire import LocalClient, crc32c
client = LocalClient(sys.argv[2])
size = int(sys.argv[3])
status, generation, offset = client.reserve(b"half", size)
assert status == 0, status
client.write(offset, b"A" * (size // 2))
print(generation)
sys.stdin.readline()
client.write(offset, b"B" * size)
try:
    print(client.commit(generation, crc32c(b"B" * 8)))
except (ConnectionError, OSError):
    print("connection lost")
"""
