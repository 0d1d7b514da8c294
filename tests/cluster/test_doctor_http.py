"""The doctor asks HTTP ports that are hostile: it ends in time, and says what is wrong."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kvstore.cli.examine import ask_http
from kvstore.clock import unix_ms

Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve) -> Iterator[str]:
    """Serve every connection with that function; the endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with stream:
                    try:
                        stream.recv(4096)
                        serve(stream)
                    except OSError:
                        pass

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


def says(*parts: bytes) -> Serve:
    def serve(stream: socket.socket) -> None:
        for part in parts:
            stream.sendall(part)

    return serve


def endless(head: bytes, part: bytes) -> Serve:
    def serve(stream: socket.socket) -> None:
        stream.sendall(head)
        while True:
            stream.sendall(part)

    return serve


def drips(head: bytes) -> Serve:
    """A byte now and then, so that no single read times out."""

    def serve(stream: socket.socket) -> None:
        stream.sendall(head)
        stream.settimeout(0.05)
        while True:
            try:
                if not stream.recv(1):
                    return
            except TimeoutError:
                stream.sendall(b"x")

    return serve


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"


@pytest.mark.parametrize(
    ("serve", "error"),
    [
        (says(b"\x00\xff\x00 no HTTP\r\n\r\n"), "what answers speaks no HTTP (BadStatusLine)"),
        (says(), "closed connection without response"),
        (says(HEAD, b"{}"), "what answers speaks no HTTP (IncompleteRead)"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), "what answers speaks no HTTP"),
        (drips(HEAD), "no answer within 500 ms"),
        (drips(b"HTTP/1.1 200 OK\r\nA: "), "no answer within 500 ms"),
    ],
)
def test_a_hostile_port_is_an_error_in_words(serve: Serve, error: str) -> None:
    begun = time.monotonic()
    with server(serve) as endpoint:
        answer = ask_http(endpoint, 500)
    assert error in answer.error and answer.endpoint == endpoint
    assert time.monotonic() - begun < 5


def test_a_flood_is_cut() -> None:
    head = b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2099 00:00:00 GMT\r\n\r\n"
    with server(endless(head, b'kvstore_build_info{version="9.9.9"} 1\n' * 1000)) as endpoint:
        answer = ask_http(endpoint, 20_000)
    assert not answer.error and answer.version == "9.9.9" and answer.details == {}
    assert answer.ahead_s is not None and answer.ahead_s > 1e9 - unix_ms() / 1000


@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 01 Jan 99999 00:00:00 GMT", "\x01"])
def test_an_odd_date_is_unknown(date: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nDate: {date}\r\n\r\n".encode()
    with server(says(head)) as endpoint:
        assert ask_http(endpoint, 5000).ahead_s is None


@pytest.mark.parametrize(
    "endpoint",
    ["file:///etc/passwd", "https://", "http://", "http://h:x", "http://[::1", ""],
)
def test_only_http_is_asked(endpoint: str) -> None:
    assert ask_http(endpoint, 500).error == "this is not http://HOST:PORT"


def test_tls_needs_to_know_whom_to_trust() -> None:
    assert ask_http("https://127.0.0.1:1", 500).error == (
        "it speaks TLS: --tls-ca names its authorities"
    )
