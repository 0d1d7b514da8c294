"""Converts a config.json of Mooncake to one of kvstore-node, with remarks on the differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.compat.mooncake.settings import SPELLINGS, WITHOUT_EFFECT, truth
from kvstore.errors import InvalidArgumentError
from kvstore.sizes import format_size, parse_size

_DEFAULT_SEGMENT = "1gb"
_LOCAL = ("", "localhost", "127.0.0.1", "::1")
_DEPLOYMENT = {
    "mode": "keep it in the engine: standalone-store, with global_segment_size 0 there",
    "master_metrics_port": "keep it in the engine: the master's http_port (9080)",
    "check_server": "keep it in the engine: the master's HTTP port serves /get_all_segments",
    "standalone_storage": "nodes are separate processes: kvstore-node",
    "client_server_address": "nodes are separate processes: kvstore-node",
    "enable_offload": WITHOUT_EFFECT["enable_ssd_offload"],
    "storage_root_dir": WITHOUT_EFFECT["ssd_offload_path"],
    "transfer_timeout": "a setting of LMCache itself: keep it there",
}


@dataclass(frozen=True)
class Migration:
    """Result of a conversion."""

    node: dict[str, Any]
    """config.json of kvstore-node; empty when the client lends no memory and needs no node."""
    remarks: list[str]
    """Settings that are not carried over, with reasons, and decisions left to the operator."""


def migrate(values: Mapping[str, Any]) -> Migration:
    """Convert a configuration of Mooncake's clients to one of kvstore's nodes.

    Args:
        values: of its config.json, in any spelling that Mooncake accepts.

    Returns:
        The node's configuration, and remarks.

    Raises:
        InvalidArgumentError: A value is wrong, or the master is missing.
    """
    known = {SPELLINGS.get(name, name): value for name, value in values.items()}
    remarks: list[str] = []
    masters = [one.strip() for one in str(known.pop("master_server_addr", "")).split(",")]
    masters = [one for one in masters if one]
    if not masters:
        raise InvalidArgumentError("'master_server_address' is missing")
    node: dict[str, Any] = {"master_address": masters if len(masters) > 1 else masters[0]}
    for one in masters:
        if "://" in one:
            remarks.append(
                f"master_server_address: {one}: use the addresses of kvstore's masters, host:port"
            )
    _place(str(known.pop("local_hostname", "localhost")), node, remarks)
    lends = _memory(known.pop("global_segment_size", _DEFAULT_SEGMENT), node, remarks)
    _tiers(known, node, remarks)
    tenant = str(known.pop("tenant_id", None) or "default").strip()
    if tenant != "default":
        node["shm_write"] = ["default", tenant]
        remarks.append(
            f"tenant_id: {tenant} stays a setting of the engine; its quota is at kvstore"
        )
    for name, value in known.items():
        why = WITHOUT_EFFECT.get(name) or _DEPLOYMENT.get(name)
        remarks.append(f"{name}: {why}" if why else f"{name}: unknown, value {value!r} dropped")
    return Migration(node if lends else {}, remarks)


def _place(hostname: str, node: dict[str, Any], remarks: list[str]) -> None:
    host, colon, port = hostname.rpartition(":")
    bare_ipv6 = ":" in host and not host.startswith("[")
    if not colon or not port.isdigit() or bare_ipv6:
        host = hostname
    if host in _LOCAL:
        return
    node["host"] = host
    node["labels"] = {"host": host}
    remarks.append(
        f"local_hostname: listens on {host}; set auth_token_file unless that network is trusted"
    )


def _memory(size: Any, node: dict[str, Any], remarks: list[str]) -> bool:
    try:
        segment = parse_size(size if isinstance(size, int) else str(size))
    except ValueError as error:
        raise InvalidArgumentError(f"'global_segment_size': {error}") from None
    if segment == 0:
        remarks.append("global_segment_size: 0 is a pure client, which needs no node")
        return False
    node["segment_size"] = segment
    remarks.append(
        f"global_segment_size: {format_size(segment)} for one node that all engines of the host "
        "share and that outlives them; set it to 0 in the engines' configuration"
    )
    return True


def _tiers(known: dict[str, Any], node: dict[str, Any], remarks: list[str]) -> None:
    wanted = known.pop("enable_ssd_offload", False)
    path = str(known.pop("ssd_offload_path", "") or "")
    if not truth("enable_ssd_offload", wanted):
        return
    where = path or "a folder on NVMe"
    remarks.append(f"enable_ssd_offload: set nvme_dir ({where}) and nvme_size, both, in the node's")
