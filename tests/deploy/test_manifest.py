"""The Kubernetes manifest: valid for its schemas, and its numbers and configurations fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvstore import config
from kvstore.config import MasterConfig, NodeConfig
from kvstore.sizes import parse_size

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy" / "rbg" / "store.yaml"
# The schemas of RoleBasedGroup and a validator, beside the repository where there are any.
SCHEMAS = ROOT.parent / "shared" / "deploy"

# Beside the segment, in its folder: an index (two while a restart builds a new one) and the slots.
INDEX_SHARE = 1 / 16
SLOT_BYTES = 32 << 20
# Of the process itself.
OVERHEAD_BYTES = 1 << 30

needs_schemas = pytest.mark.skipif(
    not (SCHEMAS / "k8s_validate.py").exists(),
    reason="no schemas of RoleBasedGroup in ../shared/deploy: the manifest is not validated",
)

DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))


def document(kind: str, name: str) -> dict[str, Any]:
    (found,) = (d for d in DOCUMENTS if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


def role(name: str) -> dict[str, Any]:
    roles = document("RoleBasedGroup", "kvstore")["spec"]["roles"]
    (found,) = (r for r in roles if r["name"] == name)
    return dict(found)


def pod(name: str) -> dict[str, Any]:
    return dict(role(name)["standalonePattern"]["template"]["spec"])


def container(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    return dict(found)


def volume(name: str, volume_name: str) -> dict[str, Any]:
    (found,) = (v for v in pod(name)["volumes"] if v["name"] == volume_name)
    return dict(found)


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity with a binary suffix: 10Gi."""
    assert text.endswith("i")
    return parse_size(text.removesuffix("i"))


def config_text(config_map: str, file: str) -> str:
    return str(document("ConfigMap", config_map)["data"][file])


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    path = tmp_path / "node.json"
    path.write_text(config_text("kvstore-store", "node.json"))
    return config.load(NodeConfig, path, {})


@pytest.fixture
def master(tmp_path: Path) -> MasterConfig:
    path = tmp_path / "master.json"
    path.write_text(config_text("kvstore-master", "master.json"))
    return config.load(MasterConfig, path, {})


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCHEMAS / "k8s_validate.py"), "--cross"]
    command += ["--crds", str(SCHEMAS / "rbg-crds"), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@needs_schemas
def test_the_manifest_is_valid() -> None:
    done = validate(MANIFEST)
    assert done.returncode == 0 and "WARN" not in done.stdout, done.stdout + done.stderr
    assert f"{len(DOCUMENTS)} passed, 0 failed" in done.stdout


@needs_schemas
def test_a_wrong_manifest_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = MANIFEST.read_text()
    for before, after in (("standalonePattern:", "standAlonePattern:"), ("grpc: {", "gprc: {")):
        wrong.write_text(text.replace(before, after))
        assert validate(wrong).returncode == 1, after


def test_memory_holds_what_is_in_it(node: NodeConfig) -> None:
    segments = volume("kvstore-store", "segments")["emptyDir"]
    assert segments["medium"] == "Memory"
    room = quantity(segments["sizeLimit"])
    assert room >= node.segment_size * (1 + 2 * INDEX_SHARE) + SLOT_BYTES
    resources = container("kvstore-store")["resources"]
    assert quantity(resources["limits"]["memory"]) >= room + OVERHEAD_BYTES
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


@pytest.mark.parametrize("name", ["kvstore-master", "kvstore-store"])
def test_a_role_changes_its_image_in_place_and_runs_as_nobody_special(name: str) -> None:
    strategy = role(name)["rolloutStrategy"]
    assert strategy["rollingUpdate"]["type"] == "InPlaceIfPossible"
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    context = container(name)["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert pod(name)["terminationGracePeriodSeconds"] >= 30
    mounts = {m["name"]: m for m in container(name)["volumeMounts"]}
    assert "subPath" not in str(mounts), "a subPath never changes with its ConfigMap"
    assert mounts["config"]["readOnly"] and mounts["tokens"]["readOnly"]


def test_the_ports_are_those_of_the_configurations(node: NodeConfig, master: MasterConfig) -> None:
    def ports(name: str) -> dict[str, int]:
        return {p["name"]: p["containerPort"] for p in container(name)["ports"]}

    assert ports("kvstore-store") == {"block": node.port, "http": node.http_port}
    of_master = {"block": master.port, "grpc": master.grpc_port, "http": master.http_port}
    assert ports("kvstore-master") == of_master
    service = document("Service", "kvstore-master")["spec"]
    assert {p["name"]: p["port"] for p in service["ports"]} == of_master
    assert service["publishNotReadyAddresses"] is True
    assert master.advertise_host == "kvstore-master"
    assert node.addresses() == [f"kvstore-master:{master.port}"]
    template = role("kvstore-master")["standalonePattern"]["template"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container("kvstore-master")[probe]["grpc"]["port"] == master.grpc_port
        assert container("kvstore-store")[probe]["httpGet"]["port"] == "http"


def test_what_is_written_to_is_mounted(node: NodeConfig, master: MasterConfig) -> None:
    for name, path, token in (
        ("kvstore-store", node.segment_dir, node.auth_token_file),
        ("kvstore-master", master.data_dir, master.auth_token_file),
    ):
        mounts = {m["mountPath"]: m for m in container(name)["volumeMounts"]}
        assert not mounts[path].get("readOnly")
        assert str(Path(token).parent) in mounts
        secret = volume(name, "tokens")["secret"]
        assert secret["defaultMode"] & 0o037 == 0, "security.too_open refuses it"


def test_the_commands_are_those_of_the_package() -> None:
    from click.testing import CliRunner

    from kvstore.cli import master, node

    for name, command in (("kvstore-master", master.main), ("kvstore-store", node.main)):
        program, *arguments = container(name)["command"]
        assert program == ("kvstore-master" if name == "kvstore-master" else "kvstore-node")
        # Parsed as at the start; ends at the file, which is not there.
        result = CliRunner().invoke(command, arguments)
        assert "No such file" in result.output and "No such option" not in result.output
