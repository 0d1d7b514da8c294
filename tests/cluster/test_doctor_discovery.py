"""`kvstore doctor` and `config check` find the master by RBG's file or DNS, or say why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore.cli.operator import main
from kvstore.cli.output import Exit
from tests.cluster.test_doctor import Report, doctor
from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

NOBODY = "no-such-service.invalid"  # RFC 6761: never has an address


def group_file(folder: Path, text: str) -> Path:
    path = folder / "rbg.yaml"
    path.write_text(f"group: {{name: pd}}\nroles: {text}\n")
    return path


def role(name: str, address: str, ports: str = "") -> str:
    instance = f"{{address: {address}, ports: {{{ports}}}}}" if ports else f"{{address: {address}}}"
    return f"{{{name}: {{size: 1, instances: [{instance}]}}}}"


def node_file(folder: Path, **values: Any) -> str:
    path = folder / "node.json"
    path.write_text(json.dumps(values))
    return str(path)


def diagnose(folder: Path, **values: Any) -> Report:
    return doctor("--only", "cluster", "--config", node_file(folder, **values))


def check(folder: Path, **values: Any) -> Any:
    file = node_file(folder, **values)
    ran = CliRunner().invoke(main, ["config", "check", file, "--json"])
    assert ran.exit_code == Exit.OK, ran.output
    return json.loads(ran.stdout)


def test_the_master_is_found_as_a_node_finds_it(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_node("a")
    host, _, port = cluster.address.rpartition(":")
    file = group_file(tmp_path, role("kv", host, f"block: {port}, http: 9080"))
    by_file = {"discovery": "auto", "discovery_file": str(file), "discovery_role": "kv"}
    by_name = {"discovery": "dns", "discovery_name": f"localhost:{port}"}
    for values, by, source in ((by_file, "rbg", str(file)), (by_name, "dns", f"localhost:{port}")):
        report = diagnose(tmp_path, **values)
        assert report.exit_code == Exit.OK, report
        assert report.has("ok", "discovery", f"{by} names "), report
        assert report.has("ok", "master", "the master answers at "), report
        assert report.has("ok", "nodes", "a is alive"), report
        found = check(tmp_path, **values)
        assert not [one for one in found["remarks"] if "discovery" in one]
        assert found["discovery"]["by"] == by and source in found["discovery"]["source"]
        assert cluster.address in found["discovery"]["masters"]
    # An address that is configured wins, and then nothing is looked for.
    values = {**by_file, "discovery_role": "nobody", "master_address": cluster.address}
    assert diagnose(tmp_path, **values).exit_code == Exit.OK
    assert check(tmp_path, **values)["discovery"] is None
    # The command line wins over a configuration that finds nobody.
    file_name = node_file(tmp_path, **{**by_file, "discovery_role": "nobody"})
    report = doctor("--only", "cluster", "--config", file_name, "--master", cluster.address)
    assert report.exit_code == Exit.OK, report
    # For reading.
    ran = CliRunner().invoke(main, ["config", "check", node_file(tmp_path, **by_file)])
    assert f"master: {cluster.address}, by rbg: role 'kv' of {file}" in ran.stdout


FAULTS: dict[str, tuple[dict[str, str], str, str]] = {
    "the file is missing": (
        {"discovery": "rbg", "discovery_file": "FOLDER/none.yaml"},
        "discovery file FOLDER/none.yaml: No such file or directory",
        "correct `discovery_file`",
    ),
    "the file is none of RBG": (
        {"discovery": "rbg", "discovery_file": "FOLDER/node.json"},
        "discovery file FOLDER/node.json: ",
        "correct `discovery_file`",
    ),
    "the role is absent": (
        {"discovery_file": "FOLDER/rbg.yaml", "discovery_role": "nobody"},
        "discovery file FOLDER/rbg.yaml: no role 'nobody'; roles: master; set `discovery_role`",
        "`discovery_role`",
    ),
    "the name has no address": (
        {"discovery": "dns", "discovery_name": f"{NOBODY}:50051"},
        f"`discovery_name` {NOBODY}:50051: DNS has no address of {NOBODY}",
        "start a master behind this headless Service",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_one_sentence(tmp_path: Path, fault: str) -> None:
    values, said, fix = FAULTS[fault]
    group_file(tmp_path, role("master", "127.0.0.1", "block: 1"))
    values = {name: text.replace("FOLDER", str(tmp_path)) for name, text in values.items()}
    said = said.replace("FOLDER", str(tmp_path))
    report = diagnose(tmp_path, **values)
    assert report.exit_code == Exit.FAILED
    assert report.has("fail", "discovery", said, fix), report
    assert len(report.findings) == 2, report  # nobody else is asked
    found = check(tmp_path, **values)
    assert found["discovery"]["masters"] == []
    (remark,) = [one for one in found["remarks"] if said in one]
    assert "\n" not in remark


def test_a_port_that_is_not_named_or_where_nobody_listens(tmp_path: Path) -> None:
    file = group_file(tmp_path, role("master", "127.0.0.1", "grpc: 7, http: 8"))
    report = diagnose(tmp_path, discovery_file=str(file))
    said = "an instance of role 'master' has no port 'block', but grpc, http: its nodes try 50051"
    assert report.has("warn", "discovery", said, "servicePorts"), report
    found = check(tmp_path, discovery_file=str(file))
    assert any(said in one for one in found["remarks"])
    assert found["discovery"]["masters"] == ["127.0.0.1:50051"]
    file = group_file(tmp_path, role("master", "127.0.0.1", "block: 1"))
    report = diagnose(tmp_path, discovery_file=str(file))
    assert report.has("ok", "discovery", "rbg names 127.0.0.1:1"), report
    assert report.exit_code == Exit.FAILED and report.has("fail", "master", "127.0.0.1:1"), report


def test_a_master_looks_for_none(tmp_path: Path) -> None:
    values = {"discovery": "rbg", "discovery_file": str(tmp_path / "none"), "data_dir": "/tmp"}
    assert check(tmp_path, **values)["discovery"] is None
