"""The doctor on a host with RDMA: it finds the devices, and really writes and reads memory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore.cli.operator import main
from kvstore.config import NodeConfig
from kvstore.node.labels import labels_of
from kvstore.topology import host as topology
from kvstore.topology.gids import Rank
from tests.support.processes import wait_for

PORTS = topology.read().active_ports()
IN_VM = os.environ.get("RXE_VM") == "1"

pytestmark = [
    pytest.mark.rdma,
    pytest.mark.skipif(not PORTS, reason="no active RDMA port: run it in a VM with soft-RoCE"),
]
only_in_vm = pytest.mark.skipif(not IN_VM, reason="it takes network devices down: only in a VM")


def doctor(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    ran = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert ran.exit_code in (0, 5), (ran.output, ran.exception)
    return ran.exit_code, json.loads(ran.stdout)["findings"]


def messages(findings: list[dict[str, Any]], check: str, level: str = "ok") -> str:
    chosen = [f for f in findings if f["check"] == check and f["level"] == level]
    return "\n".join(f"{f['message']} -> {f['fix']}" for f in chosen)


def test_devices_ports_and_gids_are_found_and_memory_is_written_and_read() -> None:
    exit_code, findings = doctor("--only", "rdma", "--only", "ucx", "--rdma")
    assert exit_code == 0, findings
    for port in PORTS:
        assert port.nic in messages(findings, "nics")
        assert f"{port.name} is active" in messages(findings, "ports")
        assert f"{port.name}: 65536 bytes written and read by RDMA" in messages(findings, "rdma")


@only_in_vm
def test_both_devices_of_the_vm_have_an_ipv4_gid_and_reach_each_other() -> None:
    assert [port.name for port in PORTS] == ["rxe0:1", "rxe1:1"]
    chosen = [port.gid for port in PORTS]
    assert all(gid is not None and gid.rank is Rank.ROCE_V2_IPV4 for gid in chosen)
    assert [str(gid.ipv4) for gid in chosen if gid] == ["10.77.0.1", "10.77.0.2"]
    _, findings = doctor("--only", "rdma", "--only", "ucx", "--rdma")
    assert "rxe0:1 to rxe1:1: 65536 bytes written and read" in messages(findings, "rdma")
    assert "ib" in messages(findings, "ucx")


@only_in_vm
def test_a_node_would_register_the_network_of_its_ports() -> None:
    assert labels_of(NodeConfig())["rdma_domain"] == "roce:10.77.0.0/24"


def link(*arguments: str) -> None:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(["ip", *arguments], check=True, env=environment)


@pytest.fixture
def veth1_down() -> Iterator[None]:
    link("link", "set", "veth1", "down")
    try:
        wait_for(lambda: len(topology.read().active_ports()) < 2, "the port to be down")
        yield
    finally:
        link("link", "set", "veth1", "up")
        link("address", "replace", "10.77.0.2/24", "dev", "veth1")
        wait_for(lambda: len(topology.read().active_ports()) == 2, "the port to be up")


@only_in_vm
@pytest.mark.usefixtures("veth1_down")
def test_a_port_whose_network_device_is_down_is_found() -> None:
    _, findings = doctor("--only", "rdma")
    assert "rxe1:1 is DOWN" in messages(findings, "ports", "warn")
    assert "ip link set veth1 up" in messages(findings, "ports", "warn")


@pytest.fixture
def no_address() -> Iterator[None]:
    """Only the GID that follows from the MAC address remains."""

    def rank() -> Rank | None:
        gid = topology.read().active_ports()[-1].gid
        return gid.rank if gid else None

    link("address", "flush", "dev", "veth1", "scope", "global")
    try:
        wait_for(lambda: rank() is Rank.ROCE_V2_LINK_LOCAL, "the GID of IPv4 to go")
        yield
    finally:
        link("address", "replace", "10.77.0.2/24", "dev", "veth1")
        wait_for(lambda: rank() is Rank.ROCE_V2_IPV4, "the GID of IPv4 to return")


@only_in_vm
@pytest.mark.usefixtures("no_address")
def test_a_port_without_an_address_is_found() -> None:
    exit_code, findings = doctor("--only", "rdma")
    assert exit_code == 0
    assert "rxe1:1 has only a link-local GID" in messages(findings, "gids", "warn")
    assert "ip address add ADDRESS/PREFIX dev veth1" in messages(findings, "gids", "warn")
    assert "rxe0:1: GID 1 (RoCE v2 over IPv4, 10.77.0.1)" in messages(findings, "gids")
