"""The chart: linted, its values checked, and whatever it renders validated like any manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.tools import validate as tool
from deploy.tools.documents import parse
from deploy.tools.objects import Object, Objects, quantity
from deploy.tools.schemas import Schemas
from kvstore.integrations.sglang.options import Options as SglangOptions
from kvstore.integrations.vllm.options import Options as VllmOptions

helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk: no chart is checked")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "kvstore"
CASES = sorted((CHART / "ci").glob("*.yaml"))


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas(tool.KUBERNETES, [tool.OWN_CRDS, tool.rbg_crds()])


def values_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def render(values: dict[str, Any], release: str = "kvstore") -> list[Object]:
    chart = helm.Chart.load(CHART)
    rendered = chart.render(values, name=release, namespace="cache")
    texts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
    assert len(texts) == 4
    return [one for text in texts for one in parse(text, "the chart")]


def store_spec(documents: list[Object]) -> Object:
    (pod,) = (
        pod
        for pod in Objects(documents).pods
        if pod.labels["app.kubernetes.io/component"] == "store"
    )
    return pod.spec


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_the_chart_is_linted_strictly(case: Path) -> None:
    options = {"strict": True, "namespace": "cache", "kube_version": "v1.33.0"}
    report = helm.lint(CHART, values_of(case), **options)
    assert report["errors"] == [] and report["total_charts_linted"] == 1, report
    # An icon is recommended; every other remark would fail a strict lint.
    assert all("icon is recommended" in one["error"] for one in report["messages"]), report


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
@pytest.mark.parametrize("release", ["kvstore", "a-release-of-another-name-that-is-longer"])
def test_what_it_renders_is_valid(case: Path, release: str, schemas: Schemas) -> None:
    values = values_of(case)
    documents = render(values, release)
    hosted = any(values.get(key, {}).get("enabled") for key in ("shm", "nvme"))
    level = "privileged" if hosted else "restricted"
    assert [str(one) for one in tool.validate(documents, schemas, level)] == []
    kinds = {one["kind"] for one in documents}
    assert ("RoleBasedGroup" in kinds) == (values.get("mode") == "rbg")
    assert ("DaemonSet" in kinds) == (values.get("mode") == "daemonset")


def test_a_wrong_template_would_be_found(schemas: Schemas) -> None:
    documents = render({})
    (policy,) = (one for one in documents if one["kind"] == "NetworkPolicy")
    policy["spec"]["podSelector"] = {"matchLabels": {"app": "other"}}
    said = [str(one) for one in tool.validate(documents, schemas, "restricted")]
    assert said == ["NetworkPolicy/kvstore: selects no pod"]


@pytest.mark.parametrize(
    ("segment", "room_mib"),
    [("8Gi", 8192 + 2 * 512 + 32), ("64Mi", 64 + 2 * 6 + 32), ("100Mi", 100 + 2 * 7 + 32)],
)
def test_memory_follows_from_the_segment(segment: str, room_mib: int) -> None:
    spec = store_spec(render({"store": {"segmentSize": segment}}))
    (container,) = spec["containers"]
    (tmpfs,) = (v["emptyDir"] for v in spec["volumes"] if v["name"] == "segments")
    assert tmpfs["sizeLimit"] == f"{room_mib}Mi"
    limit = quantity(container["resources"]["limits"]["memory"])
    assert limit == (room_mib + 1024) << 20
    assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_engines_understand_the_connection(case: Path) -> None:
    documents = render(values_of(case))
    (found,) = (one["data"] for one in documents if one["metadata"]["name"] == "kvstore-connection")
    sglang = SglangOptions.of(json.loads(found["hicache.json"]))
    connector = json.loads(found["kv-transfer-config.json"])
    vllm = VllmOptions.of(connector["kv_connector_extra_config"])
    domain = values_of(case).get("clusterDomain", "cluster.local")
    names = [f"kvstore.cache.svc.{domain}"]
    if (count := values_of(case).get("master", {}).get("replicas", 1)) > 1:
        names = [f"kvstore-master-{i}.kvstore-pods.cache.svc.{domain}" for i in range(count)]
    assert sglang.master == vllm.master == ",".join(f"{name}:50051" for name in names)
    shared = values_of(case).get("shm", {}).get("enabled", False)
    assert sglang.transport == vllm.transport == ("auto" if shared else "tcp")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "deployment"}, "mode"),
        ({"store": {"segmentSize": "8gb"}}, "segmentSize"),
        ({"store": {"segmentSize": "8.5Gi"}}, "segmentSize"),
        ({"store": {"cpu": 1.5}}, "cpu"),
        ({"store": {"replica": 3}}, "replica"),
        ({"master": {"state": "etcd://e:2379"}}, "state"),
        ({"stroe": {}}, "stroe"),
        ({"nvme": {"hostPath": "mnt"}}, "hostPath"),
        ({"tokens": {"secretName": ""}}, "secretName"),
        ({"store": {"terminationGracePeriodSeconds": 5}}, "terminationGracePeriodSeconds"),
    ],
)
def test_wrong_values_are_refused_by_the_schema(values: dict[str, Any], said: str) -> None:
    chart = helm.Chart.load(CHART)
    with pytest.raises(helm.HelmError, match=said):
        chart.validate_schema(chart.merge_values(values))
    chart.validate_schema(chart.merge_values({}))


def test_a_key_that_no_server_knows_is_found_in_what_is_rendered(schemas: Schemas) -> None:
    documents = render({"store": {"config": {"promote_read": 1}}})
    said = [str(one) for one in tool.validate(documents, schemas)]
    assert len(said) == 1 and "did you mean 'promote_reads'?" in said[0]


@pytest.mark.parametrize(
    ("text", "instead", "said"),
    [
        ("httpGet: {path: /healthz, port: http}", "grpc: {port: 50052}", "would never be ready"),
        ("kvstore-master-1.kvstore-pods", "kvstore-master-2.kvstore-pods", "no StatefulSet makes"),
        ("master-1.kvstore-pods", "master-1.kvstore", "there is no headless Service kvstore in"),
        ("publishNotReadyAddresses: true", "", "Service kvstore-pods lacks publishNotReady"),
    ],
)
def test_what_standbys_need_is_missed(text: str, instead: str, said: str, schemas: Schemas) -> None:
    rendered = helm.Chart.load(CHART).render(
        values_of(CHART / "ci/standby.yaml"), name="kvstore", namespace="cache"
    )
    whole = "\n---\n".join(one for path, one in rendered.items() if path.endswith(".yaml"))
    assert text in whole
    documents = parse(whole.replace(text, instead), "the chart")
    assert any(said in str(one) for one in tool.validate(documents, schemas, "restricted"))


@pytest.mark.parametrize("values", [{"state": ""}, {"state": "etcd://e:2379/p", "mode": "rbg"}])
def test_standbys_need_a_shared_state_and_names(values: dict[str, Any]) -> None:
    mode = {"mode": values.pop("mode")} if "mode" in values else {}
    with pytest.raises(helm.HelmError, match=r"master.replicas above 1 needs master.state"):
        render({"master": {"replicas": 2, **values}, **mode})
