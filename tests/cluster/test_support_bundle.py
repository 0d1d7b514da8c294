"""`kvstore support-bundle` of a live cluster: complete, and without a single secret."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import kvstore
from kvstore.cli.output import Exit
from kvstore.config import MasterConfig, NodeConfig
from tests.support.cluster import Cluster
from tests.support.tool import Ran, run

OPERATOR = "operator-secret-3f8a91bc"
NODE = "node-secret-77aa02d1"
ENGINE = "engine-secret-c0ffee42"
IN_ENVIRONMENT = "environment-secret-5150"
UNKNOWN = "hunter2hunter2"  # in no token file: found by its form and place
PAYLOAD = b"the bytes of an object that are nobody's business"
KEY = "chat/of/a/customer"
TOKENS = f"""# principals
ops operator * {OPERATOR}
a node * {NODE}
engine client default {ENGINE}
"""
LOG = f"""2026-11-29T22:00:00.000Z INFO node.agent registered master=127.0.0.1:1 node_epoch=3
2026-11-29T22:00:01.000Z WARNING node.http refused header="authorization: Bearer ops:{UNKNOWN}"
2026-11-29T22:00:02.000Z DEBUG node.rest removed key={KEY} principal=ops secret={ENGINE}
2026-11-29T22:00:03.000Z ERROR process failed error="tcp://ops:{UNKNOWN}@10.0.0.1:50051"
{{"event": "put", "key": "{KEY}", "password": "{UNKNOWN}", "text": "{OPERATOR} {NODE}"}}
"""


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    path.chmod(0o600)
    return path


def only(folder: Path, name: str) -> Path:
    """Write the token file of one principal."""
    path = folder / name
    path.write_text(next(line for line in TOKENS.splitlines(True) if line.startswith(name)))
    path.chmod(0o600)
    return path


@pytest.fixture
def cluster(tmp_path: Path, token_file: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    operator = only(tmp_path, "ops")
    running = Cluster(folder, ["--auth-token-file", str(token_file)], str(operator))
    try:
        running.start_node("a", auth_token_file=str(token_file))
        yield running
    finally:
        running.close()


def planted(kind: type[msgspec.Struct], token_file: Path) -> dict[str, object]:
    """Put a secret wherever a configuration takes text, and where it takes nothing."""
    values: dict[str, object] = msgspec.to_builtins(kind())
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = f"{ENGINE} tcp://x:{UNKNOWN}@h:1 password={UNKNOWN}"
        elif isinstance(value, list):
            values[name] = [f"x{NODE}y", f"token={UNKNOWN}"]
        elif isinstance(value, dict):
            values[name] = {"host": OPERATOR, "api_key": UNKNOWN, ENGINE: "x"}
    return {
        **values,
        "auth_token_file": str(token_file),
        "passwrd": UNKNOWN,
        f"name-{NODE}": {"deep": [UNKNOWN]},
    }


def bundle(cluster: Cluster, folder: Path, token_file: Path, *options: str) -> tuple[Path, Ran]:
    path = folder / "bundle.tar.gz"
    for kind, name in ((NodeConfig, "node.json"), (MasterConfig, "master.json")):
        (folder / name).write_text(json.dumps(planted(kind, token_file)))
    (folder / "node.log").write_text(LOG)
    arguments = ["support-bundle", "-o", str(path), "--master", cluster.address]
    arguments += ["--token-file", str(folder / "ops"), "--log", str(folder / "node.log")]
    arguments += ["--config", str(folder / "node.json"), "--config", str(folder / "master.json")]
    return path, run(
        *arguments,
        *options,
        MY_PASSWORD=IN_ENVIRONMENT,
        KVSTORE_TOKEN=UNKNOWN,
        KVSTORE_X=UNKNOWN,
    )


def members(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            member.name.removeprefix("kvstore-support/"): archive.extractfile(member)  # type: ignore[union-attr]
            .read()
            .decode()
            for member in archive
        }


def test_it_has_everything_but_secrets_and_objects(
    cluster: Cluster, tmp_path: Path, token_file: Path
) -> None:
    store = cluster.connect(token_file=str(only(tmp_path, "engine")))
    assert store.put(KEY, PAYLOAD) is kvstore.Status.Ok
    assert store.get(KEY) == PAYLOAD
    path, done = bundle(cluster, tmp_path, token_file, "--json")
    assert done.code == Exit.OK, done.err
    manifest = json.loads(done.out)
    missing = [part["name"][:7] for part in manifest["parts"] if part["error"]]
    assert missing == ["logs/1-", "logs/2-"], "what was planted as audit_log is no file"
    whole = gzip.decompress(path.read_bytes())
    everything = whole + done.out.encode() + done.err.encode()
    for secret in (OPERATOR, NODE, ENGINE, IN_ENVIRONMENT, UNKNOWN, KEY):
        assert secret.encode() not in everything, secret
    assert PAYLOAD not in everything
    files = members(path)
    there = {part["name"] for part in manifest["parts"] if not part["error"]}
    assert set(files) == {*there, "manifest.json"}
    assert json.loads(files["status.json"])["nodes_alive"] == 1
    assert json.loads(files["nodes.json"])["nodes"][0]["node_id"] == "a"
    assert json.loads(files["versions.json"])["kvstore"] == kvstore.__version__
    assert "kvstore_cluster_" in files["servers/master.metrics.txt"]
    assert "kvstore_hits_total" in files["servers/node-0-a.metrics.txt"]
    assert {row["check"] for row in json.loads(files["doctor.json"])["findings"]} > {"nodes"}
    log = files["logs/0-node.log"]
    assert "registered master=127.0.0.1:1 node_epoch=3" in log
    assert log.count("key-") == 2
    config = json.loads(files["configs/0-node.json"])
    assert config["auth_token_file"] == str(token_file)
    assert config["nvme_size"] == 0
    assert config["passwrd"] == "***"


def test_without_a_master_it_has_the_remainder(
    cluster: Cluster, tmp_path: Path, token_file: Path
) -> None:
    cluster.master.kill()
    path, done = bundle(cluster, tmp_path, token_file, "--timeout-ms", "1000")
    assert done.code == Exit.OK, done.err
    assert "status.json is missing" in done.err
    assert "Traceback" not in done.err
    files = members(path)
    assert {"versions.json", "logs/0-node.log", "doctor.json", "manifest.json"} <= set(files)
    again = bundle(cluster, tmp_path, token_file)[1]
    assert again.code == Exit.USAGE
    assert "exists" in again.err
