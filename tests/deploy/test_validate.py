"""The validator: the manifests pass, and each of many wrong ones is refused with a sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.tools import validate as tool
from deploy.tools.documents import ManifestError, parse, read
from deploy.tools.objects import Object, quantity
from deploy.tools.schemas import Schemas

ROOT = Path(__file__).resolve().parents[2]
STORE = "deploy/rbg/store.yaml"
PD = "deploy/rbg/sglang-pd.yaml"
VLLM = "deploy/kubernetes/vllm.yaml"
NVME = "deploy/rbg/nvme"
WARMUP = "deploy/rbg/warmup.yaml"
HAS_CRDS = tool.rbg_crds().is_dir()
needs_crds = pytest.mark.skipif(
    not HAS_CRDS,
    reason=f"no CRDs of RBG in {tool.rbg_crds()} (KVSTORE_RBG_CRDS): not checked by their schemas",
)


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas(tool.KUBERNETES, [tool.OWN_CRDS, tool.rbg_crds()])


@needs_crds
@pytest.mark.parametrize("names", [[STORE], [PD], [PD, WARMUP], [VLLM], [NVME]], ids=str)
def test_the_manifests_are_valid(names: list[str], schemas: Schemas) -> None:
    documents = [one for name in names for one in read(ROOT / name)]
    assert len(documents) > 9
    assert [str(one) for one in tool.validate(documents, schemas)] == []


@dataclass(frozen=True)
class Mutant:
    """A change of a manifest, and what is said of it."""

    file: str
    before: str
    after: str
    said: str
    by_schema: bool = False
    """Found by the CRDs' schemas, which may not be there."""


LIVENESS = "failureThreshold: 6\n            lifecycle:"
NODE_LIMITS = 'limits: {cpu: "4", memory: 11Gi}'
NODE_REQUESTS = 'requests: {cpu: "4", memory: 11Gi}'
IN_PLACE = "rollingUpdate: {type: InPlaceIfPossible, maxUnavailable: 1}"
BUDGET = "  minAvailable: 2\n"
POLICY = "kind: CoordinatedPolicy\nmetadata:\n  name: sglang-pd\n"
SERVICE = "kind: Service\nmetadata:\n  name: kvstore\n"

MONITOR = "apiVersion: monitoring.coreos.com/v1\n"
AUTOSCALER = """\
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: store, namespace: kvstore}
spec:
  maxReplicas: 9
  scaleTargetRef: {apiVersion: workloads.x-k8s.io/v1alpha2, kind: KIND, name: kvstore-store}
---
"""

# The first fifteen are those that the project was asked to find.
MUTANTS = {
    "liveness successThreshold": Mutant(
        STORE,
        LIVENESS,
        "successThreshold: 2\n            lifecycle:",
        "livenessProbe: successThreshold must be 1",
    ),
    "mount of no volume": Mutant(
        STORE,
        "name: segments, mountPath",
        "name: segment, mountPath",
        "mounts segment, which is no",
    ),
    "InplaceIfPossible": Mutant(
        STORE, "type: InPlaceIfPossible", "type: InplaceIfPossible", "RBG checks no spelling"
    ),
    "nothing may be updated": Mutant(
        STORE,
        IN_PLACE,
        "rollingUpdate: {type: InPlaceIfPossible, maxUnavailable: 0, maxSurge: 0}",
        "maxSurge and maxUnavailable are both 0",
    ),
    "probe on an unknown port": Mutant(
        STORE,
        "path: /readyz, port: http}",
        "path: /readyz, port: https}",
        "readinessProbe: port https",
    ),
    "ConfigMap that does not exist": Mutant(
        STORE,
        "configMap: {name: kvstore-store}",
        "configMap: {name: kvstore-stores}",
        "there is no ConfigMap kvstore-stores",
    ),
    "root in spite of runAsNonRoot": Mutant(
        STORE, "runAsUser: 10001", "runAsUser: 0", "runs as user 0 in spite of runAsNonRoot"
    ),
    "requests above limits": Mutant(
        STORE,
        NODE_REQUESTS,
        'requests: {cpu: "4", memory: 12Gi}',
        "requests more memory than its limit",
    ),
    "Service that selects nothing": Mutant(
        STORE,
        "selector: {app.kubernetes.io/name: kvstore, app.kubernetes.io/component: master}",
        "selector: {app.kubernetes.io/name: kvstores}",
        "Service/kvstore: selects no pod",
    ),
    "Service that RBG takes over": Mutant(
        STORE,
        SERVICE,
        SERVICE.replace("name: kvstore", "name: kvstore-master"),
        "RBG takes over a Service named kvstore-master",
    ),
    "killed while it writes": Mutant(
        STORE,
        "terminationGracePeriodSeconds: 60",
        "terminationGracePeriodSeconds: 20",
        "must exceed shutdown_grace_ms (20000)",
    ),
    "undefined variable": Mutant(STORE, "$(POD_IP)", "$(POD_IPS)", "$(POD_IPS) is not defined"),
    "bad quantity": Mutant(STORE, NODE_REQUESTS, 'requests: {cpu: "4", memory: 11GiB}', "'11GiB'"),
    "policy of another name": Mutant(
        PD, POLICY, POLICY.replace("sglang-pd", "sglang"), "there is no RoleBasedGroup sglang"
    ),
    "too little memory": Mutant(
        STORE,
        f"{NODE_REQUESTS}\n              {NODE_LIMITS}",
        'requests: {cpu: "4", memory: 9Gi}\n              limits: {cpu: "4", memory: 9Gi}',
        "memory limit is below segment, two indexes and 1 GiB for the process (10272Mi)",
    ),
    # Those that follow are ours.
    "unknown field": Mutant(
        STORE,
        "standalonePattern:",
        "standAlonePattern:",
        "'standAlonePattern' was unexpected",
        True,
    ),
    "unknown field in a pod": Mutant(STORE, "grpc: {", "gprc: {", "'gprc' was unexpected", True),
    "unknown field of a core kind": Mutant(
        STORE, "publishNotReadyAddresses", "publishNotReady", "'publishNotReady' was unexpected"
    ),
    "no such API version": Mutant(
        STORE, "policy/v1", "policy/v2", "policy/v2 PodDisruptionBudget is no kind"
    ),
    "small tmpfs": Mutant(
        STORE, "sizeLimit: 10Gi", "sizeLimit: 9Gi", "sizeLimit 9Gi is below the segment"
    ),
    "segment on disk": Mutant(
        STORE,
        "emptyDir: {medium: Memory, sizeLimit: 10Gi}",
        "emptyDir: {sizeLimit: 10Gi}",
        "segment_dir /segments is on no emptyDir of medium Memory",
    ),
    "memory without a limit": Mutant(
        STORE, ", sizeLimit: 10Gi", "", "memory without sizeLimit may take half of the machine"
    ),
    "unknown key of the configuration": Mutant(
        STORE, '"segment_size"', '"segment_siez"', "did you mean 'segment_size'?"
    ),
    "configuration that is no JSON": Mutant(
        STORE,
        '"segment_size": "8gb"',
        '"segment_size": "8gb",',
        "ConfigMap kvstore-store, node.json",
    ),
    "two ports in two places": Mutant(
        STORE,
        "containerPort: 50061",
        "containerPort: 50062",
        "port block is 50062, but the configuration says 50061",
    ),
    "name that resolves in one namespace": Mutant(
        STORE,
        '"advertise_host": "kvstore.kvstore.svc.cluster.local"',
        '"advertise_host": "kvstore"',
        "resolves in this namespace only",
    ),
    "address of no Service": Mutant(
        STORE,
        '"master_address": "kvstore.kvstore',
        '"master_address": "master.kvstore',
        "there is no Service master in kvstore",
    ),
    "address of no port": Mutant(
        STORE,
        "svc.cluster.local:50051",
        "svc.cluster.local:50061",
        "Service kvstore has no port 50061",
    ),
    "two masters without a shared state": Mutant(
        STORE, "replicas: 1", "replicas: 2", "masters share a state in etcd only"
    ),
    "IPv4 only": Mutant(STORE, '"host": "::"', '"host": "0.0.0.0"', "listens on IPv4 only"),
    "no authentication": Mutant(
        STORE,
        '      "auth_token_file": "/etc/kvstore-tokens/tokens",\n',
        "",
        "auth_token_file is not set",
    ),
    "no cpu limit": Mutant(
        STORE, NODE_LIMITS, "limits: {memory: 11Gi}", "has no cpu limit: no Guaranteed QoS"
    ),
    "half a CPU": Mutant(STORE, 'cpu: "4"', 'cpu: "3500m"', "no whole number: no static CPU"),
    "secrets that others read": Mutant(
        STORE, "defaultMode: 0400", "defaultMode: 0444", "defaultMode must be 0400"
    ),
    "writable root": Mutant(
        STORE,
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "is not true; the serv",
    ),
    "subPath": Mutant(
        STORE,
        "mountPath: /etc/kvstore, readOnly: true}",
        "mountPath: /etc/kvstore, subPath: a, readOnly: true}",
        "by subPath, which never sees a change",
    ),
    "hostPath in a restricted namespace": Mutant(
        STORE,
        "emptyDir: {medium: Memory, sizeLimit: 10Gi}",
        "hostPath: {path: /dev/shm}",
        "hostPath is not admitted at the Pod Security level restricted",
    ),
    "escalation in a restricted namespace": Mutant(
        STORE,
        "allowPrivilegeEscalation: false",
        "allowPrivilegeEscalation: true",
        "allowPrivilegeEscalation is not false (Pod Security level restricted)",
    ),
    "state that goes with the pod": Mutant(
        STORE,
        "persistentVolumeClaim: {claimName: kvstore-master}",
        "emptyDir: {}",
        "data_dir is not on a PersistentVolumeClaim",
    ),
    "claim that does not exist": Mutant(
        STORE,
        "claimName: kvstore-master",
        "claimName: kvstore",
        "there is no PersistentVolumeClaim",
    ),
    "no such priority": Mutant(
        STORE, "priorityClassName: kvstore", "priorityClassName: kv", "there is no PriorityClass kv"
    ),
    "percentage of pods without a scale": Mutant(
        STORE, BUDGET, "  maxUnavailable: 1\n", "for RBG's pods needs an integer minAvailable"
    ),
    "budget that forbids every drain": Mutant(
        STORE, BUDGET, "  minAvailable: 3\n", "minAvailable 3 of 3: no machine could be drained"
    ),
    "budget of no pod": Mutant(
        STORE, "role-name: store", "role-name: stores", "PodDisruptionBudget/kvstore-store: its sel"
    ),
    "policy of no pod": Mutant(
        STORE,
        "podSelector:\n    matchLabels: {app.kubernetes.io/name: kvstore}\n  policyTypes",
        "podSelector:\n    matchLabels: {app.kubernetes.io/name: kv}\n  policyTypes",
        "NetworkPolicy/kvstore: selects no pod",
    ),
    "egress that is ignored": Mutant(
        STORE, "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]", "it is ignored"
    ),
    "scrape of no port": Mutant(
        STORE,
        "{port: http, interval",
        "{port: metrics, interval",
        "no pod has a port named metrics",
    ),
    "role names that double": Mutant(
        STORE,
        "- name: store\n    replicas",
        "- name: kvstore-store\n    replicas",
        "leave kvstore out",
    ),
    "name that is cut": Mutant(
        STORE, "- name: store\n    replicas", f"- name: {'s' * 55}\n    replicas", "cut to 63 char"
    ),
    "unknown dependency": Mutant(
        STORE,
        "dependencies: [master]",
        "dependencies: [maser]",
        "depends on maser, which is no role",
    ),
    "dependency on itself": Mutant(
        STORE, "dependencies: [master]", "dependencies: [store]", "depends on itself"
    ),
    "dependency on many": Mutant(
        PD, "dependencies: [master]", "dependencies: [store]", "all of whose replicas must then be"
    ),
    "partition that stops everything": Mutant(
        STORE,
        IN_PLACE,
        IN_PLACE.replace("maxUnavailable: 1", "partition: 3"),
        "partition must be below replicas",
    ),
    "grace that delays nothing": Mutant(
        STORE,
        IN_PLACE,
        IN_PLACE.replace("}", ", inPlaceUpdateStrategy: {gracePeriodSeconds: 2}}"),
        "gracePeriodSeconds delays nothing",
    ),
    "no version of an image": Mutant(STORE, "kvstore:0.1.0", "kvstore:latest", "names no version"),
    "spread that finds others": Mutant(
        STORE,
        "matchLabels: {app.kubernetes.io/name: kvstore, app.kubernetes.io/component: store}",
        "matchLabels: {app: kvstore}",
        "its labelSelector does not find the pod itself",
    ),
    "volume that nobody mounts": Mutant(
        STORE,
        "            - {name: data, mountPath: /var/lib/kvstore}\n",
        "",
        "data is mounted by no",
    ),
    "name that stands there twice": Mutant(
        STORE,
        "{name: grpc, containerPort",
        "{name: block, containerPort",
        "name block stands there",
    ),
    "object that stands there twice": Mutant(
        STORE,
        "name: kvstore-store\n  namespace",
        "name: kvstore-master\n  namespace",
        "last one wins",
    ),
    "another namespace": Mutant(
        STORE, "namespace: kvstore\n", "namespace: kv\n", "namespace kv is none of those"
    ),
    "two kinds of probe": Mutant(
        STORE,
        "grpc: {port: 50052}",
        "grpc: {port: 50052}\n              exec: {command: [a]}",
        "needs exactly one of",
    ),
    "in-place scheduling misspelt": Mutant(
        PD,
        "  - name: router\n    replicas: 2\n",
        "  - name: router\n    replicas: 2\n    annotations:\n"
        "      rbg.workloads.x-k8s.io/role-inplace-scheduling: Prefered\n",
        "must be Preferred or Required",
    ),
    "init container that changes with the store": Mutant(
        PD, "image: busybox:1.37.0", "image: kvstore:0.1.0", "where both change, RBG makes new pods"
    ),
    "policy for no role": Mutant(
        PD,
        "roles: [prefill, decode]",
        "roles: [prefill, decoder]",
        "decoder is no role of sglang-pd",
    ),
    "warm-up for no role": Mutant(
        WARMUP, "      store:\n", "      stores:\n", "stores is no role of RoleBasedGroup/sglang-pd"
    ),
    "engine without the sockets": Mutant(
        PD,
        "            - {name: sockets, mountPath: /run/kvstore, readOnly: true}\n",
        "",
        "does not mount /run/kvstore, where the node's socket is",
    ),
    "engine that may write to the sockets": Mutant(
        PD,
        "mountPath: /run/kvstore, readOnly: true}",
        "mountPath: /run/kvstore}",
        "readOnly is enough for an engine",
    ),
    "option that no engine knows": Mutant(
        PD, '"token_file"', '"token_fiel"', "did you mean 'token_file'?"
    ),
    "options that are no JSON": Mutant(PD, '"interface_v1": 1,', '"interface_v1": ,', "not JSON"),
    "engine of no token": Mutant(
        PD, "mountPath: /etc/kvstore-token, ", "mountPath: /etc/token, ", "lies on no Secret"
    ),
    "discovery of no role": Mutant(
        PD, "- name: master\n    replicas", "- name: cache\n    replicas", "is no role of its group"
    ),
    "token of the API for nobody": Mutant(
        PD,
        "kind: ServiceAccount\nmetadata:\n  name: sglang-router",
        "kind: ServiceAccount\nmetadata:\n  name: router",
        "there is no ServiceAccount sglang-router",
    ),
    "autoscaler of no adapter": Mutant(
        STORE,
        MONITOR,
        AUTOSCALER.replace("KIND", "RoleBasedGroupScalingAdapter") + MONITOR,
        "kvstore-store is no adapter: <rbg>-<role> of a role with scalingAdapter.enable",
    ),
    "autoscaler of a group": Mutant(
        STORE,
        MONITOR,
        AUTOSCALER.replace("KIND", "RoleBasedGroup") + MONITOR,
        "a RoleBasedGroup has no scale",
    ),
    "network of the machine": Mutant(
        VLLM,
        "      priorityClassName: vllm-cache\n",
        "      priorityClassName: vllm-cache\n      hostNetwork: true\n",
        "hostNetwork is not admitted at the Pod Security level baseline",
    ),
    "StatefulSet without names": Mutant(
        VLLM, "clusterIP: None", "clusterIP: 10.0.0.1", "'cache-pods' is no headless Service here"
    ),
    "selector of other pods": Mutant(
        VLLM,
        "  selector:\n    matchLabels: {app.kubernetes.io/name: vllm}\n  template",
        "  selector:\n    matchLabels: {app.kubernetes.io/name: llm}\n  template",
        "its selector does not find its own template",
    ),
    "GPU without a limit": Mutant(
        VLLM,
        'limits: {cpu: "16", memory: 96Gi, nvidia.com/gpu: "1"}',
        'limits: {cpu: "16", memory: 96Gi}',
        "nvidia.com/gpu needs a limit that equals its request",
    ),
    "key that no ConfigMap has": Mutant(
        VLLM, "key: kv-transfer-config.json", "key: kv.json", "has no key kv.json"
    ),
    "secret in the clear": Mutant(
        VLLM,
        "apiVersion: scheduling.k8s.io/v1\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: vllm}\nstringData: {a: b}\n"
        "---\n"
        "apiVersion: scheduling.k8s.io/v1\n",
        "holds a secret in the clear",
    ),
}


def mutated(mutant: Mutant) -> list[Object]:
    text = (ROOT / mutant.file).read_text()
    assert mutant.before in text, f"{mutant.file} has no {mutant.before!r}"
    beside = read(ROOT / PD) if mutant.file == WARMUP else []
    return beside + parse(text.replace(mutant.before, mutant.after), mutant.file)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_manifest_is_refused_with_its_sentence(name: str, schemas: Schemas) -> None:
    mutant = MUTANTS[name]
    if mutant.by_schema and not HAS_CRDS:
        pytest.skip(f"no CRDs of RBG in {tool.rbg_crds()}: unknown fields of a group pass")
    said = [str(problem) for problem in tool.validate(mutated(mutant), schemas)]
    assert any(mutant.said in line for line in said), said


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2", 2),
        (2, 2),
        ("1.5Gi", 1.5 * (1 << 30)),
        ("500m", 0.5),
        ("1e3", 1000),
        ("1k", 1000),
        ("4gb", None),
        ("1KiB", None),
        ("-1", None),
        ("", None),
        (True, None),
        (None, None),
    ],
)
def test_quantities_are_kubernetes_own(text: object, amount: float | None) -> None:
    assert quantity(text) == amount


def test_a_disk_of_the_kubelet_needs_a_request(tmp_path: Path, schemas: Schemas) -> None:
    documents = read(ROOT / NVME)
    group = next(one for one in documents if one["kind"] == "RoleBasedGroup")
    spec = group["spec"]["roles"][1]["standalonePattern"]["template"]["spec"]
    spec["volumes"][-1] = {"name": "nvme", "emptyDir": {"sizeLimit": "200Gi"}}
    (problem,) = tool.validate(documents, schemas)
    assert "on the kubelet's disk without a request" in problem.sentence
    for side in ("requests", "limits"):
        spec["containers"][0]["resources"][side]["ephemeral-storage"] = "200Gi"
    assert tool.validate(documents, schemas) == []


def test_a_store_in_a_group_that_recreates_pods_is_refused(schemas: Schemas) -> None:
    documents = read(ROOT / STORE)
    group = next(one for one in documents if one["kind"] == "RoleBasedGroup")
    role = group["spec"]["roles"][1]
    template = role.pop("standalonePattern")["template"]
    role["leaderWorkerPattern"] = {
        "size": 1,
        "template": template,
        "restartPolicyConfig": {"type": "RecreateRoleInstanceOnPodRestart"},
    }
    said = [problem.sentence for problem in tool.validate(documents, schemas)]
    assert any("makes a new pod of every restart" in sentence for sentence in said), said


def test_a_cache_in_an_init_container_is_refused(schemas: Schemas) -> None:
    documents = read(ROOT / STORE)
    group = next(one for one in documents if one["kind"] == "RoleBasedGroup")
    spec = group["spec"]["roles"][1]["standalonePattern"]["template"]["spec"]
    sidecar = {**spec["containers"][0], "restartPolicy": "Always"}
    spec["initContainers"] = [sidecar]
    spec["containers"] = [{**spec["containers"][0], "name": "other"}]
    said = [problem.sentence for problem in tool.validate(documents, schemas)]
    assert any("never changes in place" in sentence for sentence in said), said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "while parsing"),
        ("- 1", "document 1 is no object of Kubernetes"),
        ("kind: A", "document 1 is no object of Kubernetes"),
        ("apiVersion: v1\nkind: Pod\nmetadata: 1", "document 1 is no object"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: b}}", "document 1 (Pod) has no name"),
        ("apiVersion: v1\nkind: [Pod]\nmetadata: {name: a}", "document 1 is no object"),
        ("kind: List\nitems: [1]", "document 1 is no object"),
        ("kind: List\nitems: 1", "document 1 is no object"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: 1}", "document 1 (Pod) has no name"),
        ("a: 1\na: 2", "key 'a' stands there twice"),
        ("[" * 2000, "recursion"),
    ],
)
def test_what_is_no_manifest_is_said(text: str, said: str) -> None:
    with pytest.raises(ManifestError, match=r"^manifest\.yaml: ") as caught:
        parse(text, "manifest.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kustomization", "said"),
    [
        ("generators: []", "understood are only"),
        ("resources: [../store.yaml]", "takes no file outside of its folder"),
        ("resources: [.]", "names itself"),
        ("resources: [a.yaml]\npatches: [{target: {kind: Secret}}]", "not understood: KeyError"),
        ("resources: 1", "not understood: TypeError"),
        ("a: [", "not understood: ParserError"),
        ("resources: [a.yaml]\npatches: [{path: b.yaml}]", "not understood: FileNotFoundError"),
        ("resources: [a.yaml]\npatches: [{target: {kind: Pod}, patch: a}]", "finds no object"),
        (
            "resources: [a.yaml]\npatches: [{target: {kind: Secret}, "
            "patch: '[{op: add, path: /a/b, value: 1}]'}]",
            "Secret/s",
        ),
    ],
)
def test_a_wrong_kustomization_is_said(tmp_path: Path, kustomization: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n")
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    with pytest.raises(ManifestError, match=r"kustomization\.yaml: ") as caught:
        read(tmp_path)
    assert said in str(caught.value)


def test_without_schemas_another_shape_is_a_sentence(tmp_path: Path) -> None:
    group = "apiVersion: workloads.x-k8s.io/v1alpha2\nkind: RoleBasedGroup\nmetadata: {name: a}\n"
    for spec in ("spec: {roles: [1]}", "spec: {roles: 1}", "spec: 1", ""):
        documents = parse(group + spec, "a")
        (found,) = tool.validate(documents, Schemas(tool.KUBERNETES, [tmp_path]))
        assert "has another shape" in found.sentence
        assert "no CRDs of workloads.x-k8s.io" in found.sentence


def test_the_command_says_what_it_did_not_check(tmp_path: Path) -> None:
    done = CliRunner().invoke(tool.main, ["--crds", str(tmp_path), str(ROOT / STORE)])
    assert done.exit_code == 0, done.output
    assert "RoleBasedGroup/kvstore: no CRDs of workloads.x-k8s.io" in done.stderr
    assert "10 objects, 0 problems" in done.stdout
    done = CliRunner().invoke(tool.main, ["--json", str(ROOT / "deploy/rbg/warmup.yaml")])
    assert done.exit_code == 1
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["sentence"] == "there is no RoleBasedGroup sglang-pd in sglang"
    done = CliRunner().invoke(tool.main, [str(tmp_path / "none.yaml")])
    assert done.exit_code == 2 and "No such file" in done.stderr
    done = CliRunner().invoke(tool.main, [str(tmp_path)])
    assert done.exit_code == 2 and "has no kustomization.yaml" in done.stderr
