"""Identity of an engine's pages, and a check for engines whose keys never match."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kvstore.client.store import Store
from kvstore.clock import unix_ms

UNKNOWN_PARENT = "-"
"""No page has this key. A batch with a parent is a chain, whose tail is evicted before its head,
and whose reads are counted by its first page."""
_PEER_TTL_MS = 24 * 3600 * 1000
_PEER_PREFIX = "engine/"
_MOST_SHOWN = 255


class Engine(NamedTuple):
    """What an engine says of itself."""

    host: str
    pid: int
    namespace: str
    probe: str


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
            other = engine_of(store.get(key))
            if other is None or (other.host, other.pid) == (host, os.getpid()):
                continue
            where = f"pid {other.pid} on {other.host}"
            if other.namespace != namespace:
                strangers.append(
                    f"{where} stores pages of this model in another format "
                    f"({other.namespace!r}, here {namespace!r})"
                )
            elif other.probe != probe:
                strangers.append(
                    f"{where} hashes the same tokens to other keys: set the same hash algorithm "
                    "and PYTHONHASHSEED on all engines of a model"
                )
        name = f"{_PEER_PREFIX}{unix_ms()}-{secrets.token_hex(4)}"
        store.put(name, json.dumps(mine).encode(), ttl_ms=_PEER_TTL_MS)
    return strangers


def engine_of(stored: bytes | None) -> Engine | None:
    """Read what an engine has stored of itself.

    Returns:
        Its record; None for anything else, because any client of the tenant may write here.
    """
    try:
        found = json.loads(stored or b"")
        texts = [found[name] for name in ("host", "namespace", "probe")]
        pid = found["pid"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if type(pid) is not int or not 0 < pid < 1 << 32:
        return None
    if not all(isinstance(text, str) and _is_shown(text) for text in texts):
        return None
    host, namespace, probe = texts
    return Engine(host, pid, namespace, probe)


def _is_shown(text: str) -> bool:
    """Say whether a text of somebody else may stand in a message."""
    return len(text) <= _MOST_SHOWN and text.isprintable()
