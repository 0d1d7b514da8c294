"""What happens to a node's disk, while it runs and while it does not: an object less, never wrong.

The log itself, its torn tails, failing calls and losses of power are in
native/tests/nvme/.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.fault import report
from tests.fault.leaks import Footprint, leaks_of
from tests.fault.load import Load
from tests.fault.test_node_points import SEED, config
from tests.support.cluster import Cluster
from tests.support.control import metric, ready
from tests.support.mounts import small_tmpfs
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(3600)]

SIZE = 64 << 10
COUNT = 150
FLIPS = 1000


def how(folder: Path) -> dict[str, Any]:
    return {
        "segment_size": 4 << 20,
        "nvme_dir": str(folder / "nvme"),
        "nvme_size": "32mb",
        "log_level": "debug",
    }


def fill(cluster: Cluster, node: Daemon, store: kvstore.Store) -> list[str]:
    """Put objects, all of which end on the disk."""
    keys = [f"k/{i}" for i in range(COUNT)]
    for i, key in enumerate(keys):
        assert store.put(key, proof(key, SIZE)) is Status.Ok
        if i % 16 == 0:
            wait_for(
                lambda: metric(node, "kvstore_unwritten_bytes") <= 2 << 20, "NVMe to keep up", 20
            )
    assert cluster.cli("snapshot", "a")["done"]
    return keys


def segments(folder: Path) -> list[Path]:
    """The files with objects in them."""
    files = sorted((folder / "nvme").glob("segment-*"))
    return [path for path in files if path.read_bytes()[1 << 14 :].strip(b"\0")]


def flip(path: Path, chance: random.Random, count: int) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(count):
            at = chance.randrange(size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ chance.randrange(1, 256)]))


def truncate_a_segment(folder: Path, chance: random.Random) -> None:
    path = chance.choice(segments(folder))
    os.truncate(path, path.stat().st_size // 2)


def empty_a_segment(folder: Path, chance: random.Random) -> None:
    os.truncate(chance.choice(segments(folder)), 0)


def remove_a_segment(folder: Path, chance: random.Random) -> None:
    chance.choice(segments(folder)).unlink()


def flip_everywhere(folder: Path, chance: random.Random) -> None:
    files = [path for path in sorted((folder / "nvme").rglob("*")) if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    for path in chance.choices(files, sizes, k=FLIPS):
        flip(path, chance, 1)


def catalog_files(folder: Path) -> list[Path]:
    found = [path for path in (folder / "nvme").rglob("catalog*") if path.is_file()]
    found += [path for path in (folder / "nvme" / "catalog").rglob("*") if path.is_file()]
    assert found
    return sorted(set(found))


def damage_catalog(folder: Path, chance: random.Random) -> None:
    for path in catalog_files(folder):
        if path.stat().st_size:
            flip(path, chance, 300)


def fill_catalog_with_noise(folder: Path, chance: random.Random) -> None:
    for path in catalog_files(folder):
        path.write_bytes(chance.randbytes(path.stat().st_size))


def truncate_catalog(folder: Path, chance: random.Random) -> None:
    for path in catalog_files(folder):
        os.truncate(path, path.stat().st_size // 2)


def remove_catalog(folder: Path, chance: random.Random) -> None:
    catalog = folder / "nvme" / "catalog"
    shutil.rmtree(catalog) if catalog.is_dir() else catalog.unlink()


DAMAGES = (
    truncate_a_segment,
    empty_a_segment,
    remove_a_segment,
    flip_everywhere,
    damage_catalog,
    fill_catalog_with_noise,
    truncate_catalog,
    remove_catalog,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_costs_objects_only(
    cluster: Cluster,
    tmp_path: Path,
    damage: Callable[[Path, random.Random], None],
    cycles: int,
) -> None:
    cluster.expected_errors += ["nvme_damaged", "nvme_failed"]
    wrong: list[str] = []
    least = COUNT
    node = cluster.start_node("a", **how(tmp_path))
    start = Footprint.of(node.pid)
    rounds = max(1, cycles // 5)
    for round_ in range(rounds):
        store = kvstore.connect(cluster.address)
        keys = fill(cluster, node, store)
        removed = keys[:5]
        assert store.batch_remove(removed) == [Status.Ok] * len(removed)
        store.close()
        node.kill()
        shutil.rmtree(cluster.segment_dirs["a"])  # what is read comes from the disk
        seed = SEED + round_
        print(damage.__name__, "seed", seed)
        damage(tmp_path, random.Random(seed))
        node = cluster.start_node("a", wait=False, **how(tmp_path))
        if not node.wait_started_or_refused():
            # It may refuse what it cannot tell apart from another node's, by name.
            text = node.log.read_text()
            assert node.process.returncode > 0, text
            assert "nvme" in text.splitlines()[-1] and "Traceback" not in text, text
            node = cluster.start_node("a", wait=False, discard_foreign_nvme=True, **how(tmp_path))
        node.wait_started()
        cluster.wait_state("a", "alive")
        with kvstore.connect(cluster.address) as store:
            values = dict(zip(keys, store.batch_get(keys), strict=True))
            found = {key: value for key, value in values.items() if value is not None}
            wrong += [f"{k}: wrong bytes" for k, v in found.items() if v != proof(k, SIZE)]
            wrong += [f"{k}: removed and back" for k in removed if k in found]
            least = min(least, len(found))
            print(damage.__name__, len(found), "of", COUNT, "found")
            assert store.put("another", b"x") is Status.Ok
            assert store.get("another") == b"x"
            assert store.flush() is Status.Ok
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    report.add(f"NVMe: {damage.__name__} ({least} of {COUNT - 5} kept)", rounds, wrong, leaks)


def test_the_folder_goes_while_the_node_runs(cluster: Cluster, tmp_path: Path, cycles: int) -> None:
    cluster.expected_errors += ["nvme_failed"]
    node = cluster.start_node("a", **config(tmp_path))
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the fault")
        shutil.rmtree(tmp_path / "nvme")
        wait_for(lambda: metric(node, "kvstore_nvme_failed") == 1, "the NVMe tier to go off", 10)
        assert ready(node)[0] == 200
        load.wait_progress("from memory", reads=200)
        judged = load.stop()
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    # The next start makes the folder anew, and believes nothing that is not there.
    node.kill()
    node = cluster.start_node("a", **config(tmp_path))
    assert metric(node, "kvstore_nvme_failed") == 0
    wrong = judged.wrong + judged.late
    report.add("NVMe: folder removed while it runs", 1, wrong, leaks, judged.outage_s)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    with small_tmpfs(tmp_path / "disk", "16m") as folder:
        yield folder


def test_a_disk_that_is_too_small_is_named(
    cluster: Cluster, tmp_path: Path, small_disk: Path
) -> None:
    cluster.expected_errors += ["nvme_failed"]
    how = {**config(tmp_path), "nvme_dir": str(small_disk / "nvme"), "nvme_size": "64mb"}
    node = cluster.start_node("a", **how)
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("on a small disk", reads=100)
        wait_for(lambda: metric(node, "kvstore_nvme_failed") == 1, "the NVMe tier to give up", 10)
        wait_for(lambda: "nvme_size" in node.log.read_text(), "a sentence", 10)
        load.wait_progress("from memory", reads=100)
        judged = load.stop()
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    wrong = judged.wrong + judged.late
    report.add("NVMe: disk smaller than nvme_size", 1, wrong, leaks, judged.outage_s)


def test_a_disk_that_fills_up(cluster: Cluster, tmp_path: Path, small_disk: Path) -> None:
    cluster.expected_errors += ["nvme_failed"]
    how = {**config(tmp_path), "nvme_dir": str(small_disk / "nvme"), "nvme_size": "8mb"}
    node = cluster.start_node("a", **how)
    start = Footprint.of(node.pid)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the fault")
        with (small_disk / "other").open("wb", buffering=0) as other:
            try:
                while other.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        load.wait_progress("on a full disk", reads=300)
        failed = metric(node, "kvstore_nvme_failed")
        judged = load.stop()
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    # With free space the next start has the NVMe tier again, and removed objects stay removed.
    (small_disk / "other").unlink()
    node.kill()
    node = cluster.start_node("a", **how)
    assert metric(node, "kvstore_nvme_failed") == 0
    case = f"NVMe: disk full while it runs (kvstore_nvme_failed {failed:.0f})"
    report.add(case, 1, judged.wrong + judged.late, leaks, judged.outage_s)
