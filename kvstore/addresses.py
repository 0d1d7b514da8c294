"""Addresses as people write them: masters, one or several, with or without a port; etcd."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

from kvstore.errors import InvalidArgumentError

BLOCK_PORT = 50051
"""Of a master, where an address names none."""
_NO_HOST = re.compile(r"[\s/@?#]")
_ETCD_PORT = 2379
_ETCD_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}(/[A-Za-z0-9._-]{1,64}){0,7}")


class EtcdAddress(NamedTuple):
    """Where the state of a cluster lies in etcd."""

    members: tuple[str, ...]
    """HOST:PORT of each, in the order to try them."""
    prefix: str
    """Of its keys, without slashes at the ends."""
    tls: bool


def etcd_of(address: str, name: str = "state") -> EtcdAddress:
    """Read the address of a state in etcd.

    Args:
        address: "etcd://HOST[:PORT][,…]/PREFIX"; etcds:// with TLS.
        name: of the argument, for messages.

    Raises:
        InvalidArgumentError: It is not.
    """
    scheme, separator, rest = address.partition("://")
    hosts, slash, prefix = rest.partition("/")
    members = tuple(
        member if is_host_and_port(member) else f"{member}:{_ETCD_PORT}"
        for member in hosts.split(",")
    )
    if (
        scheme not in ("etcd", "etcds")
        or not (separator and slash)
        or not all(map(is_host_and_port, members))
        or not _ETCD_PREFIX.fullmatch(prefix)
    ):
        raise InvalidArgumentError(
            f"`{name}` must be etcd://HOST:PORT[,HOST:PORT…]/PREFIX (etcds:// with TLS), with a "
            f"prefix of letters, digits, '.', '_', '-' and '/', not {address!r}"
        )
    return EtcdAddress(members, prefix, scheme == "etcds")


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


def check_etcd(state: str, tls: Mapping[str, str], auth_file: str) -> None:
    """Check the keys of a configuration that are about etcd.

    Raises:
        InvalidArgumentError: They do not fit together.
    """
    with_tls = etcd_of(state).tls if state else False
    if tls and not with_tls:
        raise InvalidArgumentError("`etcd_tls` needs a `state` of etcds://")
    if not tls.keys() <= {"ca", "cert", "key"} or ("cert" in tls) != ("key" in tls):
        raise InvalidArgumentError('`etcd_tls` has "ca", and "cert" together with "key"')
    if auth_file and not state:
        raise InvalidArgumentError("`etcd_auth_file` needs `state`")


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
