"""What makes the pages of two engines compatible, and a warning where nothing else matches."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping

from kvstore.client.store import Store
from kvstore.clock import unix_ms

_PEER_TTL_MS = 24 * 3600 * 1000
_PEER_PREFIX = "engine/"


def namespace_of(engine: str, model: str, facts: Mapping[str, object]) -> str:
    """Name the set of compatible pages.

    Args:
        engine: whose format it is ("sglang", "vllm", …).
        model: name or path of the model; a readable part of the name is made of its last part.
        facts: everything else that changes a page's bytes or its key: weights revision, dtype,
            layout, page size, ranks, hash algorithm. Values are JSON's scalars and lists.

    Returns:
        "<engine>-<model>-<digest>", the same for equal arguments in every process.
    """
    text = json.dumps({"engine": engine, "model": model, **facts}, sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", model.rstrip("/").rsplit("/", 1)[-1])[:80]
    return f"{engine}-{readable}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def peers_that_share_no_key(
    open_store: Callable[[str], Store], model: str, namespace: str, probe: str
) -> list[str]:
    """Tell this engine to the others of its model, and find those whose keys never match.

    Args:
        open_store: opens a store in the given namespace.
        model: name of the model, as all its engines call it.
        namespace: where this engine keeps its pages.
        probe: the engine's own hash of an agreed list of tokens: it differs where the algorithm or
            the seed does.

    Returns:
        A sentence for each other engine with the same model and another namespace or probe.

    Raises:
        KvstoreError: The store cannot be asked.
    """
    known_in = f"engines-{hashlib.sha256(model.encode()).hexdigest()[:24]}"
    host = socket.gethostname()
    mine = {"host": host, "pid": os.getpid(), "namespace": namespace, "probe": probe}
    strangers = []
    with open_store(known_in) as store:
        for key in store.keys(_PEER_PREFIX):
            stored = store.get(key)
            try:
                other = json.loads(stored) if stored else None
                where = f"pid {int(other['pid'])} on {str(other['host'])[:255]}" if other else ""
            except (ValueError, TypeError, KeyError):
                continue  # nobody's record: any client of the tenant may write here
            if other is None or (other["host"], other["pid"]) == (host, os.getpid()):
                continue
            if other.get("namespace") != namespace:
                strangers.append(
                    f"{where} stores pages of this model in another format "
                    f"({other.get('namespace')!r}, here {namespace!r})"
                )
            elif other.get("probe") != probe:
                strangers.append(
                    f"{where} hashes the same tokens to other keys: set the same hash algorithm "
                    "and PYTHONHASHSEED on all engines of a model"
                )
        name = f"{_PEER_PREFIX}{unix_ms()}-{secrets.token_hex(4)}"
        store.put(name, json.dumps(mine).encode(), ttl_ms=_PEER_TTL_MS)
    return strangers
