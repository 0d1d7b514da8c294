"""Two masters with their state in a real etcd: the active one dies, hangs, stops; etcd is lost."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import kvstore
from kvstore.errors import Status
from tests.fault import report
from tests.support.cluster import Cluster
from tests.support.control import metric, readyz
from tests.support.etcd import NEEDS_ETCD, Etcd, Etcds, free_ports, wait_until_it_answers
from tests.support.payloads import proof
from tests.support.processes import Daemon, wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fault,
    NEEDS_ETCD,
    pytest.mark.timeout(3600),
]

_LEASE_S = 2
_DEPOSED = 6


class Pair:
    """Two masters, each on ports of its own, and a node; the first to start is the active one."""

    def __init__(self, cluster: Cluster, etcd: Etcd | Etcds) -> None:
        self._cluster = cluster
        self._etcd = etcd
        first = [int(cluster.master.ports[name]) for name in ("port", "grpc_port", "http_port")]
        self._ports = [first, free_ports(3)]
        self.masters = [cluster.master, self._start(1)]
        self.active = 0
        addresses = [f"127.0.0.1:{ports[0]}" for ports in self._ports]
        cluster.start_node("a", wait=False, master_address=addresses, labels={"host": "other"})
        cluster.address = ",".join(addresses)
        cluster.wait_state("a", "alive")
        self.store = cluster.connect(timeout_ms=2000)
        self.wait_put("first")
        self.wait_standby()

    def _start(self, number: int) -> Daemon:
        block, grpc_port, http_port = map(str, self._ports[number])
        arguments = ["-m", "kvstore.cli.master", "--state", self._etcd.url, "--host", "127.0.0.1"]
        arguments += ["--port", block, "--grpc-port", grpc_port, "--http-port", http_port]
        name = f"master-{number}-{time.monotonic_ns()}"
        return Daemon(name, arguments, self._cluster.folder)

    def restart(self, number: int) -> None:
        """Start a master that has ended; it stands by."""
        self.masters[number] = self._start(number)

    def ready(self, number: int) -> dict[str, Any]:
        """What /readyz of a master says."""
        return readyz(f"127.0.0.1:{self._ports[number][2]}")

    def wait_standby(self) -> None:
        def standing_by() -> bool:
            found = self.ready(1 - self.active)
            if not found.get("standby"):
                return False
            return str(found["active"].get("block", "")).endswith(f":{self._ports[self.active][0]}")

        wait_for(standing_by, f"a standby that knows the active one\n{self._cluster.logs()}", 20)

    def run(self, *arguments: str) -> Any:
        """Run the operator's tool; click's Result."""
        return self._cluster.run_cli(*arguments)

    def wait_standbys(self, count: int) -> None:
        """Wait until the active master sees so many, and says so in its metrics and its status."""
        active = self.masters[self.active]
        active.wait_started()
        seen = partial(metric, active, "kvstore_cluster_standbys")
        wait_for(lambda: seen() == count, f"{count} masters that stand by", 20)
        assert len(self._cluster.cli("status")["standbys"]) == count

    def wait_put(self, key: str) -> float:
        """Put until it is Ok; when that was."""
        wait_for(lambda: self.store.put(key, proof(key, 3000)).ok, "a put to be Ok", 20, 0.005)
        return time.monotonic()

    def close(self) -> None:
        # The node first: it would look for a master that has gone.
        for daemon in self.masters:
            daemon.kill()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    one = Etcd(tmp_path)
    yield one
    one.stop()


@pytest.fixture
def etcds(tmp_path: Path) -> Iterator[Etcds]:
    three = Etcds(tmp_path)
    yield three
    three.stop()


@pytest.fixture
def pair(tmp_path: Path, etcd: Etcd) -> Iterator[Pair]:
    with two_masters(tmp_path, etcd) as masters:
        yield masters


@contextmanager
def two_masters(tmp_path: Path, etcd: Etcd | Etcds) -> Iterator[Pair]:
    cluster = Cluster(tmp_path, ["--state", etcd.url])
    cluster.expected_errors += ["deposed", "journal_", "tick_failed"]
    masters: Pair | None = None
    try:
        masters = Pair(cluster, etcd)
        yield masters
    finally:
        if masters:
            masters.close()
        cluster.close()


def fill(store: kvstore.Store, turn: int) -> tuple[list[str], list[str]]:
    """Put objects and remove some of them; keys that must be there, and that must not."""
    keys = [f"{turn}/{n}" for n in range(60)]
    assert store.batch_put(keys, [proof(key, 3000) for key in keys]) == [Status.Ok] * len(keys)
    gone = keys[::3]
    assert [store.remove(key) for key in gone] == [Status.Ok] * len(gone)
    return [key for key in keys if key not in gone], gone


def wait_removed(store: kvstore.Store, key: str) -> None:
    wait_for(lambda: store.remove(key).ok, "a remove to be Ok", 20)


def check(store: kvstore.Store, kept: list[str], gone: list[str]) -> list[str]:
    """Wait for everything published; keys with other bytes, and removed ones that are back."""
    wait_for(lambda: all(store.batch_exists(kept)), "everything published to be found", 20, 0.05)
    values = zip(kept, store.batch_get(kept), strict=True)
    wrong = [key for key, found in values if found != proof(key, 3000)]
    back = zip(gone, store.batch_get(gone), strict=True)
    return wrong + [key for key, found in back if found is not None]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_the_active_master_ends(pair: Pair, cycles: int, how: int, code: int) -> None:
    """Killed, or stopped: then it hands over."""
    kept: list[str] = []
    gone: list[str] = []
    wrong: list[str] = []
    outages = []
    for turn in range(cycles):
        more, removed = fill(pair.store, turn)
        kept, gone = kept + more, gone + removed
        ended, began = pair.active, time.monotonic()
        pair.masters[ended].signal(how)
        wait_for(lambda: not pair.store.put(uuid4().hex, b"x").ok, "the master to end", 5)
        outages.append(pair.wait_put(f"after/{turn}") - began)
        assert pair.masters[ended].process.wait(20) == code
        pair.active = 1 - ended
        wrong += check(pair.store, kept, gone)
        pair.restart(ended)
        pair.wait_standby()
    print(f"{how!r}: outages in seconds:", *(f"{outage:.2f}" for outage in sorted(outages)))
    report.add(f"active master, {how!r}", cycles, wrong, [], max(outages))
    assert max(outages) < 10


def test_an_operator_hands_over(pair: Pair) -> None:
    """To a master that stands by, and only then."""
    kept, gone = fill(pair.store, 0)
    pair.wait_standbys(1)
    found = pair.run("handover")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    pair.masters[1].wait_started()
    assert told["active"].endswith(f":{pair.masters[1].ports['port']}")
    assert not told["rebuilding"] and told["master_epoch"] == 2
    assert pair.masters[0].process.wait(20) == 0
    pair.active = 1
    pair.wait_put("after")
    assert check(pair.store, kept, gone) == []

    refused = pair.run("handover")
    assert refused.exit_code == 3 and "no master stands by" in refused.output
    pair.restart(0)
    pair.wait_standbys(1)
    assert pair.masters[0].terminate() == 0
    pair.wait_standbys(0)


def test_a_frozen_master_is_dead_before_another_one_serves(pair: Pair) -> None:
    kept, gone = fill(pair.store, 0)
    frozen = pair.masters[0]
    frozen.freeze()
    pair.wait_put("after")
    # It is gone although nobody has woken it up, so it can have answered nothing meanwhile.
    assert frozen.process.wait(5) == -signal.SIGKILL
    pair.active = 1
    assert check(pair.store, kept, gone) == []
    pair.restart(0)
    pair.wait_standby()


def test_without_etcd_the_active_master_stops_and_one_serves_when_it_is_back(
    pair: Pair, etcd: Etcd
) -> None:
    kept, gone = fill(pair.store, 0)
    etcd.stop()
    assert pair.masters[0].process.wait(10) in (_DEPOSED, -signal.SIGKILL)
    wait_for(lambda: pair.store.put("other", b"x") is Status.Unavailable, "puts to fail", 5)
    assert pair.store.get(kept[0]) == proof(kept[0], 3000)
    assert pair.store.remove(kept[0]) is Status.Unavailable
    standby = pair.ready(1)
    assert "etcd 127.0.0.1" in standby["etcd"]
    pair.restart(0)
    etcd.start()
    pair.wait_put("after")
    assert check(pair.store, kept, gone) == []


def test_a_short_stop_of_etcd_deposes_nobody(pair: Pair, etcd: Etcd) -> None:
    """Half of the lease: removes wait, puts and reads do not."""
    kept, _ = fill(pair.store, 0)
    etcd.freeze()
    try:
        assert pair.store.get(kept[0]) == proof(kept[0], 3000)
        assert pair.store.put("meanwhile", b"x") is Status.Ok
        time.sleep(_LEASE_S / 4)
    finally:
        etcd.thaw()
    wait_removed(pair.store, kept[0])
    assert pair.masters[0].process.poll() is None
    assert pair.store.get(kept[0]) is None


def test_one_lost_member_of_three_deposes_nobody(tmp_path: Path, etcds: Etcds) -> None:
    """Each in turn, the leader among them."""
    with two_masters(tmp_path, etcds) as pair:
        for turn, member in enumerate(etcds.members):
            kept, gone = fill(pair.store, turn)
            member.stop()
            pair.wait_put(f"without {turn}")
            gone.append(kept.pop())
            wait_removed(pair.store, gone[-1])
            assert check(pair.store, kept, gone) == []
            assert pair.masters[0].process.poll() is None
            member.start()
            wait_until_it_answers(member.url)


def test_without_a_quorum_no_master_serves_until_it_is_back(tmp_path: Path, etcds: Etcds) -> None:
    with two_masters(tmp_path, etcds) as pair:
        kept, gone = fill(pair.store, 0)
        for member in etcds.members[:2]:
            member.stop()
        assert pair.masters[0].process.wait(10) in (_DEPOSED, -signal.SIGKILL)
        wait_for(lambda: pair.store.put("other", b"x") is Status.Unavailable, "puts to fail", 5)
        etcds.members[0].start()
        pair.wait_put("after")
        pair.active = 1
        assert check(pair.store, kept, gone) == []
