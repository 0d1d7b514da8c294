"""GID table of an RDMA port, and the entry that a connection should use."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from kvstore.topology import sysfs

_GID = re.compile(r"(?:[0-9a-f]{4}:){7}[0-9a-f]{4}")
_MAX_GIDS = 1024
_EMPTY_IN_A_ROW = 64  # soft-RoCE has 1,024 entries, all but the first few empty


class Rank(IntEnum):
    """What a GID is worth; a lower one is better."""

    INFINIBAND = 0
    ROCE_V2_IPV4 = 1
    ROCE_V2_IPV6 = 2
    ROCE_V2_LINK_LOCAL = 3
    ROCE_V1 = 4
    UNKNOWN = 5


WORDS = {
    Rank.INFINIBAND: "InfiniBand",
    Rank.ROCE_V2_IPV4: "RoCE v2 over IPv4",
    Rank.ROCE_V2_IPV6: "RoCE v2 over IPv6",
    Rank.ROCE_V2_LINK_LOCAL: "RoCE v2, link-local",
    Rank.ROCE_V1: "RoCE v1",
    Rank.UNKNOWN: "unknown type",
}


@dataclass(frozen=True)
class Gid:
    """One entry of the table."""

    index: int
    address: ipaddress.IPv6Address
    rank: Rank
    netdev: str
    """Network device that it belongs to; empty: not known."""

    @property
    def ipv4(self) -> ipaddress.IPv4Address | None:
        """Its IPv4 address, if it is one."""
        return self.address.ipv4_mapped

    def words(self) -> str:
        """Say what it is, for output."""
        shown = self.ipv4 or self.address
        return f"GID {self.index} ({WORDS[self.rank]}, {shown})"


def read(port: Path, link_layer: str) -> tuple[Gid, ...]:
    """Read a port's table.

    Args:
        port: its folder in sysfs.
        link_layer: "InfiniBand" or "Ethernet".

    Returns:
        Its entries that are not empty, by index.
    """
    found: list[Gid] = []
    indices = [int(name) for name in sysfs.names(port / "gids") if re.fullmatch("[0-9]{1,4}", name)]
    empty = 0
    for index in indices[:_MAX_GIDS]:
        text = sysfs.text(port / "gids" / str(index)).lower()
        value = ipaddress.IPv6Address(text) if _GID.fullmatch(text) else None
        if value is None or int(value) == 0:
            empty += 1
            if empty == _EMPTY_IN_A_ROW and found:
                break
            continue
        empty = 0
        kind = sysfs.text(port / "gid_attrs" / "types" / str(index))
        netdev = sysfs.name(port / "gid_attrs" / "ndevs" / str(index))
        found.append(Gid(index, value, _rank(value, kind, link_layer), netdev))
    return tuple(found)


def _rank(value: ipaddress.IPv6Address, kind: str, link_layer: str) -> Rank:
    if link_layer == "InfiniBand":
        return Rank.INFINIBAND
    if kind == "IB/RoCE v1":
        return Rank.ROCE_V1
    if kind != "RoCE v2":
        return Rank.UNKNOWN
    ipv4 = value.ipv4_mapped
    if value.is_link_local or (ipv4 is not None and ipv4.is_link_local):
        return Rank.ROCE_V2_LINK_LOCAL
    return Rank.ROCE_V2_IPV4 if ipv4 is not None else Rank.ROCE_V2_IPV6


def best(table: Sequence[Gid]) -> Gid | None:
    """Choose the entry for connections: the best rank, then the lowest index; else None.

    RoCE v2 is routed, and IPv4 works with every stack. On InfiniBand it is entry 0.
    """
    return min(table, key=lambda gid: (gid.rank, gid.index), default=None)
