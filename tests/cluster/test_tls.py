"""TLS on every port of real processes: who gets in, who does not, and certificates that change."""

from __future__ import annotations

import json
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import kvstore
from kvstore._proto import master_pb2
from kvstore._proto.master_pb2_grpc import MasterStub
from kvstore.errors import InvalidArgumentError, UnauthenticatedError, UnavailableError
from tests.support.certificates import Authority, s_client
from tests.support.cluster import Cluster
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster


def start(folder: Path, tls: dict[str, Any]) -> Cluster:
    config = folder / "master.json"
    config.write_text(json.dumps({"tls": tls}))
    return Cluster(folder, ["--config", str(config)])


def payload(key: str, size: int) -> bytes:
    return (key.encode() * (size // len(key) + 1))[:size]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("foreign"), "foreign")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Cluster]:
    """A master and two nodes that require TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVSTORE_TLS_CA", str(authority.ca))  # of the operator's tool
        cluster = start(tmp_path_factory.mktemp("secured"), authority.config("master"))
        try:
            for name in ("a", "b"):
                cluster.start_node(name, tls=authority.config(name))
            yield cluster
        finally:
            cluster.close()


def ports(cluster: Cluster) -> dict[str, int]:
    tcp = [str(node["endpoints"]["tcp"]) for node in cluster.cli("nodes")]
    return {
        "master": cluster.master.ports["port"],
        "node": int(tcp[0].rpartition(":")[2]),
        "grpc": cluster.master.ports["grpc_port"],
        "http": cluster.master.ports["http_port"],
        "node's http": cluster.nodes["a"].ports["http_port"],
    }


def test_objects_of_every_size_come_back_over_tcp(secured: Cluster, authority: Authority) -> None:
    store = secured.connect(transport="tcp", **authority.client())
    sizes = [1, 100, 4096, 16_384, 65_537, 1 << 20, 6 << 20]
    keys = [f"size/{size}" for size in sizes]
    values = [payload(key, size) for key, size in zip(keys, sizes, strict=True)]
    assert all(store.batch_put(keys, values))
    assert store.batch_get(keys) == values
    for key, value in zip(keys, values, strict=True):
        assert store.get(key) == value
    assert {peer["path"] for peer in store.peers()} == {"tcp"}
    assert store.lookup(keys, lease_ms=1000).length == len(keys)
    assert store.remove(keys[0]) == kvstore.Status.Ok


def test_memory_of_this_host_is_mapped_as_ever(secured: Cluster, authority: Authority) -> None:
    store = secured.connect(**authority.client())
    assert store.put("mapped", b"x" * 70_000)
    assert store.get("mapped") == b"x" * 70_000
    assert "shm" in {peer["path"] for peer in store.peers()}


def test_replicas_are_copied_over_tls(secured: Cluster, authority: Authority) -> None:
    store = secured.connect(transport="tcp", **authority.client())
    assert store.put("twice", payload("twice", 300_000), replicas=2)
    wait_for(lambda: len((store.inspect("twice") or {})["replicas"]) == 2, "the copy")


def test_every_command_finds_its_way(secured: Cluster) -> None:
    assert len(secured.cli("nodes")) == 2
    secured.cli("status")
    assert any(one["server"] == "a" for one in secured.cli("sessions"))
    secured.cli("top", "--once")
    findings = secured.cli("doctor")
    text = json.dumps(findings)
    assert "speaks TLS" not in text and "no TLS" not in text, text
    assert "certificates of 3 servers are valid" in text or "expires in" in text, text


@pytest.mark.parametrize("port", ["master", "node", "grpc", "http", "node's http"])
def test_tls_1_3_is_spoken_with_a_certificate_for_this_address(
    secured: Cluster, authority: Authority, port: str
) -> None:
    check = ("-CAfile", str(authority.ca), "-verify_return_error", "-verify_ip", "127.0.0.1")
    _, said = s_client(ports(secured)[port], "-tls1_3", *check)
    assert "New, TLSv1.3" in said and "Verify return code: 0 (ok)" in said, said


@pytest.mark.parametrize("port", ["master", "node", "http", "node's http"])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_1"])
def test_older_versions_are_refused(secured: Cluster, port: str, version: str) -> None:
    ok, said = s_client(ports(secured)[port], version, "-cipher", "ALL:@SECLEVEL=0")
    assert not ok and "Cipher is (NONE)" in said, said
    assert "alert protocol version" in said or "http" in port, said


def test_a_plain_client_is_refused_by_name(secured: Cluster) -> None:
    with pytest.raises(UnauthenticatedError, match="TLS is required"):
        secured.connect()
    with pytest.raises((OSError, UnavailableError)):
        urllib.request.urlopen(f"http://127.0.0.1:{ports(secured)['http']}/healthz", timeout=5)
    where = f"127.0.0.1:{ports(secured)['grpc']}"
    with grpc.insecure_channel(where) as channel, pytest.raises(grpc.RpcError):
        MasterStub(channel).Status(master_pb2.StatusRequest(), timeout=2)


def test_http_is_served_over_tls(secured: Cluster, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca))
    url = f"https://127.0.0.1:{ports(secured)['http']}/metrics"
    with urllib.request.urlopen(url, timeout=5, context=context) as reply:
        assert b"kvstore_cluster_nodes" in reply.read()


def test_a_client_checks_who_answers(
    secured: Cluster, authority: Authority, foreign: Authority
) -> None:
    with pytest.raises(UnauthenticatedError, match="certificate"):
        secured.connect(**foreign.client())
    port = secured.master.ports["port"]
    with pytest.raises(UnauthenticatedError, match="mismatch"):
        kvstore.connect(f"127.1:{port}", **authority.client())  # a name of 127.0.0.1
    kvstore.connect(f"localhost:{port}", **authority.client()).close()


def test_arguments_that_do_not_fit_are_refused(secured: Cluster, authority: Authority) -> None:
    ca = str(authority.ca)
    for options in ({"tls_cert": ca}, {"tls_ca": ca, "tls_key": ca}, {"tls_ca": "/nowhere.pem"}):
        with pytest.raises(InvalidArgumentError, match="tls"):
            kvstore.connect(secured.address, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="ucx"):
        kvstore.connect(secured.address, transport="ucx", tls_ca=ca)


def test_a_node_with_another_authority_cannot_join(
    secured: Cluster, foreign: Authority, tmp_path: Path
) -> None:
    config = tmp_path / "c.json"
    values = {
        "master_address": secured.address,
        "node_id": "c",
        "segment_size": "8mb",
        "segment_dir": str(tmp_path / "segment"),
        "tls": foreign.config("c"),
    }
    config.write_text(json.dumps(values))
    daemon = Daemon("c", ["-m", "kvstore.cli.node", "--config", str(config)], tmp_path)
    try:
        wait_for(lambda: daemon.process.poll() is not None, "it to give up", 20)
        assert "certificate" in daemon.log.read_text()
    finally:
        daemon.kill()


class Load:
    """Puts and gets by sockets until it is stopped; a new client every few objects."""

    def __init__(self, cluster: Cluster, options: dict[str, str]) -> None:
        self.done = 0
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._cluster = cluster
        self._options = options
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                options: Any = self._options
                with kvstore.connect(self._cluster.address, transport="tcp", **options) as store:
                    for _ in range(20):
                        key = f"load/{self.done}"
                        value = payload(key, 50_000)
                        if store.put(key, value) != kvstore.Status.Ok or store.get(key) != value:
                            self.problems.append(key)
                        self.done += 1
        except Exception as error:  # the test reports it
            self.problems.append(repr(error))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def serial(port: int) -> str:
    _, said = s_client(port, "-tls1_3", "-showcerts")
    begin = said.index("-----BEGIN CERTIFICATE")
    return said[begin : said.index("-----END CERTIFICATE")]


def test_without_required_both_kinds_are_served(authority: Authority, tmp_path: Path) -> None:
    cluster = start(tmp_path, authority.config("master", required=False))
    try:
        cluster.start_node("plain")
        cluster.start_node("tls", tls=authority.config("tls", required=False))
        for options in ({}, authority.client()):
            store = cluster.connect(transport="tcp", **options)
            for number in range(20):
                key = f"{bool(options)}/{number}"
                # A client with TLS reaches the node without it in no way.
                if store.put(key, payload(key, 5000)) == kvstore.Status.Ok:
                    assert store.get(key) == payload(key, 5000)
        states = {p["node_id"]: p for p in cluster.connect(**authority.client()).peers()}
        assert states.keys() == {"plain", "tls"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KVSTORE_TLS_CA", str(authority.ca))
            assert len(cluster.cli("nodes")) == 2
    finally:
        cluster.close()


def test_with_client_auth_nobody_comes_without_a_certificate(
    authority: Authority, foreign: Authority, tmp_path: Path
) -> None:
    mine = authority.client("operator")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mine.items():
            patch.setenv(f"KVSTORE_{name.upper()}", value)
        tls = authority.config("master", client_auth="required")
        cluster = start(tmp_path, tls)
        try:
            cluster.start_node("a", tls=authority.config("a", client_auth="required"))
            store = cluster.connect(transport="tcp", **mine)
            assert store.put("k", b"v")
            assert store.get("k") == b"v"
            strange = {**foreign.client("operator"), "tls_ca": str(authority.ca)}
            for options in (authority.client(), strange):
                with pytest.raises(UnauthenticatedError, match="alert"):
                    cluster.connect(**options)
            log = cluster.master.log
            wait_for(lambda: "did not return a certificate" in log.read_text(), "it in the log")
            port = cluster.master.ports["grpc_port"]
            with (
                grpc.secure_channel(
                    f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authority.ca.read_bytes())
                ) as channel,
                pytest.raises(grpc.RpcError),
            ):
                MasterStub(channel).Status(master_pb2.StatusRequest(), timeout=2)
        finally:
            cluster.close()


def test_an_expired_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    tls = authority.config("old")
    authority.sign("old", days=-1)
    cluster = start(tmp_path, tls)
    try:
        with pytest.raises(UnauthenticatedError, match="expired"):
            cluster.connect(**authority.client())
    finally:
        cluster.close()


def test_new_certificates_are_taken_under_load(secured: Cluster, authority: Authority) -> None:
    found = ports(secured)
    before = {name: serial(port) for name, port in found.items()}
    held = secured.connect(transport="tcp", **authority.client())
    assert held.put("held", b"before")
    load = Load(secured, authority.client())
    try:
        wait_for(lambda: load.done > 20, "load")
        for name in ("master", "a", "b"):
            authority.sign(name)
        for name, port in found.items():
            wait_for(lambda n=name, p=port: serial(p) != before[n], f"{name}'s new one", 20)  # type: ignore[misc]
        seen = load.done
        wait_for(lambda: load.done > seen + 40, "load on new certificates", 20)
    finally:
        load.stop()
    assert not load.problems
    assert held.get("held") == b"before", "sessions that are open go on"
    assert "tls" in next(
        line for line in secured.master.log.read_text().splitlines() if "config_reloaded" in line
    )


def test_a_wrong_certificate_is_not_taken(secured: Cluster, authority: Authority) -> None:
    cert = authority.folder / "master.pem"
    kept = cert.read_bytes()
    port = secured.master.ports["port"]
    before = serial(port)
    try:
        cert.write_text("no certificate\n")
        wait_for(lambda: "config_refused" in secured.master.log.read_text(), "the refusal")
        assert serial(port) == before
    finally:
        cert.write_bytes(kept)
