"""Isolation domains in a node's configuration: tenants that share memory, and their share of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

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
