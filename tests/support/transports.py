"""By which way a test's client reaches a node: what the node and the client are told for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

import kvstore
from kvstore import ucx

SOFTWARE = {"TLS": "tcp,self", "NET_DEVICES": "lo", "LOG_LEVEL": "fatal"}
"""UCX without an RDMA device."""
# tests/rdma runs the same tests over verbs, the node and its clients on devices of their own.
AT_NODE = json.loads(os.environ.get("KVSTORE_TEST_UCX_NODE", json.dumps(SOFTWARE)))
AT_CLIENT = json.loads(os.environ.get("KVSTORE_TEST_UCX_CLIENT", json.dumps(SOFTWARE)))
TRAFFIC_VARIABLE = "KVSTORE_TEST_TRAFFIC"
"""Names a file that gets a line of JSON of each store by UCX: what it has `moved`."""

BY_UCX = pytest.param(
    "ucx",
    marks=pytest.mark.skipif(not ucx.libraries(), reason="UCX is not installed (libucx0)"),
)
REMOTE = ["tcp", BY_UCX]
"""How a client on another host reaches a node."""
EVERY = ["auto", *REMOTE]

_WAYS = ("bytes_ucx", "bytes_tcp", "put_bytes_ucx", "put_bytes_tcp")


def node_config(transport: str) -> dict[str, Any]:
    """Return what a node's config needs, so that clients can use this transport."""
    return {"transports": ["shm", "tcp", "ucx"], "ucx": AT_NODE} if transport == "ucx" else {}


def client_options(transport: str) -> dict[str, Any]:
    """Return the options of kvstore.connect for a transport."""
    more = {"ucx_settings": AT_CLIENT} if transport == "ucx" else {}
    return {"transport": transport, **more}


def moved(store: kvstore.Store) -> dict[str, int]:
    """Return the bytes that a store has moved by UCX and by TCP."""
    stats: Mapping[str, Any] = store.stats()
    return {name: stats[name] for name in _WAYS}


def report_traffic(rows: Iterable[Mapping[str, int]]) -> None:
    """Add what `moved` returned to the file that TRAFFIC_VARIABLE names, if it does."""
    if path := os.environ.get(TRAFFIC_VARIABLE):
        with open(path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
