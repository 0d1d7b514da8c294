"""Three members of etcd, two masters and two nodes on hosts of their own, whose links are cut.

Clients run beside it, and every read is judged: what was removed never comes back, and nobody reads
other bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvstore.cli.operator import main
from kvstore.cli.output import Exit
from tests.fault import report
from tests.fault.load import Judgement, Load
from tests.support.cluster import SHM
from tests.support.control import readyz
from tests.support.etcd import NEEDS_ETCD, Etcds
from tests.support.network import OUTSIDE, Network
from tests.support.processes import Daemon, wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fault,
    NEEDS_ETCD,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root, and ip"
    ),
    pytest.mark.timeout(3600),
]

_MEMBERS, _MASTERS, _NODES = range(3), (3, 4), (5, 6)
_BLOCK, _GRPC, _HTTP = 7051, 7052, 7053
_CONFIG = {"lease_s": 2, "heartbeat_ms": 300, "node_ttl_ms": 1500}
_DEPOSED = (6, -signal.SIGKILL)


class Site:
    """All processes; `active` is the number of the active master."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self.network = network = stack.enter_context(Network(7, folder))
        network.join()
        where = [(network.address(host), network.on(host)) for host in _MEMBERS]
        self._etcds = Etcds(folder, where)
        stack.callback(self._etcds.stop)
        self._config = folder / "master.json"
        self._config.write_text(json.dumps(_CONFIG))
        self.masters: list[Daemon] = []
        stack.callback(self._kill_masters)
        self.addresses = [f"{network.address(host)}:{_BLOCK}" for host in _MASTERS]
        self.active = 0
        self.masters.append(self._start_master(0))
        self.masters[0].wait_started()
        for host in _NODES:
            self._start_node(host, stack)
        wait_for(lambda: self.states() == ["alive"] * len(_NODES), "the nodes to be alive", 30)
        self.masters.append(self._start_master(1))
        self.wait_standby()

    def _start_master(self, number: int) -> Daemon:
        host = _MASTERS[number]
        arguments = ["-m", "kvstore.cli.master", "--state", self._etcds.url]
        arguments += ["--config", str(self._config), "--host", self.network.address(host)]
        for option, port in (("port", _BLOCK), ("grpc-port", _GRPC), ("http-port", _HTTP)):
            arguments += [f"--{option}", str(port)]
        name = f"master-{number}-{time.monotonic_ns()}"
        return Daemon(name, arguments, self._folder, on=self.network.on(host))

    def _kill_masters(self) -> None:
        for one in self.masters:
            one.kill()

    def run(self, *arguments: str) -> Result:
        """Run the operator's tool."""
        where = ["--master", ",".join(self.addresses), "--json"]
        return CliRunner().invoke(main, [*arguments, *where])

    def states(self) -> list[str]:
        """States of the nodes, as the active master sees them."""
        found = self.run("nodes")
        return [one["state"] for one in json.loads(found.stdout)] if not found.exit_code else []

    def _start_node(self, host: int, stack: ExitStack) -> None:
        memory = SHM / self.network.hosts[host]
        values = {
            "master_address": self.addresses,
            "node_id": f"n{host}",
            "host": self.network.address(host),
            "http_port": 0,
            "segment_size": "64mb",
            "segment_dir": str(memory),
        }
        path = self._folder / f"n{host}.json"
        path.write_text(json.dumps(values))
        arguments = ["-m", "kvstore.cli.node", "--config", str(path)]
        node = Daemon(f"n{host}", arguments, self._folder, on=self.network.on(host))
        stack.callback(shutil.rmtree, memory, ignore_errors=True)
        stack.callback(node.kill)
        node.wait_started()

    def restart(self, number: int) -> None:
        """Start a master that has ended, as a supervisor would."""
        self.masters[number] = self._start_master(number)
        self.wait_standby()

    def ready(self, number: int) -> dict[str, Any]:
        """What /readyz of a master says."""
        return readyz(f"{self.network.address(_MASTERS[number])}:{_HTTP}")

    def wait_standby(self) -> None:
        wait_for(lambda: "standby" in self.ready(1 - self.active), "a standby", 20)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("site"), stack)


def note(name: str, cycles: int, judged: Judgement) -> None:
    print(f"{name}: {judged.outcomes}")
    report.add(name, cycles, judged.wrong + judged.late, [], judged.outage_s)


def load_of(site: Site, folder: Path) -> Load:
    """Begin with an empty store: the clients of another test have used the same keys."""
    flush = ("flush", "--namespace", "", "--yes")
    wait_for(lambda: site.run(*flush).exit_code in (Exit.OK, Exit.MISS), "a flush", 20)
    return Load(",".join(site.addresses), folder)


def cut(site: Site, others: Iterable[int], heal: bool = False) -> None:
    """Cut the active master off from other hosts, or join them again."""
    for other in others:
        change = site.network.heal if heal else site.network.cut
        change(_MASTERS[site.active], other)


def test_the_active_master_is_cut_off_from_etcd(site: Site, tmp_path: Path, cycles: int) -> None:
    """It ends itself, and the other one takes over."""
    with load_of(site, tmp_path) as load:
        load.wait_progress("before the first cut")
        for _ in range(cycles):
            cut(site, _MEMBERS)
            ended = site.active
            assert site.masters[ended].process.wait(10) in _DEPOSED
            load.wait_progress("with the other master", 30)
            cut(site, _MEMBERS, heal=True)
            site.active = 1 - ended
            site.restart(ended)
        judged = load.stop()
    note("active master cut off from etcd", cycles, judged)


def test_the_active_master_is_cut_off_from_all(site: Site, tmp_path: Path, cycles: int) -> None:
    """From etcd, the nodes and the clients at once: it cannot tell anybody what it believes."""
    everybody = (*_MEMBERS, *_NODES, OUTSIDE)
    with load_of(site, tmp_path) as load:
        load.wait_progress("before the first cut")
        for _ in range(cycles):
            cut(site, everybody)
            ended = site.active
            load.wait_progress("with the other master", 30)
            assert site.masters[ended].process.wait(10) in _DEPOSED
            cut(site, everybody, heal=True)
            site.active = 1 - ended
            site.restart(ended)
        judged = load.stop()
    note("active master cut off from all", cycles, judged)


@pytest.mark.parametrize("others", [_NODES, (OUTSIDE,), _NODES[:1], _MEMBERS[:1]], ids=str)
def test_a_cut_that_deposes_nobody(
    site: Site, tmp_path: Path, cycles: int, others: tuple[int, ...]
) -> None:
    """From nodes for longer than they may be silent; from clients; from one member of etcd."""
    with load_of(site, tmp_path) as load:
        load.wait_progress("before the first cut")
        for _ in range(cycles):
            cut(site, others)
            time.sleep(2 * _CONFIG["node_ttl_ms"] / 1000)
            cut(site, others, heal=True)
            load.wait_progress("after the cut", 30)
        judged = load.stop()
    assert all(master.process.poll() is None for master in site.masters)
    site.wait_standby()
    names = {_NODES: "all nodes", (OUTSIDE,): "clients", _NODES[:1]: "a node"}
    note(f"active master cut off from {names.get(others, 'a member')}", cycles, judged)
