"""A node's memory is damaged while the node is down: objects may be lost, never wrong.

With clients that survive the restart. One byte in each region without clients, missing files, other
formats and other owners: native/tests/store/store_attach_test.cpp and cluster/test_warm_restart.py.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kvstore
from kvstore import Status
from tests.fault import report
from tests.fault.leaks import Footprint, leaks_of
from tests.fault.test_node_points import SEED
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import Daemon

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(3600)]

SIZE = 20_000
COUNT = 80
SEGMENT = 4 << 20
HELD = ("k/3", "k/40", "k/79")
# magic, layout version, node epoch, buckets, heap, segment, bytes that clients map
_HEADER = struct.Struct("<QIIQQQQ")
_PAGE = 4096
_LEDGER_BLOCKS = 1 << 22


class Region(NamedTuple):
    file: str
    begin: int
    end: int


def regions(folder: Path) -> dict[str, Region]:
    """Where each part lies, as native/src/index/shared_layout.h says; only what is used."""
    with (folder / "index").open("rb") as file:
        _, _, _, buckets, heap, _, ledger = _HEADER.unpack(file.read(_HEADER.size))
    entries = _PAGE + buckets * 64
    recency = (buckets * 32 * 8 + _PAGE - 1) // _PAGE * _PAGE
    blocks = ledger + _PAGE + recency
    names = blocks + _LEDGER_BLOCKS * 32
    return {
        "segment": Region("segment", 0, COUNT * SIZE),
        "header": Region("index", 0, _PAGE),
        "tags": Region("index", _PAGE, entries),
        "entries": Region("index", entries, entries + buckets * 32 * 64),
        "keys": Region("index", ledger - heap, ledger - heap + COUNT * 80),
        "ledger header": Region("index", ledger, ledger + 32),
        "recency": Region("index", ledger + _PAGE, ledger + _PAGE + recency),
        "ledger blocks": Region("index", blocks, blocks + 1024),
        "namespaces": Region("index", names, names + 64),
        "clients": Region("clients", 0, 24),
    }


# How many bytes to flip, where one would rarely meet something in use.
FLIPS = {"segment": 60, "tags": 20, "entries": 150, "keys": 30, "recency": 50}
REGIONS = (
    "segment",
    "header",
    "tags",
    "entries",
    "keys",
    "ledger header",
    "recency",
    "ledger blocks",
    "namespaces",
    "clients",
)


# In a process of its own: to close the clients file here would give up this process's slot in it.
_XOR = """
import json, sys
path, changes = sys.argv[1], json.loads(sys.argv[2])
with open(path, "r+b") as file:
    for at, mask in changes:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))
"""


def flip(folder: Path, name: str, chance: random.Random) -> None:
    region = regions(folder)[name]
    changes = [
        (chance.randrange(region.begin, region.end), 1 << chance.randrange(8))
        for _ in range(FLIPS.get(name, 1))
    ]
    print(name, region, changes[:3])
    path = str(folder / region.file)
    subprocess.run([sys.executable, "-c", _XOR, path, json.dumps(changes)], check=True)


def start_again(cluster: Cluster) -> tuple[Daemon, str]:
    """Start the node; what it refuses to take over, by name, is given up."""
    how: dict[str, Any] = {"segment_size": SEGMENT, "log_level": "debug"}
    node = cluster.start_node("a", wait=False, **how)
    came = "kept"
    if not node.wait_started_or_refused():
        text = node.log.read_text()
        assert node.process.returncode > 0, text
        assert "segment_dir" in text.splitlines()[-1] and "Traceback" not in text, text
        node = cluster.start_node("a", wait=False, discard_foreign_segment=True, **how)
        came = "refused"
    node.wait_started()
    cluster.wait_state("a", "alive")
    last = node.log.read_text().rpartition("node.agent prepared")[2]
    return node, "cold" if came == "kept" and "segment_not_kept" in last else came


def read_all(cluster: Cluster, keys: list[str], removed: list[str]) -> tuple[list[str], int]:
    """Errors, and the number of objects found, as seen by clients of both transports."""
    wrong: list[str] = []
    most = 0
    for transport in ("auto", "tcp"):
        with kvstore.connect(cluster.address, transport=transport) as store:
            values = dict(zip(keys, store.batch_get(keys), strict=True))
            found = {key: value for key, value in values.items() if value is not None}
            wrong += [f"{k}: wrong bytes" for k, v in found.items() if v != proof(k, SIZE)]
            wrong += [f"{k}: removed, and back" for k in removed if k in found]
            most = max(most, len(found))
    return wrong, most


def use_it_up(cluster: Cluster, round_: int) -> list[str]:
    """Write twice what the memory holds; every byte of it must be right."""
    keys = [f"pressure/{round_}/{i}" for i in range(2 * SEGMENT // SIZE)]
    with kvstore.connect(cluster.address) as store:
        for key in keys:
            assert store.put(key, proof(key, SIZE)) is Status.Ok
        values = store.batch_get(keys)
        found = {k: v for k, v in zip(keys, values, strict=True) if v is not None}
        assert len(found) > 20
        wrong = [f"{k}: wrong bytes" for k, v in found.items() if v != proof(k, SIZE)]
        assert store.flush() is Status.Ok
    return wrong


@pytest.mark.parametrize("name", REGIONS)
def test_flipped_bytes(cluster: Cluster, name: str, cycles: int) -> None:
    chance = random.Random(f"{SEED} {name}")
    node = cluster.start_node("a", segment_size=SEGMENT, log_level="debug")
    start = Footprint.of(node.pid)
    folder = cluster.segment_dirs["a"]
    wrong: list[str] = []
    least = COUNT
    came: set[str] = set()
    keys = [f"k/{i}" for i in range(COUNT)]
    for round_ in range(cycles):
        with kvstore.connect(cluster.address) as store:
            assert store.batch_put(keys, [proof(key, SIZE) for key in keys]) == [Status.Ok] * COUNT
            removed = keys[10:15]
            assert store.batch_remove(removed) == [Status.Ok] * 5
            views = [store.view(key) for key in HELD]
            bytes_held = [held for view in views if (held := view.__enter__()) is not None]
            assert len(bytes_held) == len(HELD)
            node.kill()
            # Damage to an object that is looked at can be seen in its view: that is no reuse.
            before = [bytes(held) for held in bytes_held]
            flip(folder, name, chance)
            expected = [bytes(held) for held in bytes_held] if name == "segment" else before
            node, how = start_again(cluster)
            came.add(how)
            print("round", round_, how)
            found_wrong, found = read_all(cluster, keys, removed)
            wrong += found_wrong
            least = min(least, found)
            wrong += use_it_up(cluster, round_)
            for key, held, data in zip(HELD, bytes_held, expected, strict=True):
                if bytes(held) != data:
                    wrong.append(f"{key}: the bytes of a view have changed")
            del held, bytes_held
            for view in views:
                view.release()
    leaks = leaks_of(node, start, folder)
    ways = "/".join(sorted(came))
    report.add(f"flipped bytes, {name} ({ways}, {least} of {COUNT - 5})", cycles, wrong, leaks)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("file", ["segment", "index", "clients"])
@pytest.mark.parametrize("cut", [halve, empty], ids=lambda cut: cut.__name__)
def test_files_that_were_cut(cluster: Cluster, file: str, cut: Callable[[Path], None]) -> None:
    node = cluster.start_node("a", segment_size=SEGMENT, log_level="debug")
    start = Footprint.of(node.pid)
    folder = cluster.segment_dirs["a"]
    keys = [f"k/{i}" for i in range(COUNT)]
    with kvstore.connect(cluster.address, transport="tcp") as store:
        assert store.batch_put(keys, [proof(key, SIZE) for key in keys]) == [Status.Ok] * COUNT
        assert store.batch_remove(keys[10:15]) == [Status.Ok] * 5
    node.kill()
    cut(folder / file)
    node, how = start_again(cluster)
    wrong, found = read_all(cluster, keys, keys[10:15])
    wrong += use_it_up(cluster, 0)
    leaks = leaks_of(node, start, folder)
    report.add(f"{file} file, {cut.__name__} ({how}, {found} of {COUNT - 5})", 1, wrong, leaks)
