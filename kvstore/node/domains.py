"""How a node's memory is divided among tenants: who shares memory with whom, and how much.

Tenants that may map the node's memory share one domain unless `domains` separates them. Objects of
everybody else lie in a private domain, which nobody maps. Without authentication a tenant is a name
that anybody may use, so there is nothing to separate: everybody else is in the shared domain, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvstore import _native
from kvstore.config import NodeConfig
from kvstore.isolation import PRIVATE_DOMAIN, SHARED_DOMAIN
from kvstore.security import EVERY_TENANT, Principal, Role

_UNUSED_BYTES = 1 << 20
"""Size of the shared domain where no principal's tenant is in it: its files lock the folder."""
_UNIT_BYTES = 2 << 20
"""Sizes are multiples of it, for hugetlbfs; of a page where the segment is small."""
_SMALL_BYTES = 64 << 20
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Domain:
    """A part of a node's memory with a segment, an index and slots of its own."""

    name: str
    tenants: frozenset[str]
    others: bool
    """Whether tenants that no domain names are in it as well."""
    segment_bytes: int

    @property
    def file_suffix(self) -> str:
        """What distinguishes its files; the shared domain's have the plain names."""
        return "" if self.name == SHARED_DOMAIN else self.name

    def native(self) -> _native.DomainOptions:
        """Return it as the native node takes it."""
        options = _native.DomainOptions()
        options.name = self.file_suffix
        options.tenants = sorted(self.tenants)
        options.others = self.others
        options.is_private = self.name == PRIVATE_DOMAIN
        options.segment_bytes = self.segment_bytes
        return options


def plan(config: NodeConfig, principals: Iterable[Principal]) -> tuple[Domain, ...]:
    """Divide a node's memory.

    Args:
        config: of the node.
        principals: who may connect; none without authentication.

    Returns:
        The shared domain, then those of `domains`, then the private one if there is one. Domains
        without a share in `domain_shares` divide equally what the others leave.
    """
    principals = tuple(principals)
    members = {tenant for tenants in config.domains.values() for tenant in tenants}
    shared = frozenset({*config.shm_read, *config.shm_write} - members)
    named = {tenant for principal in principals for tenant in principal.tenants} - {EVERY_TENANT}
    anybody = not principals or any(
        principal.role is Role.CLIENT and EVERY_TENANT in principal.tenants
        for principal in principals
    )
    shares = config.domain_shares
    has_private = PRIVATE_DOMAIN in shares or bool(principals and named - members - shared)
    kinds = {
        SHARED_DOMAIN: (shared, not principals and not has_private),
        **{name: (frozenset(tenants), False) for name, tenants in config.domains.items()},
    }
    if has_private:
        kinds[PRIVATE_DOMAIN] = (frozenset(), True)
    used = set(kinds)
    is_shared_used = anybody or bool(shared & named) or SHARED_DOMAIN in shares
    if not is_shared_used and len(used) > 1:
        used.remove(SHARED_DOMAIN)
    sizes = _sizes(config, used)
    return tuple(
        Domain(name, tenants, others, sizes.get(name, _UNUSED_BYTES))
        for name, (tenants, others) in kinds.items()
    )


def _sizes(config: NodeConfig, used: set[str]) -> dict[str, int]:
    if len(used) == 1:
        return dict.fromkeys(used, config.segment_size)
    given = {name: share for name, share in config.domain_shares.items() if name in used}
    rest = max(0.0, 1 - sum(given.values())) / max(1, len(used) - len(given))
    unit = _UNIT_BYTES if config.segment_size >= _SMALL_BYTES else _PAGE_BYTES
    return {name: int(config.segment_size * given.get(name, rest)) // unit * unit for name in used}


def remarks(
    domains: tuple[Domain, ...], config: NodeConfig, principals: Iterable[Principal]
) -> Iterator[str]:
    """Say what a changed configuration asks for and running domains cannot give.

    Args:
        domains: as they were planned at the start.
        config: the one in effect.
        principals: who may connect now.
    """
    homes = {tenant: domain.name for domain in domains for tenant in domain.tenants}
    others = next((domain.name for domain in domains if domain.others), None)
    for tenant in sorted({*config.shm_read, *config.shm_write}):
        if homes.get(tenant, others) in (PRIVATE_DOMAIN, None):
            yield f"tenant {tenant} can map memory only after a restart of the node"
    named = {tenant for principal in principals for tenant in principal.tenants} - {EVERY_TENANT}
    for tenant in sorted(named - set(homes)) if others is None else ():
        yield f"tenant {tenant} has memory here only after a restart of the node"
