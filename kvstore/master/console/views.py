"""The console's answers as plain values: what the cluster is and does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvstore import __version__, clock
from kvstore.limits import is_valid_key
from kvstore.master import policy
from kvstore.master.core_api import CoreNamespace, MasterCoreApi
from kvstore.master.events import Event
from kvstore.master.history import Window, evictions, hit_ratio, misses
from kvstore.master.model import TIER_NVME, Node, NodeState
from kvstore.master.prefixes import HotPrefixes
from kvstore.master.recorded import recorded
from kvstore.master.recorder import Recorder
from kvstore.master.registry import Registry
from kvstore.master.savings import Rates, savings
from kvstore.scopes import LISTING
from kvstore.security import Principal

POINTS: Final = 180
MOST_NAMESPACES: Final = 200
_PINS = ("none", "soft", "hard")
_TIERS = ("dram", "nvme")


class Views:
    """Looks at the master's state."""

    def __init__(
        self,
        core: MasterCoreApi,
        registry: Registry,
        recorder: Recorder,
        prefixes: HotPrefixes,
        rates: Callable[[], Rates],
        cluster_id: str,
        master_epoch: int,
    ) -> None:
        """Keep what is shown.

        Args:
            core: the native master.
            registry: the nodes.
            recorder: history and events.
            prefixes: those that are read most.
            rates: what a token is worth, as configured.
            cluster_id: of the master's state.
            master_epoch: of this process.
        """
        self._core = core
        self._registry = registry
        self._recorder = recorder
        self._prefixes = prefixes
        self._rates = rates
        self._cluster_id = cluster_id
        self._master_epoch = master_epoch
        self._started_ms = clock.monotonic_ms()

    def overview(self, length_ms: int) -> dict[str, Any]:
        """Summarize the cluster and its last `length_ms`."""
        window = self._recorder.window(length_ms)
        cluster, stats = self._registry.cluster, self._core.stats()
        alive = [n for n in cluster.nodes.values() if n.session_id]
        states = dict.fromkeys((state.name.lower() for state in NodeState), 0)
        for node in cluster.nodes.values():
            states[node.state.name.lower()] += 1
        traffic = traffic_of(window)
        mean = stats["object_bytes"] / stats["objects"] if stats["objects"] else 0.0
        return {
            "software_version": __version__,
            "cluster_id": self._cluster_id,
            "master_epoch": self._master_epoch,
            "uptime_ms": clock.monotonic_ms() - self._started_ms,
            "rebuilding": cluster.rebuilding,
            "awaited_nodes": sorted(cluster.awaited),
            "nodes": states,
            "objects": stats["objects"],
            "object_bytes": stats["object_bytes"],
            "unreachable_objects": stats["unreachable_objects"],
            "replicas": stats["replicas"],
            **_fill(alive),
            "window": {"from_unix_ms": window.from_unix_ms, "length_ms": window.length_ms},
            "traffic": traffic,
            "savings": savings(
                self._rates(),
                traffic["read_bytes"],
                traffic["misses"],
                mean or _mean_put(traffic),
            ),
        }

    def history(self, length_ms: int) -> dict[str, Any]:
        """Return the last `length_ms` as columns of points."""
        found = self._recorder.series(length_ms, POINTS)
        points = range(len(found["at_unix_ms"]))
        parts = [_parts({name: int(column[at]) for name, column in found.items()}) for at in points]
        return {
            "at_unix_ms": found["at_unix_ms"],
            "length_ms": found["length_ms"],
            **{name: found[name] for name in ("used_bytes", "capacity_bytes", "objects", "nodes")},
            **{name: [part[name] for part in parts] for name in (*parts[0],)},
        }

    def nodes(self) -> list[dict[str, Any]]:
        """Describe every known node, by id."""
        self._registry.look_at_links()
        self._recorder.look()
        now_ms = clock.monotonic_ms()
        settings, nodes = self._registry.settings, self._registry.cluster.nodes
        replicas = {one["node_id"]: one["replicas"] for one in self._core.nodes()}
        rates = self._recorder.rates([*nodes])
        found: list[dict[str, Any]] = []
        for node_id, node in sorted(nodes.items()):
            draining = node.state is NodeState.DRAINING
            left = self._core.drain_left(node_id)[0] if draining else None
            found.append(
                {
                    **_node(node, rates[node_id], now_ms),
                    "weight": policy.weight(settings, node, now_ms),
                    "replicas": replicas.get(node_id, 0),
                    "drain_left_objects": left,
                }
            )
        return found

    def namespaces(self, principal: Principal) -> dict[str, Any]:
        """Describe the tenants and namespaces that a principal may list, most bytes first."""
        uses = [
            one
            for one in self._core.namespace_uses()
            if principal.may(one["tenant"], LISTING) and (one["objects"] or one["keys_looked_up"])
        ]
        uses.sort(key=lambda one: (-one["bytes"], one["tenant"], one["namespace"]))
        return {
            "tenants": self._tenants(uses),
            "namespaces": [
                {"tenant": one["tenant"], "namespace": one["namespace"], **_uses([one])}
                for one in uses[:MOST_NAMESPACES]
            ],
            "left_out": max(0, len(uses) - MOST_NAMESPACES),
        }

    def prefixes(self, principal: Principal) -> dict[str, Any]:
        """Name the chains of keys that are read most, of the tenants that a principal may list."""
        found = self._prefixes.top(principal)
        return {name: found[name] for name in ("half_life_ms", "prefixes")}

    def _tenants(self, uses: list[CoreNamespace]) -> list[dict[str, Any]]:
        of_tenant: dict[str, list[CoreNamespace]] = {}
        for one in uses:
            of_tenant.setdefault(one["tenant"], []).append(one)
        read: dict[tuple[str, str], int] = {}
        for node in self._registry.cluster.nodes.values():
            for (family, labels), count in node.activity.counters.items():
                if family in ("tenant_hits", "tenant_read_bytes"):
                    read[family, labels[0]] = read.get((family, labels[0]), 0) + count
        found: list[dict[str, Any]] = [
            {
                "tenant": tenant,
                "namespaces": len(ones),
                **_uses(ones),
                "hits": read.get(("tenant_hits", tenant), 0),
                "read_bytes": read.get(("tenant_read_bytes", tenant), 0),
            }
            for tenant, ones in of_tenant.items()
        ]
        return sorted(found, key=lambda one: (-one["bytes"], one["tenant"]))[:MOST_NAMESPACES]

    def events(self) -> list[dict[str, Any]]:
        """Return the recent events, the newest first."""
        return [_event(event) for event in self._recorder.events()]

    async def explain(self, tenant: str, namespace: str, key: str) -> dict[str, Any]:
        """Describe what the master knows of a key; None for its object: nothing."""
        await recorded(self._core, tenant, namespace, [key])
        return await asyncio.to_thread(self._described, tenant, namespace, key)

    def _described(self, tenant: str, namespace: str, key: str) -> dict[str, Any]:
        found = self._core.inspect(tenant, namespace, key) if is_valid_key(key) else None
        if found is None:
            return {"key": key, "tenant": tenant, "namespace": namespace, "object": None}
        nodes = self._registry.cluster.nodes
        now_ms = clock.monotonic_ms()
        replicas = []
        for replica in found["replicas"]:
            node = nodes.get(replica["node_id"])
            replicas.append(
                {
                    "node_id": replica["node_id"],
                    "tier": _TIERS[replica["tier"]],
                    "state": node.state.name.lower() if node else "dead",
                    "last_heartbeat_age_ms": max(0, now_ms - node.last_seen_ms) if node else None,
                }
            )
        described = {
            "size": found["size"],
            "version": str(found["version"]),  # 64 bits: more than a number of JavaScript holds
            "pin": _PINS[found["pin"]],
            "created_unix_ms": found["created_ms"],
            "ttl_left_ms": found["ttl_left_ms"] or None,
            "replicas_wanted": found["replicas_wanted"],
            "replicas": replicas,
        }
        return {"key": key, "tenant": tenant, "namespace": namespace, "object": described}


def traffic_of(window: Window) -> dict[str, Any]:
    """Summarize what happened in a window."""
    parts = _parts(window.counts)
    seconds = max(1, window.length_ms) / 1000
    return {
        **parts,
        "hit_ratio": hit_ratio(parts["hits"], parts["misses"].values()),
        "read_bytes_per_s": parts["read_bytes"] / seconds,
        "put_bytes_per_s": parts["put_bytes"] / seconds,
    }


def _parts(counts: Mapping[str, int]) -> dict[str, Any]:
    """Name counts of the history as the console does."""

    def total(*names: str) -> int:
        return sum(counts.get(name, 0) for name in names)

    return {
        "hits": total("hits_shm", "hits_remote"),
        "hits_shm": total("hits_shm"),
        "misses": misses(counts),
        "read_bytes": total("read_shm", "read_socket", "read_ucx"),
        "read_bytes_by_path": {path: total(f"read_{path}") for path in ("shm", "socket", "ucx")},
        "put_bytes": total("put_shm", "put_socket", "put_ucx"),
        "puts": {result: total(f"puts_{result}") for result in ("ok", "exists", "failed")},
        "evictions": evictions(counts),
        "evicted_bytes": total("evicted_bytes"),
        "wrong_checksums": total("wrong_checksums"),
    }


def _mean_put(traffic: Mapping[str, Any]) -> float:
    return traffic["put_bytes"] / traffic["puts"]["ok"] if traffic["puts"]["ok"] else 0.0


def _fill(nodes: list[Node]) -> dict[str, int]:
    tiers = [node.health.nvme for node in nodes if node.health.nvme is not None]
    return {
        "capacity_bytes": sum(node.capacity_bytes for node in nodes),
        "used_bytes": sum(node.used_bytes for node in nodes),
        "index_entries": sum(node.index_entries for node in nodes if node.index_limit),
        "index_limit": sum(node.index_limit for node in nodes),
        "nvme_capacity_bytes": sum(tier.capacity_bytes for tier in tiers),
        "nvme_object_bytes": sum(tier.object_bytes for tier in tiers),
    }


def _node(node: Node, rates: Mapping[str, float], now_ms: int) -> dict[str, Any]:
    rate = rates if node.session_id else dict.fromkeys(rates, 0.0)
    nvme = node.health.nvme
    if nvme is None:
        has = [segment for segment in node.segments if segment.tier == TIER_NVME]
        tier = {"state": "unknown", "capacity_bytes": has[0].capacity_bytes} if has else None
    else:
        tier = {
            "state": nvme.state,
            "capacity_bytes": nvme.capacity_bytes,
            "object_bytes": nvme.object_bytes,
            "objects": nvme.objects,
        }
    return {
        "node_id": node.node_id,
        "state": node.state.name.lower(),
        "linked": node.linked,
        "node_epoch": node.node_epoch,
        "software_version": node.health.software_version,
        "last_heartbeat_age_ms": max(0, now_ms - node.last_seen_ms),
        "labels": dict(node.labels),
        "endpoints": {"tcp": node.endpoints.tcp, "http": node.endpoints.http},
        "capacity_bytes": node.capacity_bytes,
        "used_bytes": node.used_bytes,
        "index_entries": node.index_entries,
        "index_limit": node.index_limit,
        "nvme": tier,
        "problems": _problems(node),
        "hits_per_s": rate["hits_shm"] + rate["hits_remote"],
        "read_bytes_per_s": rate["read_shm"] + rate["read_socket"] + rate["read_ucx"],
        "put_bytes_per_s": rate["put_shm"] + rate["put_socket"] + rate["put_ucx"],
        "evictions_per_s": rate["evictions"],
    }


def _problems(node: Node) -> list[str]:
    """Say what is wrong with a node, a sentence each."""
    health = node.health
    found = list(health.lacks)
    if node.session_id:
        if not node.linked:
            found.append("its link to the master is down: what it holds is a miss for others")
        if node.problem:
            found.append(f"clients are not told of it: {node.problem}")
        if health.config_refused:
            found.append(f"its configuration file is refused: {health.config_refused}")
        if health.software_version and health.software_version != __version__:
            found.append(f"it runs version {health.software_version}, the master {__version__}")
    return found


def _uses(uses: list[CoreNamespace]) -> dict[str, int]:
    return {
        "objects": sum(one["objects"] for one in uses),
        "bytes": sum(one["bytes"] for one in uses),
        "keys_looked_up": sum(one["keys_looked_up"] for one in uses),
        "keys_found": sum(one["keys_found"] for one in uses),
    }


def _event(event: Event) -> dict[str, Any]:
    return {
        "number": event.number,
        "unix_ms": event.unix_ms,
        "last_unix_ms": event.last_unix_ms,
        "kind": event.kind,
        "node_id": event.node_id,
        "text": event.text,
        "level": "warning" if event.is_warning else "info",
        "count": event.count,
    }
