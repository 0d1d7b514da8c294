"""Hosts in network namespaces of their own, joined by a bridge; links that can be cut. As root."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

BURST_BYTES = 256 << 10
NOBODY = "02:00:00:00:00:01"
OUTSIDE = 253
"""Number of this process, once it has joined; `cut` takes it like a host's."""


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


class Network:
    """Hosts at 10.77.0.1 and up, joined by a bridge in the first one's namespace.

    Each has a boot id of its own, by which clients and nodes tell hosts apart.
    """

    def __init__(self, hosts: int, folder: Path) -> None:
        self.hosts = [f"kvstore-{os.getpid()}-{i}" for i in range(hosts)]
        self._boot_ids = [folder / f"boot_id{i}" for i in range(hosts)]
        for path in self._boot_ids:
            path.write_text(f"{uuid.uuid4()}\n")

    def __enter__(self) -> Network:
        hub = self.hosts[0]
        for name in self.hosts:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", hub, "link", "add", "hub", "type", "bridge")
        _run("ip", "-n", hub, "addr", "add", f"{self.address(0)}/24", "dev", "hub")
        _run("ip", "-n", hub, "link", "set", "hub", "up")
        for i, name in enumerate(self.hosts[1:], 1):
            pair = ("link", "add", f"to{i}", "type", "veth", "peer", "name", "eth", "netns", name)
            _run("ip", "-n", hub, *pair)
            _run("ip", "-n", hub, "link", "set", f"to{i}", "master", "hub", "up")
            _run("ip", "-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth")
            _run("ip", "-n", name, "link", "set", "eth", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.hosts:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def shape(self, host: int, mbit: int) -> None:
        """Limit what a host sends."""
        shape = ("rate", f"{mbit}mbit", "burst", BURST_BYTES, "latency", "50ms")
        _run("tc", "-n", self.hosts[host], "qdisc", "add", "dev", "eth", "root", "tbf", *shape)

    def sent(self, host: int) -> int:
        """Bytes that it has sent."""
        path = "/sys/class/net/eth/statistics/tx_bytes"
        return int(subprocess.check_output([*self.on(host), "cat", path]))

    def on(self, host: int) -> list[str]:
        """How a command begins that runs on a host."""
        run_here = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
        enter = ["ip", "netns", "exec", self.hosts[host], "unshare", "-m"]
        return [*enter, "sh", "-c", run_here, str(self._boot_ids[host])]

    def join(self) -> str:
        """Give this process an address of its own in the network, and return it."""
        link = f"kv{os.getpid()}"
        _run("ip", "-n", self.hosts[0], "link", "add", "out", "type", "veth", "peer", "name", link)
        _run("ip", "-n", self.hosts[0], "link", "set", link, "netns", str(os.getpid()))
        _run("ip", "-n", self.hosts[0], "link", "set", "out", "master", "hub", "up")
        _run("ip", "addr", "add", f"{self.address(OUTSIDE)}/24", "dev", link)
        _run("ip", "link", "set", link, "up")
        return self.address(OUTSIDE)

    def cut(self, one: int, other: int) -> None:
        """Lose every packet between two hosts, without a word to either."""
        for host, peer in ((one, other), (other, one)):
            how = ("lladdr", NOBODY, "nud", "permanent", "dev", self._device(host))
            _run("ip", *self._in(host), "neigh", "replace", self.address(peer), *how)

    def heal(self, one: int, other: int) -> None:
        """Join two hosts again."""
        for host, peer in ((one, other), (other, one)):
            _run(
                "ip", *self._in(host), "neigh", "del", self.address(peer), "dev", self._device(host)
            )

    def _device(self, host: int) -> str:
        if host == OUTSIDE:
            return f"kv{os.getpid()}"
        return "eth" if host else "hub"

    def _in(self, host: int) -> list[str]:
        return [] if host == OUTSIDE else ["-n", self.hosts[host]]
