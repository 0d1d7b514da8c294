"""The state in a real etcd: who may write, what is refused, and what etcd's failures are called."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore.cli.master import main
from kvstore.errors import (
    InvalidArgumentError,
    KvstoreError,
    NoSpaceError,
    UnauthenticatedError,
    UnavailableError,
)
from kvstore.master import state_export
from kvstore.master.lmdb_state import LmdbState
from tests.support.etcd import NEEDS_ETCD, PREFIX, Etcd
from tests.support.processes import wait_for
from tests.unit.test_lmdb_state import operation, record

pytestmark = [pytest.mark.cluster, NEEDS_ETCD]


class Master:
    """A state that is held as a master does, and what it was told."""

    def __init__(self, etcd: Etcd, ttl_s: int = 60, **keys: Any) -> None:
        from kvstore.master.etcd_state import EtcdState
        from kvstore.master.leadership import campaign

        self.client = etcd.client(**keys)
        self.lost: list[str] = []
        held = campaign(self.client, {"block": "a:1"}, ttl_s, self.lost.append)
        if held is None:
            self.client.close()
            raise AssertionError("another one is active")
        self.held = held
        try:
            self.state = EtcdState(self.client, held)
        except BaseException:
            held.resign()
            self.client.close()
            raise

    def close(self) -> None:
        self.state.close()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    running = Etcd(tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def master(etcd: Etcd) -> Iterator[Master]:
    one = Master(etcd)
    try:
        yield one
    finally:
        one.close()


def delete(client: Any, key: bytes) -> None:
    from kvstore.master.etcd_client import delete_range

    found = client.get(key)
    assert client.write(key, found.revision, [delete_range(key, key + b"\0")])


def test_one_master_at_a_time(etcd: Etcd, master: Master) -> None:
    with pytest.raises(AssertionError, match="another one is active"):
        Master(etcd)
    master.state.put_nodes([record("a")])
    master.state.hand_over()
    with pytest.raises(UnavailableError, match="not the active one: it has stopped"):
        master.state.put_nodes([record("b")])
    second = Master(etcd)
    assert (second.state.epoch, second.state.nodes()) == (2, [record("a")])
    second.close()
    assert not master.lost


@pytest.mark.parametrize("how", ["deleted", "taken"])
def test_a_deposed_master_writes_nothing(etcd: Etcd, master: Master, how: str) -> None:
    delete(etcd_client := etcd.client(), f"{PREFIX}/leader".encode())
    etcd_client.close()
    second = Master(etcd) if how == "taken" else None
    with pytest.raises(UnavailableError, match="not the active one"):
        master.state.append_ops([(n, operation(n)) for n in range(1, 300)])
    assert len(master.lost) == 1
    assert master.state.ops() == []
    with pytest.raises(UnavailableError):
        master.state.delete_node("a")
    assert len(master.lost) == 1
    if second:
        second.state.put_nodes([record("b")])
        assert master.state.nodes() == [record("b")]  # it may read
        second.close()


def test_a_deleted_key_is_noticed_without_a_write(etcd: Etcd) -> None:
    master = Master(etcd, ttl_s=2)
    try:
        delete(master.client, f"{PREFIX}/leader".encode())
        wait_for(lambda: master.lost, "the master to notice")
        assert "gone" in master.lost[0]
    finally:
        master.close()


def test_a_write_without_an_answer_is_not_carried_out_late(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is still on its way when the next one is answered."""
    send = master.client.write
    late: list[tuple[bytes, int, Sequence[Any]]] = []

    def lose(fence: bytes, revision: int, operations: Sequence[Any], timeout_ms: int = 0) -> int:
        late.append((fence, revision, operations))
        raise UnavailableError("no answer")

    older, newer = record("a"), record("a")
    with monkeypatch.context() as patched:
        patched.setattr(master.client, "write", lose)
        with pytest.raises(UnavailableError, match="no answer"):
            master.state.put_nodes([older, record("b")])
    master.state.put_nodes([newer])
    assert send(*late[0]) == 0
    assert master.state.nodes() == [newer]
    assert not master.lost


def test_a_standby_waits_again_and_again(etcd: Etcd, master: Master) -> None:
    """etcd may notice first that the time is over, and calls that UNKNOWN."""
    client = etcd.client()
    found = client.get(f"{PREFIX}/leader".encode())
    assert found is not None
    for _ in range(100):
        client.wait_deleted(f"{PREFIX}/leader".encode(), found.read_at, 20)
    waiting = threading.Thread(
        target=client.wait_deleted, args=(f"{PREFIX}/leader".encode(), found.read_at, 30_000)
    )
    waiting.start()
    master.state.hand_over()
    waiting.join(10)
    assert not waiting.is_alive()
    client.close()


def test_a_state_in_etcd_is_checked_and_exported_while_it_is_used(
    etcd: Etcd, master: Master, tmp_path: Path
) -> None:
    master.state.put_nodes([record("a")])

    def command(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["--state", etcd.url, "--json", *arguments])

    found = json.loads(command("--check").stdout)
    assert found["valid"] and found["cluster_id"] == master.state.cluster_id
    assert found["records"] == {"meta": 4, "nodes": 1}
    exported = tmp_path / "state.jsonl"
    assert command("--export", str(exported)).exit_code == 0
    rows = state_export.parse(exported.read_bytes().splitlines(keepends=True), "export")
    state_export.restore(tmp_path / "data", rows)
    moved = LmdbState(tmp_path / "data")
    assert (moved.cluster_id, moved.nodes()) == (master.state.cluster_id, [record("a")])
    moved.close()
    refused = command("--import", str(exported))
    assert refused.exit_code == 2 and "etcd's own backup" in refused.stderr


def test_foreign_keys_are_refused_and_left_alone(etcd: Etcd) -> None:
    client = etcd.client()
    foreign = f"{PREFIX}/registry/pods".encode()
    assert client.create(foreign, b"x", 0)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="registry/pods' is not kvstore's"):
            Master(etcd)
    assert [key for key, _ in client.rows(client.prefix)] == [foreign]
    client.close()


def test_an_etcd_that_stands_still_is_named_and_comes_back(etcd: Etcd, master: Master) -> None:
    master.state.put_nodes([record("a")])
    etcd.freeze()
    with pytest.raises(UnavailableError, match=r"etcd 127.0.0.1:\d+ \(`state`\)"):
        master.client.write(b"x", 1, [], 300)
    etcd.stop()
    calls: list[Callable[[], object]] = [
        lambda: master.state.put_nodes([record("b")]),
        master.state.reserve,
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match=r"etcd 127.0.0.1:\d+ \(`state`\)"):
            call()
    etcd.start()
    wait_for(lambda: succeeds(master.state.reserve), "room for operations")
    master.state.put_nodes([record("b")])
    assert master.state.nodes() == [record("a"), record("b")]
    assert not master.lost


def succeeds(call: Any) -> bool:
    try:
        call()
    except KvstoreError:
        return False
    return True


def test_a_full_etcd_refuses_writes_by_name_and_is_read_on(tmp_path: Path) -> None:
    from aetcd import rpc

    etcd = Etcd(tmp_path, "--quota-backend-bytes", str(2 << 20))
    master = Master(etcd)
    try:
        master.state.put_nodes([record("a")])
        filler = 0
        with pytest.raises(NoSpaceError):
            for filler in range(100):
                master.client.create(b"filler/%d" % filler, bytes(200_000), 0)
        calls: list[Callable[[], object]] = [
            lambda: master.state.append_ops([(1, operation(1))]),
            master.state.reserve,
        ]
        for call in calls:
            with pytest.raises(NoSpaceError, match=r"is full \(--quota-backend-bytes\)"):
                call()
        assert master.state.nodes() == [record("a")]
        member = master.client._members[0]
        last = rpc.DeleteRangeRequest(key=b"filler/", range_end=b"filler0")
        revision = member.kv.DeleteRange(last, timeout=10).header.revision
        member.kv.Compact(rpc.CompactionRequest(revision=revision, physical=True), timeout=10)
        member.maintenance.Defragment(rpc.DefragmentRequest(), timeout=10)
        (raised,) = member.maintenance.Alarm(rpc.AlarmRequest(), timeout=10).alarms
        disarm = rpc.AlarmRequest(
            action=rpc.AlarmRequest.DEACTIVATE, memberID=raised.memberID, alarm=raised.alarm
        )
        member.maintenance.Alarm(disarm, timeout=10)
        wait_for(lambda: succeeds(master.state.reserve), "room for operations")
        master.state.append_ops([(1, operation(1))])
        assert master.state.ops() == [operation(1)]
        assert not master.lost
    finally:
        master.close()
        etcd.stop()


def certificate(folder: Path) -> Path:
    path = folder / "etcd.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=etcd",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    files = ["-out", str(path), "-keyout", f"{path}.key"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_tls_and_a_user(tmp_path: Path) -> None:
    from aetcd import rpc

    etcd = Etcd(tmp_path, certificate=certificate(tmp_path))
    try:
        client = etcd.client()
        (member,) = client._members
        member.auth.UserAdd(rpc.AuthUserAddRequest(name="root", password="p:w"), timeout=5)
        grant = rpc.AuthUserGrantRoleRequest(user="root", role="root")
        member.auth.RoleAdd(rpc.AuthRoleAddRequest(name="root"), timeout=5)
        member.auth.UserGrantRole(grant, timeout=5)
        member.auth.AuthEnable(rpc.AuthEnableRequest(), timeout=5)
        client.close()
        login = tmp_path / "login"
        login.write_text("root:p:w\n")
        login.chmod(0o600)
        master = Master(etcd, etcd_auth_file=str(login))
        master.state.put_nodes([record("a")])
        assert master.state.nodes() == [record("a")]
        master.client._token = "forgotten.1"  # as after etcd has let it expire
        master.state.put_nodes([record("b")])
        master.close()
        login.write_text("root:wrong\n")
        for file, words in (("", "etcd_auth_file"), (str(login), "failed")):
            with pytest.raises(UnauthenticatedError, match=words):
                Master(etcd, etcd_auth_file=file)
        with pytest.raises(UnavailableError, match=r"\(`state`\)"):
            Master(etcd, etcd_tls={})
    finally:
        etcd.stop()


def test_transactions_are_filled_from_the_end() -> None:
    from kvstore.master.etcd_client import MOST_TXN_BYTES, MOST_TXN_WRITES
    from kvstore.master.etcd_state import batches

    rows = [(b"%d" % n, bytes(10)) for n in range(2 * MOST_TXN_WRITES + 3)]
    assert [len(batch) for batch in batches(rows)] == [3, MOST_TXN_WRITES, MOST_TXN_WRITES]
    assert [row for batch in batches(rows) for row in batch] == rows
    large = [(b"k", bytes(MOST_TXN_BYTES // 2)) for _ in range(3)]
    assert [len(batch) for batch in batches(large)] == [1, 1, 1]
    assert batches([]) == [[]]
