"""How a store reaches each node, why not through its memory, and the warning about that."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

_LOGGER = "kvstore.client"
_STATES = ("joining", "alive", "draining", "dead", "restarting")
"""Of NodeState in native types.h."""
_ONLY_SHM, _ONLY_TCP, _PREFERS_UCX = 1, 2, 3
"""Of Transport in native peer_node.h."""

# By cause (native attach_cause.h): why, and what to change.
_CAUSES = {
    "permission": (
        "this process (uid {uid}) may not open its socket {socket}",
        "set socket_dir with socket_group on the node, or socket_mode with a token",
    ),
    "not_found": (
        "its socket {socket} does not exist here, as in a container that does not mount its folder",
        "set socket_dir on the node, and mount that folder at the same path",
    ),
    "no_listener": (
        "nobody accepts at its socket {socket} as this process sees it",
        "set socket_dir on the node, and mount that folder itself, not a copy or an older one",
    ),
    "no_network": (  # no_listener, where the socket is no file
        "its abstract socket {socket} belongs to another network namespace",
        "set socket_dir on the node, and mount that folder at the same path",
    ),
    "user": (
        "it serves its own user and root, not uid {uid}",
        "set socket_group on the node, or auth_token_file and token_file",
    ),
    "tenant": (
        "it does not share memory with this store's tenant",
        "list the tenant in shm_write or shm_read on the node",
    ),
    "scope": (
        "the scopes of this store's token do not let it read every key, as whoever maps memory can",
        "give its line of the token file verbs=read,… without keys=",
    ),
    "no_slot": (
        "as many processes as it can serve have mapped its memory",
        "connect from fewer processes",
    ),
}

_reported: dict[tuple[str, str], object] = {}


def report(node_id: str, endpoint: str, cause: str, detail: str) -> None:
    """Warn that a node of this host is reached through a socket: once per process, node and cause.

    Called by the native side, on the thread whose call found it out.

    Args:
        node_id: of the node.
        endpoint: its Unix socket.
        cause: a name of native attach_cause.h.
        detail: the native side's words.
    """
    this = object()
    if _reported.setdefault((node_id, cause), this) is not this:  # atomic
        return
    import logging  # rarely needed, and not cheap to load

    why, setting = _why(cause, endpoint, detail)
    logging.getLogger(_LOGGER).warning(
        "node %s is on this host, but its memory cannot be mapped (%s): %s. Its objects pass "
        "through a socket, which is slower.%s",
        node_id,
        cause,
        why,
        f" To change that, {setting}." if setting else "",
    )


def _why(cause: str, endpoint: str, detail: str) -> tuple[str, str | None]:
    if cause not in _CAUSES:
        return detail, None
    abstract = cause == "no_listener" and endpoint.startswith("unix:@")
    why, setting = _CAUSES["no_network" if abstract else cause]
    # The path is the node's word, and goes into logs.
    path = "".join(c if c.isprintable() else "?" for c in endpoint.removeprefix("unix://"))
    return why.format(uid=os.geteuid(), socket=path), setting


def peer(row: Mapping[str, Any], transport: int) -> dict[str, Any]:
    """Describe how a node is reached, as Store.peers does.

    Args:
        row: the node as the native client knows it.
        transport: the native client's.
    """
    path, cause, why, setting = _path(row, transport)
    endpoints = {"shm": row["unix_endpoint"], "unix": row["unix_endpoint"]}
    return {
        "node_id": row["node_id"],
        "state": _STATES[row["state"]],
        "host": row["host"],
        "same_host": row["same_host"],
        "near": row["near"],
        "path": path,
        "endpoint": endpoints.get(path, row["tcp_endpoint"]) if path else None,
        "cause": cause,
        "why": why,
        "setting": setting,
        "attach_failures": row["attach_failures"],
    }


def _path(row: Mapping[str, Any], transport: int) -> tuple[str | None, str | None, str, str | None]:
    """Path, cause, reason and setting."""
    if row["attached"]:
        return "shm", None, "its memory is mapped", None
    if _STATES[row["state"]] == "dead":
        return None, "dead", "the master considers it dead", None
    if _STATES[row["state"]] == "restarting":
        return None, "restarting", "it is being restarted", None
    path = "tcp" if row["tcp_endpoint"] else "unix" if row["unix_endpoint"] else None
    if row["ucx"] and transport != _ONLY_SHM:
        return "ucx", None, "its memory is registered with UCX", None
    elsewhere = row["same_host"] is False or not row["unix_endpoint"]
    if elsewhere and row["rdma_apart"]:
        why = f"no RDMA fabric leads to its rdma_domain {row['rdma_domain']}"
        return path, "rdma_domain", why, "if one does, give nodes and clients the same rdma_domain"
    if transport == _PREFERS_UCX or (row["same_host"] is False and row["ucx_detail"]):
        why = row["ucx_detail"] or "it was not asked for UCX yet"
        return path, "no_ucx", why, "add ucx to transports, and the tenant to shm_write"
    if transport == _ONLY_TCP:
        return path, "transport", "the store was opened with transport='tcp'", None
    if transport == _ONLY_SHM:
        path = None
    if row["same_host"] is False:
        return path, "other_host", "it is on another host", None
    if not row["unix_endpoint"]:
        return path, "not_offered", "its transports do not include shm", "add shm to transports"
    if row["cause"] == "none":
        return path, None, "its memory was not asked for yet", None
    why, setting = _why(row["cause"], row["unix_endpoint"], row["detail"])
    if row["same_host"] is None:
        why += "; whether it is on this host is not known yet"
    return path, row["cause"], why, setting


def summary(peers: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count nodes by path, and those of this host that are not mapped by cause."""
    rows = list(peers)
    paths = Counter(str(row["path"] or "none") for row in rows)
    causes = Counter(
        row["cause"]
        for row in rows
        if row["same_host"] and row["cause"] not in (None, "dead", "restarting")
    )
    return {"paths": dict(paths), "unattached": dict(causes)}
