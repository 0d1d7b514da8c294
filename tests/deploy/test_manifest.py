"""The manifests: their commands are the package's, and every pod is placed and protected."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.tools.documents import read
from deploy.tools.objects import Objects, Pod
from kvstore.cli import master, node
from kvstore.config import MasterConfig, NodeConfig

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = [ROOT / "deploy" / name for name in ("rbg/store.yaml", "rbg/sglang-pd.yaml")]
MANIFESTS.append(ROOT / "deploy/kubernetes/vllm.yaml")
COMMANDS = {"kvstore-master": master.main, "kvstore-node": node.main}


def server_commands(path: Path) -> list[list[str]]:
    pods: list[Pod] = Objects(read(path)).pods
    commands = [list(c["command"]) for pod in pods for c in pod.containers()]
    return [command for command in commands if command[0] in COMMANDS]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_the_commands_are_those_of_the_package(path: Path) -> None:
    commands = server_commands(path)
    assert {command[0] for command in commands} == set(COMMANDS)
    for program, *arguments in commands:
        # Parsed as at the start; ends at the file, which is not there.
        result = CliRunner().invoke(COMMANDS[program], arguments)
        assert "No such file" in result.output and "No such option" not in result.output


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_every_pod_is_placed_protected_and_reachable(path: Path) -> None:
    objects = Objects(read(path))
    policies = list(objects.of_kind("NetworkPolicy"))
    budgets = list(objects.of_kind("PodDisruptionBudget"))
    monitors = list(objects.of_kind("PodMonitor"))
    for pod in objects.pods:
        where = f"{path.name}: {pod.owner['metadata']['name']} {pod.where}"
        chosen = [objects.selected(b["spec"]["selector"], pod.namespace) for b in budgets]
        if (pod.replicas or 0) > 1:
            assert any(pod in pods for pods in chosen), f"{where}: no PodDisruptionBudget"
            assert pod.spec["topologySpreadConstraints"], where
        for container in pod.spec["containers"]:
            assert container["readinessProbe"] and container["livenessProbe"], where
        if pod.labels.get("app.kubernetes.io/name") == "kvstore":
            assert pod.spec["priorityClassName"], where
            covers = [objects.selected(p["spec"]["podSelector"], pod.namespace) for p in policies]
            assert any(pod in pods for pods in covers), f"{where}: no NetworkPolicy"
            scraped = [objects.selected(m["spec"]["selector"], pod.namespace) for m in monitors]
            assert any(pod in pods for pods in scraped), f"{where}: no PodMonitor"


def test_the_ports_of_the_policies_are_the_defaults_of_the_master() -> None:
    (service,) = (s for s in Objects(read(MANIFESTS[0])).of_kind("Service"))
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    default = MasterConfig()
    assert ports == {
        "block": default.port,
        "grpc": default.grpc_port,
        "http": default.http_port,
    }
    assert NodeConfig().port == 0, "the manifests choose the nodes' ports"
