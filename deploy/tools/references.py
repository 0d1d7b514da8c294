"""What refers to nothing: Services, policies, role bindings, and objects that stand there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from deploy.tools.objects import Object, Objects, matches, name_of, namespace

_CLUSTER_WIDE = {
    "Namespace",
    "PriorityClass",
    "ClusterRole",
    "ClusterRoleBinding",
    "PersistentVolume",
    "StorageClass",
}


def check(objects: Objects) -> Iterator[tuple[Object, str]]:
    """Check what objects refer to; yields object and sentence."""
    counts = Counter((one["apiVersion"], name_of(one), namespace(one)) for one in objects.all)
    for one in objects.all:
        if counts[one["apiVersion"], name_of(one), namespace(one)] > 1:
            counts[one["apiVersion"], name_of(one), namespace(one)] = 0
            yield one, "stands there twice: the last one wins"
        where = one["metadata"].get("namespace")
        spaces = {n["metadata"]["name"] for n in objects.of_kind("Namespace")}
        if spaces and where not in spaces and one["kind"] not in _CLUSTER_WIDE:
            yield one, f"namespace {where or 'default'} is none of those that are created with it"
        checks = {
            "Service": _service,
            "NetworkPolicy": _network_policy,
            "PodMonitor": _monitor,
            "RoleBinding": _binding,
            "Secret": _secret,
            "StatefulSet": _stateful_set,
            "Deployment": _own_selector,
            "DaemonSet": _own_selector,
        }
        if one["kind"] in checks:
            for sentence in checks[one["kind"]](one, objects):
                yield one, sentence


def _service(one: Object, objects: Objects) -> Iterator[str]:
    spec = one.get("spec") or {}
    if spec.get("type") == "ExternalName" or not spec.get("selector"):
        return
    chosen = objects.selected({"matchLabels": spec["selector"]}, namespace(one))
    if not chosen:
        yield "selects no pod"
        return
    named = {
        p.get("name") for pod in chosen for c in pod.containers() for p in c.get("ports") or []
    }
    for port in spec.get("ports") or []:
        target = port.get("targetPort")
        if isinstance(target, str) and target not in named:
            yield f"port {port.get('name')}: no pod has a port named {target}"


def _network_policy(one: Object, objects: Objects) -> Iterator[str]:
    spec = one.get("spec") or {}
    if not objects.selected(spec.get("podSelector"), namespace(one)):
        yield "selects no pod"
    kinds = spec.get("policyTypes") or ["Ingress"]
    for key, kind in (("ingress", "Ingress"), ("egress", "Egress")):
        if key in spec and kind not in kinds:
            yield f"has {key}, but not {kind} in policyTypes: it is ignored"


def _monitor(one: Object, objects: Objects) -> Iterator[str]:
    spec = one.get("spec") or {}
    chosen = objects.selected(spec.get("selector"), namespace(one))
    if not chosen:
        yield "selects no pod"
        return
    named = {
        p.get("name") for pod in chosen for c in pod.containers() for p in c.get("ports") or []
    }
    for endpoint in spec.get("podMetricsEndpoints") or []:
        if endpoint.get("port") not in named:
            yield f"no pod has a port named {endpoint.get('port')}"


def _binding(one: Object, objects: Objects) -> Iterator[str]:
    reference = one.get("roleRef") or {}
    if reference.get("kind") == "Role" and not objects.find(
        "Role", str(reference.get("name")), namespace(one)
    ):
        yield f"there is no Role {reference.get('name')}"
    for subject in one.get("subjects") or []:
        where = subject.get("namespace", namespace(one))
        if subject.get("kind") == "ServiceAccount" and not objects.find(
            "ServiceAccount", str(subject.get("name")), where
        ):
            yield f"there is no ServiceAccount {subject.get('name')} in {where}"


def _secret(one: Object, objects: Objects) -> Iterator[str]:
    if one.get("data") or one.get("stringData"):
        yield "holds a secret in the clear: create it with kubectl"


def _stateful_set(one: Object, objects: Objects) -> Iterator[str]:
    yield from _own_selector(one, objects)
    name = str(one["spec"].get("serviceName", ""))
    service = objects.find("Service", name, namespace(one)) or {}
    if (service.get("spec") or {}).get("clusterIP") != "None":
        yield f"serviceName {name!r} is no headless Service here: its pods have no names in DNS"


def _own_selector(one: Object, objects: Objects) -> Iterator[str]:
    labels = ((one["spec"].get("template") or {}).get("metadata") or {}).get("labels") or {}
    if not matches(one["spec"].get("selector") or {}, labels):
        yield "its selector does not find its own template"
