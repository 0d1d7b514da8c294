"""Why no master answered: what listens at its address, recognized by its first bytes."""

from __future__ import annotations

import socket

_LOOK_MS = 1000
_HTTP_REQUEST = b"GET /metrics HTTP/1.0\r\n\r\n"
# RFC 9113, 3.4: the client's preface and empty settings; a server answers with its own settings.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_MOST_BYTES = 256 << 10


def diagnose(address: str, timeout_ms: int) -> str:
    """Say what is at an address where no master answered the block protocol.

    Args:
        address: "host:port" or "unix:…".
        timeout_ms: how long the command has waited for an answer.

    Returns:
        A sentence that names the address, and what to do.
    """
    if address.startswith("unix:"):
        return f"no master answers at {address} within {timeout_ms:,} ms"
    host, _, port = address.rpartition(":")
    where = (host.strip("[]"), int(port))
    wait_s = min(timeout_ms, _LOOK_MS) / 1000
    try:
        with socket.create_connection(where, wait_s):
            pass
    except TimeoutError:
        return f"no answer from {address} within {timeout_ms:,} ms: is the address right?"
    except socket.gaierror as error:
        return f"cannot resolve {host}: {error.strerror}"
    except OSError as error:
        return f"nothing listens at {address} ({error.strerror}): is the master running?"
    other = _what_listens(where, wait_s)
    if other:
        return (
            f"{address} looks like {other}; --master is the master's block port (50051 by default)"
        )
    return (
        f"{address} accepts connections, but no master answered within {timeout_ms:,} ms: "
        "it hangs, is overloaded, or is another program"
    )


def _what_listens(where: tuple[str, int], wait_s: float) -> str:
    answer = _ask(where, _HTTP_REQUEST, wait_s)
    if answer.startswith(b"HTTP/1."):
        if b"kvstore_cluster_" in answer:
            return "the HTTP port of a kvstore master"
        return "the HTTP port of a kvstore node" if b"kvstore_" in answer else "an HTTP server"
    answer = _ask(where, _HTTP2_PREFACE, wait_s)
    if len(answer) >= 9 and answer[3] == _SETTINGS and answer[5:9] == bytes(4):
        return "a gRPC port, such as the master's control plane (50052 by default)"
    return ""


def _ask(where: tuple[str, int], question: bytes, wait_s: float) -> bytes:
    """Send a question; return what comes back before the peer closes or pauses."""
    answer = bytearray()
    try:
        with socket.create_connection(where, wait_s) as stream:
            stream.sendall(question)
            while len(answer) < _MOST_BYTES:
                part = stream.recv(64 << 10)
                if not part:
                    break
                answer += part
                stream.settimeout(min(wait_s, 0.2))
    except OSError:
        pass
    return bytes(answer)
