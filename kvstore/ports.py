"""Ports of servers: waiting for one, binding it, and the address that others are told."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

from kvstore import clock
from kvstore.errors import UnavailableError
from kvstore.logging import EventLogger

_log = EventLogger("http")
_PORT_PATIENCE_MS = 5000
_PORT_POLL_S = 0.1
_ANY_HOST = ("0.0.0.0", "::", "")


async def wait_for_port(what: str, host: str, port: int) -> bool:
    """Wait some seconds until a port can be bound: outgoing connections hold theirs for a while.

    Args:
        what: the port is for, for the message.
        host: as in bind().
        port: 0 for any.

    Returns:
        True.

    Raises:
        UnavailableError: The address is in use or not local.
    """
    give_up_ms = clock.monotonic_ms() + _PORT_PATIENCE_MS
    warned = False
    while True:
        try:
            if port:
                _listener(host, port).close()
            return True
        except OSError as error:
            why = f"{what} {bracketed(host)}:{port}: {error.strerror or error}"
            if clock.monotonic_ms() >= give_up_ms:
                raise UnavailableError(f"{why}{_reserve(error, port)}") from error
            if not warned:
                _log.warning("port_not_bound", error=why, retrying_for_ms=_PORT_PATIENCE_MS)
                warned = True
        await asyncio.sleep(_PORT_POLL_S)


def _reserve(error: OSError, port: int) -> str:
    """Say how to keep a port out of the range of outgoing connections, if it lies in it."""
    if error.errno != errno.EADDRINUSE:
        return ""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return ""
    if not low <= port <= high:
        return ""
    return (
        f". The system also gives ports {low} to {high} to outgoing connections: reserve this one "
        f"(sysctl net.ipv4.ip_local_reserved_ports={port})"
    )


def _listener(host: str, port: int) -> socket.socket:
    name = bare(host)
    family, _, _, _, address = socket.getaddrinfo(
        name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    dual = name == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, dualstack_ipv6=dual)


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket, so that its port is known before anything is served.

    Args:
        host: an address, with or without the brackets of IPv6, or a name; "::" takes IPv4, too.
        port: 0 for any.

    Raises:
        UnavailableError: The address is in use or not local.
    """
    try:
        return _listener(host, port)
    except OSError as error:
        where = f"{bracketed(host)}:{port}"
        raise UnavailableError(f"http {where}: {error.strerror or error}") from error


def bare(host: str) -> str:
    """Take the brackets off an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def bracketed(host: str) -> str:
    """Put an IPv6 address in brackets, as a port follows."""
    name = bare(host)
    return f"[{name}]" if ":" in name else name


def public_host(host: str, advertise_host: str) -> str:
    """Return the host under which others reach this process, ready for a port.

    Args:
        host: that the process listens on.
        advertise_host: announced in its place, if not empty.
    """
    public = bare(advertise_host or host)
    return bracketed(socket.gethostname() if public in _ANY_HOST else public)
