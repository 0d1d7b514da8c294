"""A real etcd with one member or several, on ports and in a folder of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvstore.config import MasterConfig
from kvstore.errors import KvstoreError
from tests.support.processes import freeze, wait_for

PROGRAM = shutil.which("etcd")
NEEDS_ETCD = pytest.mark.skipif(PROGRAM is None, reason="no etcd (Debian: etcd-server)")
PREFIX = "test/kvstore"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Etcd:
    """The process; `stop` and `start` keep its data and its port."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        certificate: Path | None = None,
        ports: Sequence[int] = (),
        alone: bool = True,
        host: str = "127.0.0.1",
        on: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            folder: of its data and its log.
            options: override the ones that it is given.
            certificate: for TLS, with .key beside it; it signs itself.
            ports: for clients and for members; none: some that are free.
            alone: wait until it answers.
            host: address that it listens on.
            on: how its command begins (tests/support/network.py).
        """
        self._host, self._on = host, on
        self.folder = folder
        self.port, self._peer_port = ports or free_ports(2)
        self.options = options
        self._alone = alone
        self._keys: dict[str, Any] = {}
        self._scheme = "http"
        if certificate:
            files = ["--cert-file", str(certificate), "--key-file", f"{certificate}.key"]
            self.options += tuple(files)
            self._keys, self._scheme = {"etcd_tls": {"ca": str(certificate)}}, "https"
        self.url = f"etcd{'s' * bool(certificate)}://{host}:{self.port}/{PREFIX}"
        self.start()

    def start(self) -> None:
        client = f"{self._scheme}://{self._host}:{self.port}"
        peer = f"http://{self._host}:{self._peer_port}"
        arguments = ["--data-dir", str(self.folder / "etcd"), "--logger", "zap"]
        arguments += ["--listen-client-urls", client, "--advertise-client-urls", client]
        arguments += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        arguments += ["--initial-cluster", f"default={peer}", *self.options]
        assert PROGRAM
        with (self.folder / "etcd.out").open("ab") as out:
            self.process = subprocess.Popen(
                [*self._on, PROGRAM, *arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        if self._alone:
            wait_until_it_answers(self.url, self._keys)

    def client(self, **keys: Any) -> Any:
        """An EtcdClient, which its caller closes."""
        return _client(self.url, {**self._keys, **keys})

    def freeze(self) -> None:
        freeze(self.process.pid, "etcd")

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.thaw()
            self.process.kill()
        self.process.wait()


class Etcds:
    """Three members of one etcd, which elect a leader within a quarter of a second."""

    def __init__(
        self, folder: Path, hosts: Sequence[tuple[str, Sequence[str]]] = (("127.0.0.1", ()),) * 3
    ) -> None:
        """Start them.

        Args:
            folder: of their data and their logs.
            hosts: address of each, and how its command begins (tests/support/network.py).
        """
        ports = free_ports(6)
        names = [host for host, _ in hosts]
        peers = [f"m{i}=http://{names[i]}:{ports[3 + i]}" for i in range(3)]
        members = ",".join(f"{names[i]}:{ports[i]}" for i in range(3))
        self.url = f"etcd://{members}/{PREFIX}"
        self.members: list[Etcd] = []
        try:
            for i in range(3):
                (folder / f"m{i}").mkdir()
                options = ["--name", f"m{i}", "--initial-cluster", ",".join(peers)]
                options += ["--heartbeat-interval", "50", "--election-timeout", "250"]
                own = (ports[i], ports[3 + i])
                host, on = hosts[i]
                member = Etcd(folder / f"m{i}", *options, ports=own, alone=False, host=host, on=on)
                self.members.append(member)
            wait_until_it_answers(self.url)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for member in self.members:
            member.stop()


def wait_until_it_answers(url: str, keys: Mapping[str, Any] | None = None) -> None:
    """Wait until a read from the etcd at this address succeeds."""
    client = _client(url, keys or {})
    try:
        wait_for(lambda: _answers(client), "etcd to answer", 30)
    finally:
        client.close()


def _client(url: str, keys: Mapping[str, Any]) -> Any:
    from kvstore.master.etcd_client import EtcdClient

    return EtcdClient(MasterConfig(state=url, **keys))


def _answers(client: Any) -> bool:
    try:
        client.get(b"any")
    except KvstoreError:
        return False
    return True
