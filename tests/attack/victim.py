"""An engine on the node's host: puts and gets without end, and reports on stdout.

    python -m tests.attack.victim MASTER_ADDRESS

A JSON line every few milliseconds, {"hits", "misses", "puts", "wrong", "attached", "failed"}: the
counts so far, and whether it maps the node's memory. Ends when its stdin does.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import select
import sys

import kvstore
from kvstore import Status
from tests.support.payloads import proof

_SIZES = (100, 4096, 65_536, 300_000)
_KEYS = 200
_TIMEOUT_MS = 2000


def main() -> None:
    """Work until stdin ends."""
    faulthandler.enable()  # before the store's own handler, as engines do
    store = kvstore.connect(sys.argv[1], timeout_ms=_TIMEOUT_MS)
    counts: collections.Counter[str] = collections.Counter()
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        for _ in range(20):
            number += 1
            key = f"key/{number % _KEYS}"
            size = _SIZES[number % len(_SIZES)]
            value = proof(key, size)
            try:
                status = store.put(key, value)
                counts["puts"] += status is Status.Ok
                counts["failed"] += status not in (Status.Ok, Status.AlreadyExists)
                # The node's own memory: what is written is read back by others, too.
                other = f"key/{number * 7 % _KEYS}"
                found = store.get(other)
            except kvstore.KvstoreError:
                counts["failed"] += 1
                continue
            counts["hits" if found is not None else "misses"] += 1
            if found is not None:
                counts["wrong"] += bytes(found) != proof(other, len(found))
        attached = any(peer["path"] == "shm" for peer in store.peers())
        line = {name: counts[name] for name in ("hits", "misses", "puts", "wrong", "failed")}
        print(json.dumps({**line, "attached": attached}), flush=True)
    store.close()


if __name__ == "__main__":
    main()
