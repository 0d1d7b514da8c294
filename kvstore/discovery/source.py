"""Completes a configuration with what RBG or DNS tells, and notices when that changes.

What the configuration sets is kept. Filled in are keys that have their defaults: a node's
`master_address`, its labels group, role and index, and of both servers `advertise_host`.
"""

from __future__ import annotations

import hashlib
import os
import socket
from typing import Any, TypeVar

import msgspec

from kvstore import clock, environment
from kvstore.config import CommonConfig, MasterConfig, NodeConfig
from kvstore.discovery import group, names
from kvstore.errors import InvalidArgumentError
from kvstore.limits import MAX_CONFIG_BYTES, MAX_LABELS
from kvstore.logging import EventLogger, Recurring
from kvstore.options import read_file

_log = EventLogger("discovery")
_RESOLVE_MS = 5000
"""How often a name is resolved again."""
BLOCK_PORT = "block"
"""Name of the master's port in RBG's file."""

T = TypeVar("T", bound=CommonConfig)


def mode(settings: CommonConfig) -> str:
    """Return static, rbg or dns: for auto, rbg where the file of RBG is."""
    if settings.discovery != "auto":
        return settings.discovery
    return "rbg" if os.path.lexists(settings.discovery_file) else "static"


class Discovery:
    """What a server has found last."""

    def __init__(self) -> None:
        """Start with nothing found."""
        self._settings: CommonConfig | None = None
        self._resolved: list[str] = []
        self._resolved_ms = 0
        self._unresolved = Recurring(_log, "name_not_resolved")
        self.found: dict[str, Any] = {}
        """For /readyz; empty when nothing is discovered."""

    def complete(self, settings: T) -> T:
        """Fill in what is discovered.

        Args:
            settings: as read from file and command line.

        Raises:
            InvalidArgumentError: The file of RBG is wrong, or does not list the role.
        """
        self._settings = settings
        by = mode(settings)
        if by == "static":
            self.found = {}
            return settings
        about = environment.rbg()
        fields = msgspec.structs.asdict(settings)
        values: dict[str, Any] = {}
        found: dict[str, Any] = {"by": by, **about}
        if wants_masters(settings):
            masters = addresses(masters_of(settings)) if by == "rbg" else self._of_name(settings)
            values["master_address"] = masters
            found["masters"] = list(masters)
        if not fields["advertise_host"]:
            values["advertise_host"] = _announced(settings, about, by)
        if isinstance(settings, NodeConfig):
            values["labels"] = _with_room({**about, **settings.labels}, settings)
        try:
            completed = msgspec.convert(fields | values, type(settings))
        except (msgspec.ValidationError, ValueError) as error:
            raise InvalidArgumentError(f"discovery {by}: {error}") from None
        self.found = found
        return completed

    def _of_name(self, settings: CommonConfig) -> tuple[str, ...]:
        """Addresses behind the headless Service; the name itself while it has none."""
        host, port = host_and_port(settings.discovery_name)
        now_ms = clock.monotonic_ms()
        if not self._resolved or now_ms - self._resolved_ms >= _RESOLVE_MS:
            found = names.resolve(host, port)
            self._resolved_ms = now_ms
            if found:
                self._resolved = found
                self._unresolved.end()
            else:  # the last known ones may well live
                self._unresolved.warn(name=host, known=",".join(self._resolved))
        if not self._resolved:
            return (settings.discovery_name,)
        return tuple(joined(one, port) for one in self._resolved)

    def fingerprint(self) -> str:
        """Identify what is there to be found now; it changes when complete() should run again."""
        settings = self._settings
        if settings is None or not wants_masters(settings):
            return ""
        by = mode(settings)
        if by == "dns":
            return f"dns {','.join(self._of_name(settings))}"
        if by == "static":
            return "static"
        try:
            _, raw = read_file(settings.discovery_file, MAX_CONFIG_BYTES + 1)
        except OSError as error:
            return f"unreadable: {error.strerror}"
        return f"rbg {hashlib.sha256(raw).hexdigest()}"


def _with_room(labels: dict[str, str], settings: NodeConfig) -> dict[str, str]:
    """Return the labels, or those of the configuration alone if there is no room for more."""
    return labels if len({"host", *labels}) <= MAX_LABELS else settings.labels


def masters_of(settings: CommonConfig) -> list[group.Instance]:
    """Read the masters in RBG's file.

    Raises:
        InvalidArgumentError: The file is wrong, or does not list the role.
    """
    found = group.read(settings.discovery_file)
    try:
        return found.role(settings.discovery_role).instances
    except InvalidArgumentError as error:
        where = f"discovery file {settings.discovery_file}: "
        raise InvalidArgumentError(
            f"{where}{error}; set `discovery_role`, or `discovery` to static"
        ) from None


def addresses(masters: list[group.Instance]) -> tuple[str, ...]:
    """Return the block ports of masters in RBG's file: as it says, else the default one."""
    port = MasterConfig().port
    return tuple(joined(one.address, one.ports.get(BLOCK_PORT, port)) for one in masters)


def host_and_port(name: str) -> tuple[str, int]:
    """Split a `discovery_name` that the configuration has accepted."""
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def wants_masters(settings: CommonConfig) -> bool:
    """Say whether it is a node that was told no master."""
    default = NodeConfig().master_address
    return isinstance(settings, NodeConfig) and settings.master_address == default


def joined(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _announced(settings: CommonConfig, about: dict[str, str], by: str) -> str:
    """Return what this server announces: a master its name in DNS, a node its address.

    A pod's name resolves once it is ready, and a node is not before its master has called it back.
    """
    if isinstance(settings, NodeConfig):
        return names.own_address()
    if by == "dns":
        return socket.getfqdn()
    full = names.service_domain()
    if not (about.get("group") and about.get("role") and about.get("index")):
        return names.own_address()
    pod = f"{about['group']}-{about['role']}-{about['index']}"
    service = f"s-{about['group']}-{about['role']}"[:63].rstrip("-")
    return f"{pod}.{service}.{full}" if full else f"{pod}.{service}"
