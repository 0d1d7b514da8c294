"""Names and addresses of this host and of a headless Service, as a pod sees them."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

_RESOLVER = Path("/etc/resolv.conf")


def service_domain(resolver: Path = _RESOLVER) -> str:
    """Return the domain of the Services of this pod's namespace: NAMESPACE.svc.CLUSTER.

    It is the first such domain that the resolver searches; empty outside of a pod.
    """
    try:
        lines = resolver.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    searched = [words[1:] for line in lines if (words := line.split())[:1] == ["search"]]
    domains = searched[-1] if searched else []
    return next((d.rstrip(".") for d in domains if d.split(".")[1:2] == ["svc"]), "")


def own_address() -> str:
    """Return the address that this host's name stands for, which is the pod's own; empty: none."""
    found = resolve(socket.gethostname(), 0)
    usable = [one for one in found if not ipaddress.ip_address(one.partition("%")[0]).is_loopback]
    return usable[0] if usable else ""


def resolve(name: str, port: int) -> list[str]:
    """Return the addresses of a name, sorted; empty when it has none now."""
    try:
        found = socket.getaddrinfo(name, port or None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(address[0]) for *_, address in found})
