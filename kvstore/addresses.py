"""Addresses of masters as people write them: one or several, with or without a port."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address

from kvstore.errors import InvalidArgumentError

BLOCK_PORT = 50051
"""Of a master, where an address names none."""
_NO_HOST = re.compile(r"[\s/@?#]")


def masters_of(address: str | Sequence[str], name: str = "address") -> list[str]:
    """Read the addresses of a cluster's masters.

    Args:
        address: "host", "host:port", "[::1]:port", "unix:///path" or "unix:@name"; several in a
            list, or separated by commas.
        name: of the argument, for messages.

    Returns:
        One or more addresses, each with its port, in the order given.

    Raises:
        InvalidArgumentError: It is none of these; whether a host exists is not looked at.
    """
    given = [address] if isinstance(address, str) else address
    if isinstance(given, bytes | bytearray) or not isinstance(given, Sequence):
        hint = f'; did you mean "127.0.0.1:{given}"?' if isinstance(given, int) else ""
        raise InvalidArgumentError(
            f'{name} must be "HOST:PORT" or a list of them, not {given!r}{hint}'
        )
    masters = []
    for one in given:
        if not isinstance(one, str):
            raise InvalidArgumentError(f'{name} must be "HOST:PORT" or a list of them, not {one!r}')
        masters += [_with_port(part.strip(), name) for part in one.split(",") if part.strip()]
    if not masters:
        raise InvalidArgumentError(f'{name} is empty; it must be "HOST:PORT" or a list of them')
    return masters


def is_host(text: str) -> bool:
    """Say whether `text` is an IP address, or could be a name that resolves to one."""
    if ":" in text:
        return _is_ipv6(text)
    return re.fullmatch(r"[^\s\[\]/@]*", text) is not None


def is_host_and_port(text: str) -> bool:
    """Say whether `text` is HOST:PORT, or [IPv6]:PORT, both of which could be."""
    host, _, port = text.rpartition(":")
    is_number = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
    if host.startswith("[") and host.endswith("]"):
        return is_number and _is_ipv6(host[1:-1])
    return is_number and bool(host) and ":" not in host and is_host(host)


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _with_port(text: str, name: str) -> str:
    if text.startswith("unix:"):
        return text
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme != "tcp":
        raise InvalidArgumentError(
            f"{name}: {text!r} has the scheme {scheme!r}; the block port is tcp://HOST:PORT"
        )
    host, colon, port = rest.rpartition(":")
    if _is_ipv6(host) and port.isdigit():  # "::1:50051", as the servers print it
        host = f"[{host}]"
    elif _is_ipv6(rest):
        return f"[{rest}]:{BLOCK_PORT}"
    if not colon or rest.endswith("]"):
        host, port = rest, str(BLOCK_PORT)
    if (
        _NO_HOST.search(host)
        or not host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise InvalidArgumentError(f"{name}: {text!r} is not HOST or HOST:PORT")
    return f"{host}:{port}"
