"""Discovery: the file of RBG, headless Services, and what of them a configuration takes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore import config
from kvstore.config import MasterConfig, NodeConfig
from kvstore.discovery import group, names
from kvstore.discovery.source import Discovery, mode
from kvstore.errors import InvalidArgumentError
from kvstore.reload import Reloader

FILE = """\
group:
  name: pd
  roles:
  - master
  - store
  size: 2
roles:
  master:
    instances:
    - address: pd-master-0.s-pd-master
      ports:
        block: 50071
        http: 9080
    size: 1
  store:
    instances:
    - address: pd-store-0.s-pd-store
    - address: pd-store-1.s-pd-store
    size: 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(autouse=True)
def no_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("RBG_")]:
        monkeypatch.delenv(name)
    yield


def node(**values: Any) -> NodeConfig:
    return config.load(NodeConfig, None, values)


def test_a_node_takes_masters_role_and_labels(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBG_GROUP_NAME", "pd")
    monkeypatch.setenv("RBG_ROLE_NAME", "store")
    monkeypatch.setenv("RBG_ROLE_INDEX", "1")
    discovery = Discovery()
    made = discovery.complete(node(discovery_file=str(file), labels={"role": "mine", "rack": "7"}))
    assert made.addresses() == ["pd-master-0.s-pd-master:50071"]
    assert made.labels == {"group": "pd", "role": "mine", "index": "1", "rack": "7"}
    masters = ["pd-master-0.s-pd-master:50071"]
    about = {"group": "pd", "role": "store", "index": "1"}
    assert discovery.found == {"by": "rbg", **about, "masters": masters}


def test_labels_that_do_not_fit_are_left_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBG_GROUP_NAME", "pd")
    for count, added in ((14, {"group": "pd"}), (15, {})):
        labels = {f"label-{i}": "x" for i in range(count)}
        made = Discovery().complete(node(discovery_file=str(file), labels=labels))
        assert made.labels == {**labels, **added}


def test_without_service_ports_the_default_port_is_taken(file: Path) -> None:
    made = Discovery().complete(node(discovery_file=str(file), discovery_role="store"))
    assert made.addresses() == [f"pd-store-{i}.s-pd-store:50051" for i in (0, 1)]


def test_what_is_configured_wins_and_needs_no_file(tmp_path: Path) -> None:
    broken = tmp_path / "config.yaml"
    broken.write_text("[")
    given = node(discovery_file=str(broken), master_address="m:1", advertise_host="10.0.0.9")
    discovery = Discovery()
    assert discovery.complete(given) == given
    assert discovery.found == {"by": "rbg"}


def test_auto_is_rbg_where_its_file_is_and_static_elsewhere(file: Path, tmp_path: Path) -> None:
    assert mode(node(discovery_file=str(file))) == "rbg"
    nowhere = node(discovery_file=str(tmp_path / "nowhere"))
    assert mode(nowhere) == "static"
    discovery = Discovery()
    assert discovery.complete(nowhere) is nowhere and discovery.found == {}
    assert mode(node(discovery_file=str(file), discovery="static")) == "static"


def test_a_master_announces_its_name_in_dns(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load(MasterConfig, None, {"discovery_file": str(file), "host": "::"})
    monkeypatch.setattr(names, "service_domain", lambda: "sglang.svc.cluster.local")
    for key, value in (("GROUP", "pd"), ("ROLE", "master")):
        monkeypatch.setenv(f"RBG_{key}_NAME", value)
    monkeypatch.setenv("RBG_ROLE_INDEX", "0")
    made = Discovery().complete(settings)
    assert made.advertise_host == "pd-master-0.s-pd-master.sglang.svc.cluster.local"
    monkeypatch.setattr(names, "service_domain", lambda: "")
    assert Discovery().complete(settings).advertise_host == "pd-master-0.s-pd-master"


def test_a_node_announces_its_address(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "own_address", lambda: "fd00::7")
    assert Discovery().complete(node(discovery_file=str(file))).advertise_host == "fd00::7"


def test_a_headless_service_is_resolved_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms, found = [0], [["10.0.0.2", "fd00::1"]]
    monkeypatch.setattr("kvstore.clock.monotonic_ms", lambda: now_ms[0])
    monkeypatch.setattr(names, "resolve", lambda name, port: found[0])
    discovery = Discovery()
    given = node(discovery="dns", discovery_name="masters.ns.svc:50051", advertise_host="a")
    assert discovery.complete(given).addresses() == ["10.0.0.2:50051", "[fd00::1]:50051"]
    before = discovery.fingerprint()
    found[0] = ["10.0.0.3"]
    assert discovery.fingerprint() == before, "resolved every five seconds"
    now_ms[0] += 5000
    assert discovery.fingerprint() != before
    found[0] = []
    now_ms[0] += 5000
    assert discovery.complete(given).addresses() == ["10.0.0.3:50051"], "the last known one"


def test_a_name_without_addresses_is_tried_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "resolve", lambda name, port: [])
    given = node(discovery="dns", discovery_name="masters.ns.svc:50051", advertise_host="a")
    assert Discovery().complete(given).addresses() == ["masters.ns.svc:50051"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"discovery": "dns"}, "`discovery` dns needs `discovery_name`"),
        ({"discovery": "etcd"}, "discovery"),
        ({"discovery": "rbg", "discovery_file": ""}, "`discovery` rbg needs `discovery_file`"),
        ({"discovery_name": "masters"}, "`discovery_name` must be HOST:PORT"),
        ({"discovery_name": "masters:0"}, "`discovery_name` must be HOST:PORT"),
        ({"discovery_name": "::1:50051"}, "`discovery_name` must be HOST:PORT"),
        ({"discovery_name": "a b:1"}, "`discovery_name` must be HOST:PORT"),
        ({"discovery_name": "masters:70000000000000"}, "`discovery_name` must be HOST:PORT"),
    ],
)
def test_wrong_keys_are_refused(values: dict[str, str], said: str) -> None:
    for kind in (NodeConfig, MasterConfig):
        with pytest.raises(InvalidArgumentError, match="discovery") as caught:
            config.load(kind, None, values)
        assert said in str(caught.value)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "no YAML": ("a: [", "not YAML: while parsing"),
    "binary": (b"\x00\x01\xff", "not YAML"),
    "no UTF-8": (b"a: \xff\xfe", "not YAML"),
    "empty": ("", "Expected `object`, got `null`"),
    "a list": ("- 1", "Expected `object`, got `array`"),
    "no roles": ("group: {name: a}", "missing required field `roles`"),
    "a role of the wrong type": ("group: {name: a}\nroles: {master: 1}", "$.roles[...]"),
    "size as text": (FILE.replace("size: 1", "size: one"), "Expected `int`, got `str`"),
    "port as a word": (FILE.replace("block: 50071", "block: http"), "Expected `int`, got `str`"),
    "port out of range": (FILE.replace("50071", "50071000"), "a port must be 1 to 65535"),
    "address with blanks": (FILE.replace("pd-master-0.", "pd master."), "is no host"),
    "no such role": (
        FILE.replace("  master:\n", "  other:\n"),
        "no role 'master'; roles: other, sto",
    ),
    "no instance": (
        "group: {name: a}\nroles: {master: {size: 0, instances: []}}",
        "no instance of role 'master'",
    ),
    "deep": ("[" * 900, "nested too deeply"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(300)), "nested too deeply"),
    "laughs": ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "has an alias"),
    "a tag": ("!!python/object/apply:os.system [echo]", "Expected `object`, got `array`"),
    "huge": ("a: " + "x" * (1 << 20), "larger than 1 MiB"),
    "many instances": (
        "group: {name: a}\nroles: {master: {size: 1, instances: ["
        + ", ".join(["{address: a}"] * 4097)
        + "]}}",
        "a role of more than 4096 instances",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence(file: Path, name: str) -> None:
    content, said = HOSTILE[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidArgumentError) as caught:
        Discovery().complete(node(discovery_file=str(file)))
    sentence = str(caught.value)
    assert sentence.startswith(f"discovery file {file}: ") and said in sentence, sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("kind", ["loop", "folder", "nowhere", "FIFO"])
def test_what_is_no_file_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    said = {
        "loop": "Too many levels of symbolic links",
        "folder": "Is a directory",
        "nowhere": "No such file or directory",
        "FIFO": "nothing to read within 5 s",
    }[kind]
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    discovery = Discovery()
    with pytest.raises(InvalidArgumentError, match=said):
        discovery.complete(node(discovery_file=str(path), discovery="rbg"))
    assert discovery.fingerprint()


def test_a_reloader_starts_with_what_it_found_and_reports_it(file: Path) -> None:
    flags = {"discovery_file": str(file), "advertise_host": "a"}
    reloader = Reloader(NodeConfig, None, flags, Discovery())
    assert reloader.config.addresses() == ["pd-master-0.s-pd-master:50071"]
    ready, said = reloader.reloads.readiness(lambda: (True, {}))()
    assert ready and said["discovery"]["masters"] == ["pd-master-0.s-pd-master:50071"]
    file.write_text(FILE.replace("50071", "50072"))
    reloader.reload("file")
    assert reloader.config.addresses() == ["pd-master-0.s-pd-master:50072"]
    file.write_text("[")
    reloader.reload("file")
    assert "not YAML" in reloader.reloads.refusal
    assert reloader.config.addresses() == ["pd-master-0.s-pd-master:50072"], "the old one stays"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (
            "nameserver 10.0.0.1\nsearch kv.svc.cluster.local svc.cluster.local cluster.local",
            "kv.svc.c",
        ),
        ("search kv.svc.example.org. svc.example.org", "kv.svc.example.org"),
        ("search example.org", ""),
        ("search", ""),
        ("", ""),
    ],
)
def test_the_domain_of_a_pods_services(tmp_path: Path, text: str, domain: str) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    found = names.service_domain(path)
    assert found.startswith(domain) and bool(found) == bool(domain)
    assert names.service_domain(tmp_path / "nowhere") == ""


def test_names_are_resolved_by_the_host() -> None:
    assert names.resolve("127.0.0.1", 1) == ["127.0.0.1"]
    assert names.resolve("no-such-name.invalid", 1) == []
    assert names.resolve("x" * 300, 1) == []
    own = names.own_address()
    assert own == "" or not own.startswith("127."), socket.gethostname()


def test_a_group_of_many_pods_is_read(file: Path) -> None:
    instances = "".join(f"    - address: g-store-{i}.s-g-store\n" for i in range(4096))
    head, _, _ = FILE.partition("  store:")
    file.write_text(f"{head}  store:\n    size: 4096\n    instances:\n{instances}")
    assert len(group.read(str(file)).role("store").instances) == 4096
