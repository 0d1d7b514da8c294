"""The objects of manifests, and the pods that they make."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

Object = dict[str, Any]

GROUP_VERSION = "workloads.x-k8s.io/v1alpha2"
LABELS = "rbg.workloads.x-k8s.io/"
_PATTERNS = ("standalonePattern", "leaderWorkerPattern", "customComponentsPattern")
_SUFFIXES = {
    "": 1,
    "m": Decimal("0.001"),
    "u": Decimal("0.000001"),
    "n": Decimal("0.000000001"),
    **{s: 1000**i for i, s in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{f"{s}i": 1024**i for i, s in enumerate(("K", "M", "G", "T", "P", "E"), 1)},
}
_QUANTITY = re.compile(r"\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?")
# Lists that Kubernetes merges by a key in a strategic merge patch.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}


def quantity(value: object) -> Decimal | None:
    """Read a quantity of Kubernetes, such as 500m, 8Gi or 2; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return None
    number, suffix = match[1], match[2] or ""
    try:
        if suffix in _SUFFIXES:
            return Decimal(number) * Decimal(_SUFFIXES[suffix])
        return Decimal(number + suffix)
    except InvalidOperation:
        return None


def namespace(one: Object) -> str:
    """Namespace of an object; "default" where none is written."""
    return str(one["metadata"].get("namespace", "default"))


def name_of(one: Object) -> str:
    """Kind and name, for messages."""
    return f"{one['kind']}/{one['metadata'].get('name', '')}"


@dataclass
class Pod:
    """A template that makes pods."""

    owner: Object
    where: str
    """Path of the template within its owner."""
    template: Object
    replicas: int | None
    """None: as many as there are machines, or unknown."""
    role: str = ""
    in_place: bool = False
    """Its image may change without a new pod."""
    pattern: Object = field(default_factory=dict)

    @property
    def spec(self) -> Object:
        """The pod's spec."""
        return self.template.get("spec") or {}

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its pods, with those that RBG adds."""
        labels = dict((self.template.get("metadata") or {}).get("labels") or {})
        if self.role:
            labels[f"{LABELS}group-name"] = self.owner["metadata"]["name"]
            labels[f"{LABELS}role-name"] = self.role
        return labels

    @property
    def namespace(self) -> str:
        """Namespace of its pods."""
        return namespace(self.owner)

    def containers(self) -> Iterator[Object]:
        """Init containers and containers."""
        yield from self.spec.get("initContainers") or []
        yield from self.spec.get("containers") or []

    def volume(self, name: str) -> Object | None:
        """The volume of that name."""
        return next((v for v in self.spec.get("volumes") or [] if v.get("name") == name), None)


def merge(base: Any, patch: Any, key: str = "") -> Any:
    """Apply a strategic merge patch, as RBG does to role templates."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = dict(base)
        for name, value in patch.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = merge(base[name], value, name) if name in base else value
        return merged
    by = _MERGE_KEYS.get(key)
    if isinstance(base, list) and isinstance(patch, list) and by:
        merged_list = [copy.deepcopy(one) for one in base]
        for one in patch:
            at = next((i for i, b in enumerate(merged_list) if b.get(by) == one.get(by)), None)
            if at is None:
                merged_list.append(one)
            else:
                merged_list[at] = merge(merged_list[at], one)
        return merged_list
    return patch


def _of_role(owner: Object, role: Object) -> Iterator[Pod]:
    """Pods of one role of a group, role templates merged in."""
    rolling = (role.get("rolloutStrategy") or {}).get("rollingUpdate") or {}
    in_place = str(rolling.get("type", "")).lower().startswith("inplace")
    shared = {t.get("name"): t.get("template") for t in owner["spec"].get("roleTemplates") or []}
    at = f"spec.roles[{role.get('name')}]"
    for key in _PATTERNS:
        pattern = role.get(key)
        if not isinstance(pattern, dict):
            continue
        templates = [("template", pattern.get("template"))]
        if key == "customComponentsPattern":
            templates = [
                (f"components[{c.get('name')}].template", c.get("template"))
                for c in pattern.get("components") or []
            ]
        elif "templateRef" in pattern:
            named = shared.get(pattern["templateRef"].get("name")) or {}
            merged = merge(named, pattern["templateRef"].get("patch") or {})
            templates = [("templateRef", merged)]
        for path, template in templates:
            if isinstance(template, dict):
                yield Pod(
                    owner,
                    f"{at}.{key}.{path}",
                    template,
                    int(role.get("replicas", 1)),
                    str(role.get("name")),
                    in_place,
                    pattern,
                )


def pods_of(one: Object) -> Iterator[Pod]:
    """The templates of an object that make pods."""
    spec = one.get("spec")
    if not isinstance(spec, dict):
        return
    match one["kind"]:
        case "RoleBasedGroup":
            for role in spec.get("roles") or []:
                yield from _of_role(one, role)
        case "Deployment" | "StatefulSet" | "ReplicaSet":
            yield Pod(one, "spec.template", spec.get("template") or {}, spec.get("replicas", 1))
        case "DaemonSet" | "Job":
            yield Pod(one, "spec.template", spec.get("template") or {}, None)
        case "CronJob":
            job = (spec.get("jobTemplate") or {}).get("spec") or {}
            yield Pod(one, "spec.jobTemplate.spec.template", job.get("template") or {}, None)
        case "Pod":
            yield Pod(one, "", one, 1)


class Objects:
    """Everything that is applied together."""

    def __init__(self, documents: list[Object]) -> None:
        """Index the documents by kind."""
        self.all = documents
        self.pods = [pod for one in documents for pod in pods_of(one)]

    def of_kind(self, kind: str) -> Iterator[Object]:
        """Objects of a kind."""
        return (one for one in self.all if one["kind"] == kind)

    def find(self, kind: str, name: str, where: str | None = None) -> Object | None:
        """An object by its name.

        Args:
            kind: of the object.
            name: of the object.
            where: its namespace; None for what has none.
        """
        for one in self.of_kind(kind):
            if one["metadata"].get("name") == name and where in (None, namespace(one)):
                return one
        return None

    def selected(self, selector: Object | None, where: str) -> list[Pod]:
        """Pods in a namespace that a label selector finds."""
        return [p for p in self.pods if p.namespace == where and matches(selector or {}, p.labels)]


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Say whether a label selector (matchLabels, matchExpressions) finds these labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for term in selector.get("matchExpressions") or []:
        has, values = labels.get(term.get("key")), term.get("values") or []
        found = {
            "In": has in values,
            "NotIn": has not in values,
            "Exists": has is not None,
            "DoesNotExist": has is None,
        }.get(term.get("operator"), False)
        if not found:
            return False
    return True
