"""Tenants of one node that do not trust each other, one of them hostile in mapped memory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvstore
from kvstore import Status
from tests.support.cluster import Cluster
from tests.support.payloads import proof
from tests.support.processes import wait_for
from tests.support.wire import SLOT_PAGE, SLOT_READY, Connection, hello_body, number

pytestmark = pytest.mark.cluster

TENANTS = ("mapped", "reader", "apart", "unmapped")
SECRETS = {tenant: f"secret-number-of-{tenant}" for tenant in TENANTS}
SIZE = 200_000
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class Neighbour(Connection):
    """A process of the host that takes every descriptor it is given, with a tenant's token."""

    segment = index = slot = -1

    def __init__(self, cluster: Cluster, tenant: str) -> None:
        super().__init__(cluster.nodes["n"].ports["unix"])
        body = hello_body(
            tenant=tenant.encode(),
            principal=f"engine-{tenant}".encode(),
            token=SECRETS[tenant].encode(),
        )
        welcome = self.handshake(body, SECRETS[tenant].encode())
        self.segment_bytes = int.from_bytes(welcome[15], "little")
        if self.fds:
            self.segment, self.index, self.slot = self.fds
            fcntl.lockf(self.slot, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SLOT_PAGE)
            slot = int.from_bytes(welcome[13], "little") - 1
            assert self.statuses(SLOT_READY, number(1, slot, 4)) in ([0], [])

    def __enter__(self) -> Neighbour:
        return self

    def sees(self, needle: bytes) -> bool:
        """Whether any byte that it can read holds this: segment, index, slots."""
        found = False
        for fd in self.fds:
            with mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ) as memory:
                found |= memory.find(needle) >= 0
        return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    lines = [f"engine-{tenant} client {tenant} {SECRETS[tenant]}" for tenant in TENANTS]
    for tenant, line in zip(TENANTS, lines, strict=True):
        (tmp_path / tenant).write_text(line)
        (tmp_path / tenant).chmod(0o600)
    lines += ["n node * secret-number-of-the-node", "admin operator * secret-number-of-an-admin"]
    for name, content in (("tokens", "\n".join(lines)), ("admin", lines[-1])):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    tokens = str(tmp_path / "tokens")
    running = Cluster(tmp_path, ["--auth-token-file", tokens], str(tmp_path / "admin"))
    try:
        running.start_node(
            "n",
            auth_token_file=tokens,
            segment_size="48mb",
            shm_write=["mapped", "apart"],
            shm_read=["reader"],
            domains={"own": ["apart"]},
        )
        yield running
    finally:
        running.close()


def store_of(cluster: Cluster, tenant: str) -> kvstore.Store:
    return cluster.connect(tenant=tenant, token_file=str(cluster.folder / tenant))


def put_all(cluster: Cluster) -> dict[str, kvstore.Store]:
    stores = {tenant: store_of(cluster, tenant) for tenant in TENANTS}
    for tenant, store in stores.items():
        assert store.put(tenant, proof(tenant, SIZE)) is Status.Ok
        assert store.get(tenant) == proof(tenant, SIZE)
    return stores


def test_no_byte_of_another_domain_is_mapped(cluster: Cluster) -> None:
    put_all(cluster)
    together = {"mapped": {"mapped", "reader"}, "reader": {"mapped", "reader"}, "apart": {"apart"}}
    for tenant in TENANTS:
        with Neighbour(cluster, tenant) as neighbour:
            seen = {other for other in TENANTS if neighbour.sees(proof(other, SIZE)[5_000:5_100])}
            names = {other for other in TENANTS if neighbour.sees(other.encode())}
        assert seen == together.get(tenant, set()), tenant
        # Namespaces and keys, too: what is in the index.
        assert names == together.get(tenant, set()), tenant


def test_a_writer_reaches_its_own_domain_alone(cluster: Cluster) -> None:
    stores = put_all(cluster)
    with Neighbour(cluster, "mapped") as hostile:
        with mmap.mmap(hostile.segment, hostile.segment_bytes) as memory:
            memory[: 8 << 20] = b"\xee" * (8 << 20)
        found = {tenant: store.get(tenant) for tenant, store in stores.items()}
        for tenant in ("mapped", "reader"):
            assert found[tenant] is None, "the checksum does not fit"
        for tenant in ("apart", "unmapped"):
            assert found[tenant] == proof(tenant, SIZE)


def test_a_reader_cannot_write_cut_or_punch(cluster: Cluster) -> None:
    stores = put_all(cluster)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    with Neighbour(cluster, "reader") as reader:
        for fd in (reader.segment, reader.index):
            with pytest.raises(PermissionError):
                mmap.mmap(fd, 4096)
            with pytest.raises(OSError) as refused:
                os.ftruncate(fd, 0)
            assert refused.value.errno in (errno.EINVAL, errno.EBADF)
            assert libc.fallocate(fd, _PUNCH_HOLE, 0, 4096) == -1
            with pytest.raises(OSError):
                os.pwrite(fd, b"x", 0)
    store = stores["reader"]
    assert [peer["path"] for peer in store.peers()] == ["shm"]
    before = store.stats()
    assert store.put("another", b"value") is Status.Ok
    assert store.get("another") == b"value"
    after = store.stats()
    assert after["put_bytes_tcp"] == before["put_bytes_tcp"] + len(b"value")
    assert after["hits_shm"] == before["hits_shm"] + 1
    with store.view("another") as view:
        assert view is not None and bytes(view) == b"value"


def test_a_tenants_own_files_are_all_it_can_spoil(cluster: Cluster) -> None:
    """Its slot file cut short: the node, and the others of its domain, do not notice."""
    stores = put_all(cluster)
    with Neighbour(cluster, "reader") as hostile:
        os.ftruncate(hostile.slot, 0)
        for number_ in range(50):
            key = f"k/{number_}"
            assert stores["mapped"].put(key, proof(key, SIZE)) is Status.Ok
            assert stores["mapped"].get(key) == proof(key, SIZE)
        log = cluster.nodes["n"].log
        said = f'client_slot_lost client="pid {os.getpid()} (tenant reader)"'
        wait_for(lambda: said in log.read_text(), f"{said} in {log.read_text()}")
        assert "segment_damaged" not in log.read_text()


def test_domains_survive_a_restart(cluster: Cluster) -> None:
    put_all(cluster)
    cluster.nodes["n"].kill()
    cluster.start_node("n", **cluster.configs["n"])
    for tenant in TENANTS:
        assert store_of(cluster, tenant).get(tenant) == proof(tenant, SIZE), tenant
    folder = cluster.segment_dirs["n"]
    assert {path.name for path in folder.iterdir()} >= {
        "segment", "index", "clients", "segment-own", "segment-private", "index-private"
    }  # fmt: skip
