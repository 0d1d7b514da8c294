"""Administration: operations of a store beside reading and writing objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvstore import _native
from kvstore.client import describe, paths
from kvstore.client.answers import answer
from kvstore.errors import Status, error_for
from kvstore.limits import LIST_PAGE_KEYS


class Administration:
    """The part of a Store that lists, describes, counts and empties."""

    _client: _native.Client
    _server_stats: Callable[[], dict[str, Any]] | None

    def keys(self, prefix: str = "") -> Iterator[str]:
        """List keys, page by page, in no particular order.

        Args:
            prefix: what they start with; "" is all of this namespace.

        Yields:
            Each key that is present throughout, once; keys put or removed meanwhile may be missing.

        Raises:
            UnavailableError: The master cannot be reached.
            ClosedError: The store is closed, or this is a forked child.
        """
        cursor = b""
        while True:
            page, cursor = self._client.list_keys(prefix, cursor, LIST_PAGE_KEYS)
            yield from page
            if not cursor:
                return

    def inspect(self, key: str) -> dict[str, Any] | None:
        """Describe an object as the master knows it.

        Args:
            key: of the object.

        Returns:
            None when it is absent, else a dict: ``size``, ``version``, ``pin`` (None, "soft",
            "hard"), ``tier`` (the fastest that holds it), ``replicas`` (a list of ``node_id`` and
            ``tier``), ``replicas_wanted``, ``created_ms`` (since 1970).

        Raises:
            InvalidArgumentError: The key is wrong.
            UnavailableError: The master cannot be reached.
            ClosedError: The store is closed, or this is a forked child.
        """
        found = self._client.inspect(key)
        return None if found is None else describe.inspection(key, found)

    def explain(self, key: str) -> list[dict[str, Any]]:
        """Describe a key as each node knows it, for diagnosis.

        Args:
            key: of the object.

        Returns:
            A dict per node: ``node_id``, ``tiers`` that hold it, ``version``, ``size``, ``put_ms``,
            ``used_ms`` (approximate) and ``gone_ms`` (since 1970; None: unknown) and ``reason``,
            a MissReason when no tier holds it: NodeDown when the node did not answer, so that it
            may hold the object.

        Raises:
            InvalidArgumentError: The key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        known = [describe.explanation(known) for known in self._client.explain(key)]
        answered = {one["node_id"] for one in known}
        silent = sorted({node["node_id"] for node in self._client.nodes()} - answered)
        return known + [describe.unexplained(node_id) for node_id in silent]

    def remove_prefix(self, prefix: str) -> int:
        """Remove every object whose key starts with a prefix.

        Args:
            prefix: what the keys start with; "" is all of this namespace.

        Returns:
            Number of removed objects, including those with status Partial.

        Raises:
            UnavailableError: The master cannot be reached; some keys may have been removed.
            ClosedError: The store is closed, or this is a forked child.
        """
        removed = 0
        cursor = b""
        while True:
            page, cursor = self._client.list_keys(prefix, cursor, LIST_PAGE_KEYS)
            codes, unreached = self._client.remove(page)
            for code in codes:
                if code in (Status.Ok, Status.Partial):
                    removed += 1
                elif code != Status.NotFound:
                    raise error_for(code, f"stopped after {removed}; unreached: {unreached}")
            if not cursor:
                return removed

    def flush(self) -> Status:
        """Make every object of this namespace unreachable, in constant time.

        Returns:
            Ok when every node has applied it, else Partial or Unavailable.

        Raises:
            PermissionDeniedError: The principal may not flush.
            ClosedError: The store is closed, or this is a forked child.
        """
        return answer(self._client.flush())

    def peers(self) -> list[dict[str, Any]]:
        """Describe how this store reaches each node, and why not through its memory.

        Nodes that were not used yet are asked where they are.

        Returns:
            A dict per node: ``node_id``, ``state`` ("joining", "alive", "draining", "dead",
            "restarting"), ``host`` (its label), ``same_host`` (None: not known, or it shares no
            memory), ``near`` (how near it is by its labels: "numa", this process's NUMA node;
            "host"; "rdma_domain", where both can use UCX; "rack"; "other"; of replicas the first
            of these is read), ``path`` ("shm": mapped memory; "ucx"; "unix" or "tcp": a socket;
            None: not reachable by this store's transport), its ``endpoint``, ``why`` (a sentence),
            ``cause`` (None for "shm" and "ucx"; "permission", "not_found", "no_listener", "user",
            "tenant", "scope", "no_slot" or "other" for a node whose memory could not be mapped;
            "other_host", "rdma_domain" (another one), "no_ucx", "not_offered", "transport",
            "dead", "restarting"), ``setting`` (what to change to have it mapped) and
            ``attach_failures``.

        Raises:
            ClosedError: The store is closed, or this is a forked child.
        """
        if self._client.closed:
            raise error_for(Status.Closed, "the store is closed, or this is a forked child")
        return [paths.peer(row, self._client.transport) for row in self._client.peers()]

    def counters(self) -> dict[str, Any]:
        """Return this store's own counters since it was opened; nobody is asked for them.

        Returns:
            What `stats` returns before ``nodes``. A closed store keeps its counters.
        """
        return describe.counted(self._client.counters())

    def stats(self) -> dict[str, Any]:
        """Return the counters of this store since it was opened.

        Returns:
            ``keys_read``, ``hits``, ``hits_shm``, ``hits_tcp``, ``misses`` (by reason),
            ``bytes_shm``, ``bytes_tcp`` (read), ``put_bytes_shm`` (small puts to nodes of this host
            with them, which go by Unix socket), ``put_bytes_tcp``, ``puts`` (ok, existing, failed),
            ``wrong_checksums``, ``retries``, ``keys_sought`` (by lookups of prefixes and sizes),
            ``keys_present`` (of these), ``lookups``,
            ``master_failures``, ``views``, ``leases``, ``nodes`` (as last heard from the master,
            with ``path``, ``cause`` and ``why`` as in `peers`), ``paths`` (nodes by path),
            ``unattached`` (nodes of this host whose memory is not mapped, by cause) and ``gpus``
            (CUDA devices that calls have used: ``device``, ``checksums``, which is "gpu" or "host",
            and ``why`` it is the host); while the store is open also ``node_counters`` (of each
            reachable node, since it started) and ``evictions`` (their sum); for an embedded store
            also ``node`` and ``master`` (all of their counters).
        """
        stats = self.counters()
        counters = {} if self._client.closed else self._client.node_counters()
        rows = self._client.nodes()  # afterwards: it is known then where they are
        peers = [paths.peer(row, self._client.transport) for row in rows]
        stats["nodes"] = [
            {**row, **{name: peer[name] for name in ("path", "cause", "why")}}
            for row, peer in zip(rows, peers, strict=True)
        ]
        stats |= paths.summary(peers)
        stats["gpus"] = describe.gpus(self._client.gpu_devices())
        if not self._client.closed:
            stats["node_counters"] = counters
            stats["evictions"] = sum(node.get("evictions", 0) for node in counters.values())
            if self._server_stats is not None:
                stats |= self._server_stats()
        return stats
