"""Identity of an engine's pages, and a check for engines whose keys never match."""

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
    """Name a set of compatible pages.

    Args:
        engine: whose format it is ("sglang", "vllm", …).
        model: name or path of the model; its last part appears in the name.
        facts: everything else that affects a page's bytes or its key: weights revision, dtype,
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
    """Announce this engine to others of its model, and find those whose keys never match.

    Args:
        open_store: opens a store in the given namespace.
        model: name of the model, as all its engines call it.
        namespace: of this engine's pages.
        probe: the engine's own hash of an agreed list of tokens, which depends on the algorithm
            and the seed.

    Returns:
        A sentence for each other engine with the same model but another namespace or probe.

    Raises:
        KvstoreError: The store cannot be reached.
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
                continue  # not a record: any client of the tenant may write here
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
