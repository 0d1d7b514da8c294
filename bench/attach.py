"""Measures how long a restarted node takes to take over its memory and announce its objects.

`python -m bench.attach --gib 1,4,8` fills a node of each size with objects, kills it, starts it
again and prints what that took: `attach_ms` (the index read, checked and rebuilt), `ready_s` (from
the start of the process until the master knows every object and takes puts), `first_hit_s` (from
the kill until a client that lived through it reads again). Prints JSON. Needs shared memory of the
largest size and an eighth more.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.cluster import Cluster
from tests.support.control import metric
from tests.support.processes import wait_for

BATCH = 4096


def measure(gib: int, object_bytes: int) -> dict[str, Any]:
    """Fill a node to nine tenths, restart it twice, and take the second time."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-attach-"))
    cluster = Cluster(folder)
    try:
        cluster.start_node("a", segment_size=gib << 30)
        store = cluster.connect(timeout_ms=30_000)
        count = (gib << 30) * 9 // 10 // object_bytes
        page = bytes(object_bytes)
        for first in range(0, count, BATCH):
            keys = [f"k/{i}" for i in range(first, min(first + BATCH, count))]
            store.batch_put(keys, [page] * len(keys))
        result: dict[str, Any] = {}
        for _ in range(2):
            killed = time.monotonic()
            cluster.nodes["a"].kill()
            hits = ThreadPoolExecutor(1)
            first_hit = hits.submit(wait_for, lambda: store.get("k/0") is not None, "a hit", 120, 0)
            started = time.monotonic()
            node = cluster.start_node("a", wait=False, segment_size=gib << 30)
            node.wait_started(120)
            ready = time.monotonic() - started
            first_hit.result()
            hit = time.monotonic() - killed
            hits.shutdown()
            took = re.findall(r"segment_kept .*took_ms=(\d+)", node.log.read_text())
            result = {
                "gib": gib,
                "objects": metric(node, "kvstore_objects"),
                "attach_ms": int(took[-1]),
                "ready_s": round(ready, 2),
                "first_hit_s": round(hit, 2),
            }
        return result
    finally:
        cluster.close()
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", default="1,4,8")
    parser.add_argument("--object-bytes", type=int, default=4096)
    given = parser.parse_args(arguments)
    sizes = [int(size) for size in given.gib.split(",")]
    print(json.dumps([measure(size, given.object_bytes) for size in sizes], indent=2))


if __name__ == "__main__":
    main()
