"""A node that hangs, runs out of descriptors, or finds no room: the others do not notice."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import kvstore
from kvstore import Status
from tests.fault import report
from tests.fault.leaks import Footprint, leaks_of
from tests.fault.load import Load
from tests.fault.test_node_points import config
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.fault, pytest.mark.timeout(3600)]

SIZE = 8 << 10
COUNT = 60
TIMEOUT_MS = 2000
_SLACK_S = 1.0
# Below this a p99 says more about the machine's scheduler than about the store.
_NOISE_S = 0.005


def keys_on(store: kvstore.Store, keys: list[str], node_id: str) -> list[str]:
    found = {key: store.inspect(key) for key in keys}
    return [k for k, f in found.items() if f and f["replicas"][0]["node_id"] == node_id]


def p99_of_reads(store: kvstore.Store, keys: list[str], seconds: float) -> float:
    """Read keys one after the other for that long; every one must be there, and right."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for key in keys:
            start = time.monotonic()
            assert store.get(key) == proof(key, SIZE)
            took.append(time.monotonic() - start)
            time.sleep(0.0005)
    return sorted(took)[int(len(took) * 0.99)]


def test_a_node_hangs(cluster: Cluster, cycles: int) -> None:
    frozen_s = 20.0 if cycles > 1 else 8.0  # both longer than a session lives
    nodes = {name: cluster.start_node(name, log_level="debug") for name in "ab"}
    starts = {name: Footprint.of(node.pid) for name, node in nodes.items()}
    with kvstore.connect(cluster.address, transport="tcp", timeout_ms=TIMEOUT_MS) as store:
        keys = [f"k/{i}" for i in range(2 * COUNT)]
        assert store.batch_put(keys, [proof(key, SIZE) for key in keys]) == [Status.Ok] * len(keys)
        for key in [f"more/{i}" for i in range(4 * COUNT)]:
            if len(keys_on(store, keys, "a")) > 10 and len(keys_on(store, keys, "b")) > 10:
                break
            assert store.put(key, proof(key, SIZE)) is Status.Ok
            keys.append(key)
        on_a, on_b = keys_on(store, keys, "a"), keys_on(store, keys, "b")
        assert min(len(on_a), len(on_b)) > 10
        removed, kept = on_a[::2], on_a[1::2]
        assert all(store.get(key) == proof(key, SIZE) for key in on_a)  # placements are known
        baseline = p99_of_reads(store, on_b, 3.0)

        nodes["a"].freeze()
        frozen = time.monotonic()
        hung = p99_of_reads(store, on_b, frozen_s / 2)
        wrong: list[str] = []
        with kvstore.connect(cluster.address, transport="tcp", timeout_ms=TIMEOUT_MS) as other:
            for key in removed:
                start = time.monotonic()
                status = other.remove(key)
                took = time.monotonic() - start
                if took > TIMEOUT_MS / 1000 + _SLACK_S:
                    wrong.append(f"remove took {took:.1f} s")
                assert status in (Status.Partial, Status.DeadlineExceeded, Status.Unavailable), (
                    status
                )
            for key in [*kept[:3], *removed[:3]]:
                start = time.monotonic()
                value = other.get(key)
                took = time.monotonic() - start
                assert value in (None, proof(key, SIZE))
                if took > TIMEOUT_MS / 1000 + _SLACK_S:
                    wrong.append(f"get took {took:.1f} s")
        cluster.wait_state("a", "dead")
        wait_for(lambda: time.monotonic() - frozen >= frozen_s, "the time to pass", 60, 0.1)
        nodes["a"].signal(signal.SIGCONT)
        thawed = time.monotonic()
        back = None
        while back is None or time.monotonic() < back + 1:
            # By the connections that were open all the while, too.
            for key in removed:
                if store.get(key) is not None:
                    wrong.append(f"{key} was removed, and is back {time.monotonic() - thawed:.2f}")
            if back is None and store.get(kept[0]) is not None:
                back = time.monotonic()
            assert time.monotonic() < thawed + 20, "the node does not come back"
        cluster.wait_state("a", "alive")
        assert store.batch_get(kept) == [proof(key, SIZE) for key in kept]
        with kvstore.connect(cluster.address) as local:
            wrong += [f"{key} is back in memory" for key in removed if local.get(key) is not None]
    leaks = [
        f"{name}: {leak}"
        for name, node in nodes.items()
        for leak in leaks_of(node, starts[name], cluster.segment_dirs[name])
    ]
    case = f"node hung {frozen_s:.0f} s (other's p99 {baseline * 1e3:.1f} → {hung * 1e3:.1f} ms)"
    report.add(case, 1, wrong, leaks)
    assert hung <= 3 * max(baseline, _NOISE_S)


def test_a_node_hangs_under_load(cluster: Cluster, tmp_path: Path, cycles: int) -> None:
    """Long enough for its session to end: what was removed meanwhile does not come back with it."""
    for name in "ab":
        (tmp_path / name).mkdir()  # a node makes only the last component of its nvme_dir
    nodes = {name: cluster.start_node(name, **config(tmp_path / name)) for name in "ab"}
    starts = {name: Footprint.of(node.pid) for name, node in nodes.items()}
    rounds = max(1, cycles // 10)
    with Load(cluster.address, tmp_path) as load:
        load.wait_progress("before the first fault")
        for _ in range(rounds):
            nodes["a"].freeze()
            cluster.wait_state("a", "dead")
            load.wait_progress("on the other node", 30)
            nodes["a"].signal(signal.SIGCONT)
            cluster.wait_state("a", "alive")
            load.wait_progress("with both nodes", 30, reads=500)
        judged = load.stop()
    leaks = [
        f"{name}: {leak}"
        for name, node in nodes.items()
        for leak in leaks_of(node, starts[name], cluster.segment_dirs[name])
    ]
    wrong = judged.wrong + judged.late
    report.add("node hung until it is dead, under load", rounds, wrong, leaks, judged.outage_s)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refused_for_descriptors(sockets: list[socket.socket]) -> bool:
    """Whether one of them was told so. Which ones are, depends on the order of events.

    The oldest ones are closed for the newest, which may get the descriptors of those.
    """
    told = b""
    for one in select.select(sockets, [], [], 0)[0]:
        with contextlib.suppress(ConnectionResetError):
            told += one.recv(200)
    return b"out of descriptors" in told


def test_a_node_runs_out_of_descriptors(cluster: Cluster) -> None:
    node = cluster.start_node("a", log_level="debug")
    start = Footprint.of(node.pid)
    port = urlsplit(node.ports["tcp"]).port
    with (
        contextlib.ExitStack() as opened,
        kvstore.connect(cluster.address) as mapped,
        kvstore.connect(cluster.address, transport="tcp") as remote,
    ):
        for store in (mapped, remote):
            assert store.put(f"before/{id(store)}", proof("k", SIZE)) is Status.Ok
        limits = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        highest = max(int(path.name) for path in Path(f"/proc/{node.pid}/fd").iterdir())
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (highest + 8, limits[1]))
        peers = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(64)]
        for peer in peers:
            opened.enter_context(peer)
        wait_for(lambda: refused_for_descriptors(peers), "some to be refused", 5)
        before = cpu_s(node.pid)
        began = time.monotonic()
        done = 0
        while time.monotonic() < began + 2:
            for store in (mapped, remote):
                key = f"while/{done}"
                assert store.put(key, proof(key, SIZE)).ok
                assert store.get(key) == proof(key, SIZE)
            done += 1
            time.sleep(0.02)
        used = cpu_s(node.pid) - before
        assert done > 5
        opened.close()
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limits)
        with kvstore.connect(cluster.address, transport="tcp", timeout_ms=10_000) as late:
            assert late.put("after", b"x") is Status.Ok
            assert late.get("while/1") == proof("while/1", SIZE)
    leaks = leaks_of(node, start, cluster.segment_dirs["a"])
    report.add(f"node without descriptors ({used:.2f} s of processor in 2 s)", 1, [], leaks)
    assert used < 1.0, "it waits for descriptors by asking again and again"


def ends_with_a_sentence(node: Daemon, *words: str) -> None:
    assert node.process.wait(20) == 5
    text = node.log.read_text()
    last = text.splitlines()[-1]
    assert all(word in last for word in words) and "Traceback" not in text, text


def test_memory_without_room_is_named(cluster: Cluster) -> None:
    shm = os.statvfs("/dev/shm")
    size = 2 * shm.f_blocks * shm.f_frsize
    node = cluster.start_node("a", wait=False, segment_size=size)
    ends_with_a_sentence(node, "segment_size", "does not fit")
    assert not (cluster.segment_dirs["a"] / "segment").exists()
    node = cluster.start_node("a", segment_size="4mb")
    assert cluster.connect().put("k", b"v") is Status.Ok
    report.add("no room in /dev/shm", 1, [], [])
