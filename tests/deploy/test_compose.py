"""The Compose file: valid for the specification, and its configurations are read as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.tools.product import PROCESS_BYTES, room
from kvstore import config
from kvstore.config import MasterConfig, NodeConfig
from kvstore.sizes import parse_size

spec = pytest.importorskip("compose_spec", reason="pip install compose-spec: no file is checked")

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "docker" / "compose.yaml"
TEXT = FILE.read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)


def check(text: str) -> None:
    spec.PyOptions(apply_merge=True).from_yaml(text).validate()


def content(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(COMPOSE["configs"][name]["content"])
    return values


def test_it_is_valid() -> None:
    check(TEXT)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("read_only:", "read_olny:", "read_olny"),
        ("cap_drop: [ALL]", "cap_drop: ALL", "expected a set"),
        ("target: /segments}", "target: segments}", "not absolute"),
        ("condition: service_started", "condition: started", "unknown variant"),
        ("source: node, target", "source: nodes, target", "config `nodes`"),
        ("secrets: [tokens]", "secrets: [token]", "secret `token`"),
    ],
)
def test_a_wrong_file_would_be_found(before: str, after: str, said: str) -> None:
    assert before in TEXT
    with pytest.raises(Exception, match=said):
        check(TEXT.replace(before, after))


def test_the_configurations_fit_the_services() -> None:
    master = config.load(MasterConfig, None, content("master"))
    node = config.load(NodeConfig, None, content("node"))
    services = COMPOSE["services"]
    assert node.addresses() == [f"{master.advertise_host}:{master.port}"]
    assert {master.advertise_host, node.advertise_host} <= set(services)
    ports = [str(port) for port in (master.port, master.grpc_port, master.http_port)]
    assert services["master"]["expose"] == ports
    assert services["node"]["expose"] == [str(node.port), str(node.http_port)]
    probe = services["node"]["healthcheck"]["test"][-1]
    assert probe == f"http://127.0.0.1:{node.http_port}/readyz"
    targets = {volume["target"] for volume in services["node"]["volumes"]}
    assert targets == {node.segment_dir, node.socket_dir}
    assert master.data_dir in {v["target"] for v in services["master"]["volumes"]}
    assert master.auth_token_file == node.auth_token_file == "/run/secrets/tokens"
    grace_s = int(services["node"]["stop_grace_period"].removesuffix("s"))
    assert grace_s * 1000 > node.shutdown_grace_ms
    assert parse_size(services["node"]["mem_limit"]) >= room(node) + PROCESS_BYTES


def test_the_servers_run_as_nobody_special() -> None:
    for name in ("master", "node"):
        service = COMPOSE["services"][name]
        assert service["user"] == "10001:10001" and service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
