"""Readable descriptions of objects, nodes and counters, from the native side's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvstore import _native
from kvstore.client.answers import PIN_NAMES, TIERS
from kvstore.errors import MissReason


def inspection(key: str, found: _native.Inspection) -> dict[str, Any]:
    """Describe an object as Store.inspect does."""
    tiers = [tier for _, tier in found["replicas"]]
    return {
        "key": key,
        "size": found["size"],
        "version": found["version"],
        "pin": PIN_NAMES.get(found["pin"]),
        "tier": TIERS.get(min(tiers, default=0)),
        "replicas": [
            {"node_id": node, "tier": TIERS.get(tier)} for node, tier in found["replicas"]
        ],
        "replicas_wanted": found["replicas_wanted"],
        "created_ms": found["create_ms"],
    }


def explanation(known: _native.Explanation) -> dict[str, Any]:
    """Describe a key as one node knows it, as Store.explain does."""
    node_id, dram, nvme, version, size, put_ms, used_ms, gone_ms, reason = known
    return {
        "node_id": node_id,
        "tiers": [tier for tier, there in zip(TIERS.values(), (dram, nvme), strict=True) if there],
        "version": version,
        "size": size,
        "put_ms": put_ms or None,
        "used_ms": used_ms or None,
        "gone_ms": gone_ms or None,
        "reason": MissReason(reason),
    }


def unexplained(node_id: str) -> dict[str, Any]:
    """Describe a key for a node that did not answer, as Store.explain does."""
    return explanation((node_id, False, False, 0, 0, 0, 0, 0, MissReason.NodeDown.value))


def counted(counts: Mapping[str, int]) -> dict[str, Any]:
    """Name a store's own counters as Store.stats does."""
    return {
        "keys_read": counts["keys_read"],
        "hits": counts["hits_shm"] + counts["hits_socket"] + counts["hits_ucx"],
        "hits_shm": counts["hits_shm"],
        "hits_tcp": counts["hits_socket"],
        "hits_ucx": counts["hits_ucx"],
        # Not all are counted by themselves: restarting is node_down.
        "misses": {
            reason.value: counts[name]
            for reason in MissReason
            if (name := f"misses_{reason.value}") in counts
        },
        "bytes_shm": counts["bytes_read_shm"],
        "bytes_tcp": counts["bytes_read_socket"],
        "bytes_ucx": counts["bytes_read_ucx"],
        "put_bytes_shm": counts["bytes_put_shm"],
        "put_bytes_tcp": counts["bytes_put_socket"],
        "put_bytes_ucx": counts["bytes_put_ucx"],
        "puts": {
            "ok": counts["puts_ok"],
            "existing": counts["puts_existing"],
            "failed": counts["puts_failed"],
        },
        "wrong_checksums": counts["wrong_checksums"],
        "retries": counts["retries"],
        "keys_sought": counts["keys_sought"],
        "keys_present": counts["keys_present"],
        "lookups": counts["lookups"],
        "master_failures": counts["master_failures"],
        "views": counts["views"],
        "leases": counts["leases"],
    }


def gpus(devices: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """Describe CUDA devices as Store.stats does, by number and why a device has no kernels."""
    return [
        {"device": device, "checksums": "host" if why else "gpu", "why": why}
        for device, why in devices
    ]
