"""Checks that move bytes: put, get and remove; bandwidth and latency to each node."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from kvstore import Store
from kvstore.clock import monotonic_ns
from kvstore.doctor.cluster import Cluster
from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.errors import KvstoreError, MissReason, Status

NAMESPACE = "kvstore-doctor"
"""Where the doctor's objects are, out of everybody's way."""

_SMALL, _LARGE = 4 << 10, 1 << 20
_TTL_MS = 300_000  # should this process be killed
_BATCH, _ROUNDS, _LATENCY_ROUNDS = 8, 8, 200
_TRIES_PER_NODE = 64
_BEST = {"shm": ("auto", "shared memory"), "ucx": ("ucx", "UCX")}
"""By path of `Store.peers`: the transport that takes it, and its name."""
_SLOW_GBPS = 0.1  # one gigabit per second, nearly


def round_trip(cluster: Cluster) -> Iterator[Finding]:
    """Put, get and remove an object, by the fastest path and by TCP."""
    if cluster.connect is None or not cluster.alive:
        return
    for transport in ("auto", "tcp"):
        try:
            with cluster.connect(transport) as store:
                yield _round_trip(store, transport)
        except KvstoreError as error:
            yield fail(
                f"put, get and remove ({transport}): {error.status.name}: {error}",
                "see the findings of master, token and nodes",
            )


def _round_trip(store: Store, transport: str) -> Finding:
    key, sent = f"doctor/{secrets.token_hex(8)}", os.urandom(_SMALL)
    begun = monotonic_ns()
    status = store.put(key, sent, ttl_ms=_TTL_MS)
    if status is not Status.Ok:
        return fail(f"a put ({transport}) answered {status.name}", _put_fix(status))
    reasons: list[MissReason] = []
    (got,) = store.batch_get([key], reasons=reasons)
    removed = store.remove(key)
    took_us = (monotonic_ns() - begun) / 1000
    if got is None:
        return fail(
            f"an object that was just put ({transport}) is a miss: {reasons[0].value}",
            "kvstore explain shows what the nodes say; see their logs",
        )
    if got != sent:
        return fail(f"a get ({transport}) returned other bytes", "report this; keep the logs")
    if removed is not Status.Ok:
        return warn(
            f"a remove ({transport}) answered {removed.name}: some node has not applied it",
            "look for a node that is dead or hangs (nodes)",
        )
    path = "shared memory" if store.stats()["hits_shm"] else "TCP"
    return ok(f"put, get and remove of 4 KiB by {path} took {took_us:,.0f} us")


def _put_fix(status: Status) -> str:
    if status is Status.NoSpace:
        return "unpin objects, or raise segment_size: nothing can be evicted"
    if status is Status.PermissionDenied:
        return "a token of role client or operator, for this tenant"
    return "see the findings of master and nodes, and the master's log"


def measure(cluster: Cluster) -> Iterator[Finding]:
    """Bandwidth (1 MiB objects) and latency (4 KiB) of gets from each node, by each path."""
    if cluster.connect is None or not cluster.alive:
        return
    prefix = f"measure/{secrets.token_hex(8)}/"
    by_node = {node.node_id: node for node in cluster.alive}
    with cluster.connect("tcp") as tcp:
        try:
            placed = {
                size: _place(tcp, prefix, size, count, [*by_node])
                for size, count in ((_SMALL, 1), (_LARGE, _BATCH))
            }
            for name, node in by_node.items():
                small, large = placed[_SMALL].get(name, []), placed[_LARGE].get(name, [])
                if not small or len(large) < _BATCH:
                    yield warn(
                        f"{name} was not measured: it took no objects",
                        "see whether it drains, is full of pinned objects, or has just started",
                    )
                    continue
                yield _measured(name, "TCP", tcp, small[0], large)
                best = node.peer.get("path") if node.peer is not None else None
                if best in _BEST:
                    transport, path = _BEST[best]
                    with cluster.connect(transport) as store:
                        yield _measured(name, path, store, small[0], large)
        finally:
            tcp.remove_prefix(prefix)


def _place(
    store: Store, prefix: str, size: int, count: int, nodes: Sequence[str]
) -> dict[str, list[str]]:
    """Put objects until every node has `count`; the master chooses where each goes.

    Returns:
        Keys by node.
    """
    found: dict[str, list[str]] = {name: [] for name in nodes}
    for number in range(_TRIES_PER_NODE * len(nodes)):
        if all(len(keys) >= count for keys in found.values()):
            break
        key = f"{prefix}{size}/{number}"
        if store.put(key, os.urandom(size), ttl_ms=_TTL_MS) is not Status.Ok:
            continue
        where = store.inspect(key)
        replicas = [one["node_id"] for one in where["replicas"]] if where else []
        if len(replicas) == 1 and replicas[0] in found and len(found[replicas[0]]) < count:
            found[replicas[0]].append(key)
        else:
            store.remove(key)
    return found


def _measured(name: str, path: str, store: Store, small: str, large: Sequence[str]) -> Finding:
    out = [memoryview(bytearray(_LARGE)) for _ in large]
    one = memoryview(bytearray(_SMALL))
    wrong = 0

    def get_small() -> None:
        nonlocal wrong
        wrong += store.get_into(small, one) != _SMALL

    def get_large() -> None:
        nonlocal wrong
        wrong += store.batch_get_into(large, out) != [_LARGE] * len(large)

    latency_us = _median_ns(get_small, _LATENCY_ROUNDS) / 1000
    gbps = len(large) * _LARGE / _median_ns(get_large, _ROUNDS)
    said = f"{name} by {path}: {gbps:.2f} GB/s, {latency_us:,.0f} us for 4 KiB"
    if wrong:
        return fail(f"{said}, and {wrong} gets missed", "see the node's log; is it evicting?")
    if gbps < _SLOW_GBPS:
        fix = "look at link speed, MTU, congestion control, and at the load of both hosts"
        return warn(f"{said}: slower than a gigabit link", fix)
    return ok(said)


def _median_ns(call: Callable[[], None], rounds: int) -> float:
    call()  # the first one connects, and maps memory
    samples = []
    for _ in range(rounds):
        begun = monotonic_ns()
        call()
        samples.append(monotonic_ns() - begun)
    return median(samples)
