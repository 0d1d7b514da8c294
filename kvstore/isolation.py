"""Isolation domains in a node's configuration: tenants that share memory, and their share of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from kvstore import limits

SHARED_DOMAIN = "shared"
"""Of tenants that may map a node's memory and are in no domain of their own."""
PRIVATE_DOMAIN = "private"
"""Of tenants that may not map it."""
_NAMED_DOMAINS = (SHARED_DOMAIN, PRIVATE_DOMAIN)


def check_domains(
    domains: Mapping[str, Collection[str]],
    shm_read: Collection[str],
    shm_write: Collection[str],
    shares: Mapping[str, float],
) -> None:
    """Refuse tenants in two places, and shares that cannot be.

    Args:
        domains: tenants by the name of their domain.
        shm_read: tenants that may map memory for reading.
        shm_write: tenants that may map it for writing.
        shares: of the segment, by the name of a domain.

    Raises:
        ValueError: The message names the setting.
    """
    for name in domains:
        if not re.fullmatch("[a-z0-9][a-z0-9-]{0,31}", name) or name in _NAMED_DOMAINS:
            raise ValueError(
                f"`domains`: {name!r} is not a name of 1 to 32 lower-case letters, digits and "
                "hyphens, or is taken (shared, private)"
            )
    members = [tenant for tenants in domains.values() for tenant in tenants]
    mapping = [*shm_read, *shm_write]
    if not all(map(limits.is_valid_name, members + mapping)):
        raise ValueError("`shm_read`, `shm_write` or `domains` contains an invalid name")
    for key, tenants in (("domains", members), ("shm_read` and `shm_write", mapping)):
        twice = sorted({tenant for tenant in tenants if tenants.count(tenant) > 1})
        if twice:
            raise ValueError(f"`{key}`: tenant {twice[0]} is named twice")
    if len(domains) > limits.MAX_DOMAINS:
        raise ValueError(f"`domains`: at most {limits.MAX_DOMAINS}")
    unknown = sorted(set(shares) - {*domains, *_NAMED_DOMAINS})
    if unknown:
        raise ValueError(f"`domain_shares`: there is no domain {unknown[0]}")
    if not all(0 < share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise ValueError("`domain_shares` must be above 0 and add up to 1 at most")


def check_socket(mode: int, path: Path | None, group: str, token_file: str) -> None:
    """Refuse a Unix socket that nobody could reach, or that would trust everybody.

    Args:
        mode: its permission bits.
        path: below `socket_dir`; None without one.
        group: as configured.
        token_file: as configured.

    Raises:
        ValueError: Which key is wrong.
    """
    if mode & 0o600 != 0o600 or mode & 0o111:
        raise ValueError(f"`socket_mode` {mode:04o} must be 0600, 0660 or 0666")
    if mode & 0o002 and not token_file:
        raise ValueError(
            f"`socket_mode` {mode:04o} lets every user of this host connect, and needs "
            "`auth_token_file`; or let a group connect, with `socket_group`"
        )
    if path is None:
        if mode != 0o600 or group:
            raise ValueError(
                "`socket_mode` and `socket_group` need `socket_dir`: nobody else can enter "
                "`segment_dir`"
            )
        return
    if not path.is_absolute():
        raise ValueError("`socket_dir` must be an absolute path: clients get to know it")
    if len(str(path).encode()) > limits.MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"`socket_dir` and `node_id` are too long for a socket: {path} has more than "
            f"{limits.MAX_SOCKET_PATH_BYTES} bytes"
        )
