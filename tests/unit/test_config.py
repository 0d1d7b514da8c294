"""Configuration: strict keys, sizes, flags over file over defaults, the table of all keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore import addresses, config, config_table, environment
from kvstore.config import MasterConfig, NodeConfig
from kvstore.errors import InvalidArgumentError


def write(folder: Path, content: object) -> Path:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_defaults_are_those_of_the_documentation() -> None:
    master = config.load(MasterConfig, None, {})
    assert (master.host, master.port, master.grpc_port, master.http_port) == (
        "127.0.0.1",
        50051,
        50052,
        9080,
    )
    assert (master.heartbeat_ms, master.node_ttl_ms) == (1000, 5000)
    assert master.known_node_retention_ms == 24 * 3600 * 1000
    assert config.load(NodeConfig, None, {}).port == 0


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, {"port": 1, "http_port": 2})
    loaded = config.load(MasterConfig, path, {"port": 3, "http_port": None})
    assert (loaded.port, loaded.http_port, loaded.grpc_port) == (3, 2, 50052)


def test_every_key_of_the_node_is_taken_from_a_file(tmp_path: Path) -> None:
    values = {
        "master_address": ["a:1", "b:2"],
        "node_id": "n",
        "segment_size": "4gb",
        "segment_dir": "/dev/shm/x",
        "host": "10.0.0.1",
        "port": 7,
        "http_port": 8,
        "labels": {"host": "h", "rack": "r"},
        "transports": ["tcp"],
        "shm_write": ["default", "research"],
        "nvme_dir": ["/mnt/0", "/mnt/1"],
        "nvme_size": "2tb",
        "auth_token_file": "/etc/token",
        "log_level": "debug",
    }
    loaded = config.load(NodeConfig, write(tmp_path, values), {})
    assert loaded.addresses() == ["a:1", "b:2"]
    assert loaded.segment_size == 4 << 30
    assert loaded.directory() == "/dev/shm/x"
    assert loaded.placement_labels() == {"host": "h", "rack": "r"}
    assert loaded.transports == ("tcp",)
    assert loaded.shm_write == ("default", "research")
    assert loaded.nvme_dirs() == ["/mnt/0", "/mnt/1"]


TLS = {"cert": "c.pem", "key": "k.pem", "ca": "ca.pem"}


def test_tls_is_an_object_of_files(tmp_path: Path) -> None:
    loaded = config.load(NodeConfig, write(tmp_path, {"tls": TLS}), {})
    assert loaded.tls is not None
    assert loaded.tls.files() == ("c.pem", "k.pem", "ca.pem")
    assert (loaded.tls.client_auth, loaded.tls.required) == ("none", True)
    again = {**TLS, "client_auth": "required", "required": False}
    master = config.load(MasterConfig, write(tmp_path, {"tls": again}), {})
    assert master.tls is not None
    assert (master.tls.client_auth, master.tls.required) == ("required", False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tls": {**TLS, "ca": ""}}, '"cert", "key" and "ca"'),
        ({"tls": {"cert": "c.pem"}}, "key"),
        ({"tls": {**TLS, "crt": "c.pem"}}, "crt"),
        ({"tls": {**TLS, "client_auth": "yes"}}, "client_auth"),
        ({"tls": TLS, "transports": ["shm", "tcp", "ucx"]}, "`transports` with ucx and `tls`"),
    ],
)
def test_tls_that_cannot_be_is_refused(
    tmp_path: Path, values: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        config.load(NodeConfig, write(tmp_path, values), {})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"segmet_size": 1}, ["segmet_size", "segment_size"]),
        ({"hots": "x"}, ["hots", "host"]),
        ({"port": "x"}, ["port", "int"]),
        ({"port": 70000}, ["port", "65535"]),
        ({"port": True}, ["port"]),
        ({"segment_size": "4 apples"}, ["segment_size", "4gb"]),
        ({"segment_size": 0}, ["segment_size"]),
        ({"segment_size": -1}, ["segment_size"]),
        ({"transports": ["rdma"]}, ["transports"]),
        ({"transports": []}, ["transports"]),
        ({"log_level": "loud"}, ["log_level"]),
        ({"master_address": []}, ["master_address"]),
        ({"master_address": ""}, ["master_address"]),
        ({"node_id": "a\nb"}, ["node_id"]),
        ({"labels": {"host": 1}}, ["labels"]),
        ({"labels": {f"l{i}": "" for i in range(17)}}, ["labels"]),
        ({"labels": {f"l{i}": "" for i in range(16)}}, ["labels"]),  # with the host's, 17
        ({"nvme_dir": ["/a"]}, ["nvme_dir", "nvme_size"]),
        ({"nvme_dir": ["", ""], "nvme_size": "1gb"}, ["nvme_dir", "nvme_size"]),
        ({"nvme_dir": ["/a", "/b", "/a/"], "nvme_size": "1gb"}, ["nvme_dir", "twice"]),
        ([1], ["not a JSON object"]),
        ("{", ["not JSON"]),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, values: object, words: list[str]) -> None:
    path = write(tmp_path, values)
    with pytest.raises(InvalidArgumentError) as caught:
        config.load(NodeConfig, path, {})
    for word in [*words, str(path)]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"segment_size": "' + b"9" * 4000 + b'gb"}', "`segment_size`: not a size"),
        (b'{"segment_size": "' + b"9" * 400 + b'.5gb"}', "`segment_size`: not a size"),
        (b'{"segment_size": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"segment_size": 1e400}', "not a size: 'inf'"),
        (b'{"host": "a\\u0000b"}', "'host' has a character that cannot be printed"),
        (b'{"host": "\\ud800"}', "'host' has a character that cannot be printed"),
        (b'{"host": "\xff"}', "not JSON: 'utf-8' codec"),
        (b'{"port": 1, "port": 2}', "'port' stands there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "not JSON"),
    ],
)
def test_hostile_bytes_are_refused_with_a_sentence(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(InvalidArgumentError) as caught:
        config.load(NodeConfig, path, {})
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("kind", [MasterConfig, NodeConfig])
def test_hosts_are_addresses_or_names(kind: type[MasterConfig] | type[NodeConfig]) -> None:
    for host in ("::1", "[::1]", "::", "0.0.0.0", "node-1.example", "localhost", ""):
        assert config.load(kind, None, {"host": host}).host == host
    for host in ("10.0.0.1:50051", "[::1]:5", "a b", " ", "http://a", "::1::2", "[a]"):
        with pytest.raises(InvalidArgumentError, match="`host` must be an address"):
            config.load(kind, None, {"host": host})
    for host in ("::1", "node-1.example", "10.0.0.1", ""):
        assert config.load(kind, None, {"advertise_host": host}).advertise_host == host
    for host in ("[::1]", " ", "a b", "a:1"):
        with pytest.raises(InvalidArgumentError, match="`advertise_host` must be an address"):
            config.load(kind, None, {"advertise_host": host})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"nothing\.json: No such file"):
        config.load(NodeConfig, tmp_path / "nothing.json", {})


def test_a_ttl_below_two_heartbeats_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="node_ttl_ms"):
        config.load(MasterConfig, None, {"node_ttl_ms": 1500})


def test_two_nodes_of_one_host_have_folders_of_their_own() -> None:
    one = config.load(NodeConfig, None, {"node_id": "rack/1"})
    other = config.load(NodeConfig, None, {"node_id": "rack/2"})
    assert one.directory() != other.directory()
    assert Path(one.directory()).parent == Path("/dev/shm")


def test_the_table_has_every_key_and_its_default() -> None:
    table = config_table.table()
    for kind in (MasterConfig, NodeConfig):
        for name in kind.__struct_fields__:
            assert f"| `{name}` |" in table
    assert '| `segment_size` | `"1gb"` | restart |' in table
    assert '| `log_level` | `"info"` | yes |' in table
    assert all(line.count("|") == 5 for line in table.splitlines() if line)


@pytest.mark.parametrize("kind", [MasterConfig, NodeConfig])
def test_every_key_says_whether_it_reloads(kind: type[MasterConfig] | type[NodeConfig]) -> None:
    said = {name: config.reloads(kind, name, "something") for name in kind.__struct_fields__}
    assert said["log_level"] and not said["port"]
    assert config.reloads(kind, "auth_token_file", "/etc/token")
    assert not config.reloads(kind, "auth_token_file", "")


def test_more_than_a_megabyte_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, '{"port": 1}' + " " * (1 << 20))
    with pytest.raises(InvalidArgumentError, match="larger than 1 MiB"):
        config.load(MasterConfig, path, {})


def test_the_default_data_dir_follows_the_users_state_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert environment.state_folder("") == Path("/state/kvstore-master")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert environment.state_folder("") == Path("/home/someone/.local/state/kvstore-master")


def test_the_address_of_a_state_in_etcd() -> None:
    read = addresses.etcd_of("etcds://a:1,[::1]:2,c/kv/prod")
    assert read == (("a:1", "[::1]:2", "c:2379"), "kv/prod", True)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"state": "etcd://a:2379"}, "PREFIX"),
        ({"state": "etcd://a:2379/"}, "PREFIX"),
        ({"state": "etcd://a:2379/k//v"}, "PREFIX"),
        ({"state": "etcd:///k"}, "HOST:PORT"),
        ({"state": "etcd://a:99999/k"}, "HOST:PORT"),
        ({"state": "http://a:2379/k"}, "etcd://"),
        ({"state": "etcd://a/k", "etcd_tls": {"ca": "x"}}, "etcds://"),
        ({"etcd_tls": {"ca": "x"}}, "etcds://"),
        ({"state": "etcds://a/k", "etcd_tls": {"cert": "x"}}, "together"),
        ({"state": "etcds://a/k", "etcd_tls": {"crt": "x"}}, "etcd_tls"),
        ({"etcd_auth_file": "x"}, "needs `state`"),
        ({"lease_s": 0}, "lease_s"),
    ],
)
def test_keys_for_etcd_that_do_not_fit_are_named(values: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word):
        config.load(MasterConfig, None, values)


def test_without_the_extra_its_name_is_said() -> None:
    code = "import sys; sys.modules['aetcd'] = None; from kvstore.cli.master import main; main()"
    command = [sys.executable, "-c", code, "--state", "etcd://127.0.0.1:1/k", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "kvcache-store[etcd]" in done.stderr, done.stderr
