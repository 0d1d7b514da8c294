"""Finds masters once, as a node would, and says what is wrong; for `doctor` and `config check`."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.config import CommonConfig, MasterConfig
from kvstore.discovery import names
from kvstore.discovery.source import (
    BLOCK_PORT,
    addresses,
    host_and_port,
    joined,
    masters_of,
    mode,
    wants_masters,
)
from kvstore.errors import InvalidArgumentError


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a node with this configuration finds."""

    by: str
    """rbg or dns."""
    source: str
    """The file with its role, or the name."""
    masters: tuple[str, ...] = ()
    problem: str = ""
    """A sentence; with masters, the node starts nevertheless."""
    fix: str = ""


def look(settings: CommonConfig) -> Found | None:
    """Look for masters.

    Args:
        settings: of a server, before discovery.

    Returns:
        What is found; None for a server that looks for no master.
    """
    if not wants_masters(settings) or mode(settings) == "static":
        return None
    return _in_group(settings) if mode(settings) == "rbg" else _behind_name(settings)


def _in_group(settings: CommonConfig) -> Found:
    file, role = settings.discovery_file, settings.discovery_role
    source = f"role {role!r} of {file}"
    try:
        masters = masters_of(settings)
    except InvalidArgumentError as error:
        fix = "correct `discovery_file` or `discovery_role`, or set `master_address`"
        return Found(by="rbg", source=source, problem=str(error), fix=fix)
    found = addresses(masters)
    named = sorted({name for one in masters for name in one.ports})
    if named and not all(BLOCK_PORT in one.ports for one in masters):
        return Found(
            by="rbg",
            source=source,
            masters=found,
            problem=f"discovery file {file}: an instance of role {role!r} has no port "
            f"{BLOCK_PORT!r}, but {', '.join(named)}: its nodes try {MasterConfig().port}",
            fix=f"name the master's block port {BLOCK_PORT!r} in the role's servicePorts",
        )
    return Found(by="rbg", source=source, masters=found)


def _behind_name(settings: CommonConfig) -> Found:
    name = settings.discovery_name
    host, port = host_and_port(name)
    found = tuple(joined(one, port) for one in names.resolve(host, port))
    if not found:
        return Found(
            by="dns",
            source=name,
            problem=f"`discovery_name` {name}: DNS has no address of {host}",
            fix="correct the name, or start a master behind this headless Service; a Service of "
            "another namespace is NAME.NAMESPACE",
        )
    return Found(by="dns", source=name, masters=found)
