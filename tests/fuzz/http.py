"""Target for the HTTP port: any bytes on a connection, with the REST interface on.

The first byte of an input says whether requests need a token. The port answers or closes; it never
answers 500, logs no error, and gives back the room that bodies have taken.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import socket

from kvstore import _native
from kvstore.config import NodeConfig, load
from kvstore.errors import Status
from kvstore.http import HttpServer
from kvstore.node.rest import Rest
from kvstore.security import Principal, Role, Secret

_PATIENCE_S = 20
_QUIET_TURNS = 30
"""Of the event loop, after which no request follows those that were answered."""
_REQUEST_S = 0.1
"""What the stand-in for the client needs, many times over."""
_PRINCIPALS = (
    Principal("engine", Role.CLIENT, ("default", "t"), Secret("a-secret-of-sixteen")),
    Principal("node", Role.NODE, ("*",), Secret("another-secret-of-it")),
)
_METRICS = b"kvstore_fuzz_metric 1\n"
_DETAILS = b"details of /readyz"
_STATUS = re.compile(rb"(?:^|\r\n\r\n)HTTP/\d\.\d (\d{3}) ")


class _Client:
    """Stands in for the native client: keeps objects in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, value: bytes, *_: object) -> int:
        assert 1 <= len(key.encode()) <= 1024
        self.objects = {key: value}
        return Status.Ok

    def size(self, key: str) -> int:
        assert 1 <= len(key.encode()) <= 1024
        return len(self.objects[key]) if key in self.objects else Status.NotFound

    def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def remove(self, keys: list[str]) -> tuple[list[int], list[str]]:
        return [Status.Ok if self.objects.pop(keys[0], None) else Status.NotFound], []

    def list_keys(self, prefix: str, cursor: bytes, limit: int) -> tuple[list[str], bytes]:
        return list(self.objects)[:limit], b""

    def flush(self) -> int:
        self.objects.clear()
        return Status.Ok


class _Rest(Rest):
    client = _Client()

    def _client(self, caller: Principal, tenant: str, namespace: str) -> _native.Client:
        assert tenant.isprintable() and len(tenant) <= 255
        return self.client  # type: ignore[return-value]

    @property
    def body_bytes(self) -> int:
        """What bodies take of the limit now."""
        return self._bodies.used


class _Errors(logging.Handler):
    """Collects what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class _Port:
    """A server on a socket of its own, in a loop that runs while an input is sent."""

    def __init__(self, principals: tuple[Principal, ...]) -> None:
        given = {"master_address": "127.0.0.1:1", "rest_api": "all", "rest_max_body": 4096}
        self.rest = _Rest(load(NodeConfig, None, given), "127.0.0.1:1", principals)
        self._name = f"\0kvstore-fuzz-{os.getpid()}-{len(principals)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._name)
        listener.listen()
        listener.setblocking(False)
        self._server = HttpServer(
            listener,
            lambda: _METRICS,
            lambda: (True, {"lacks": _DETAILS.decode()}),
            self.rest.knows,
            self.rest.routes(),
            max_body_bytes=4096,
            open_metrics=lambda: not principals,
        )
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._server.start())

    def send(self, raw: bytes) -> bytes:
        self.rest.client.objects = {}
        return self._loop.run_until_complete(asyncio.wait_for(self._send(raw), _PATIENCE_S))

    async def _settled(self) -> None:
        """Wait until no request is in progress, or the one that is seems to wait for more bytes.

        The end of a connection cancels its requests: only then may it come.
        """
        quiet, give_up_s = 0, self._loop.time() + _REQUEST_S
        while quiet < _QUIET_TURNS and self._loop.time() < give_up_s:
            await asyncio.sleep(0)
            quiet = 0 if self._server._connections._busy else quiet + 1

    async def _send(self, raw: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._name)
        try:
            writer.write(raw)
            await self._settled()
            writer.write_eof()
            heard = await reader.read()
        except ConnectionError:  # refused before everything was sent
            heard = b""
        finally:
            writer.close()
        while self.rest.body_bytes or len(self._server._connections):
            await asyncio.sleep(0)
        return heard


@functools.cache
def _ports() -> tuple[_Port, _Port, _Errors]:
    errors = _Errors()
    for name in ("aiohttp", "asyncio", "kvstore"):
        logging.getLogger(name).addHandler(errors)
    return _Port(()), _Port(_PRINCIPALS), errors


def http_port(raw: bytes) -> None:
    """A connection to the HTTP port."""
    open_port, guarded_port, errors = _ports()
    port = guarded_port if raw[:1] == b"\1" else open_port
    heard = port.send(raw[1:])
    assert not heard or _STATUS.match(heard), heard[:80]
    assert b"500" not in _STATUS.findall(heard), heard
    assert not errors.seen, errors.seen.pop()
    if port is guarded_port and b"a-secret-of-sixteen" not in raw:
        for hidden in (_METRICS, _DETAILS):
            assert hidden in raw or hidden not in heard, heard  # an error repeats the request
