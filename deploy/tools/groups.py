"""What RBG 0.8.0-alpha.5 refuses or ignores in a RoleBasedGroup and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from deploy.tools.objects import LABELS, Object, Objects, name_of, namespace

_UPDATE_TYPES = ("InPlaceIfPossible", "InPlaceOnly", "RecreatePod")
_MODES = {"Preferred", "Required"}
_LONGEST = 63


def check(objects: Objects) -> Iterator[tuple[Object, str]]:
    """Check the groups of some objects, and what refers to them; yields object and sentence."""
    groups = list(objects.of_kind("RoleBasedGroup"))
    for group in groups:
        for sentence in _group(group, objects):
            yield group, sentence
    for one in objects.all:
        checks = {
            "CoordinatedPolicy": _policy,
            "HorizontalPodAutoscaler": _autoscaler,
            "PodDisruptionBudget": _budget,
            "RoleBasedGroupWarmup": _warmup,
            "Service": _service,
        }
        if one["kind"] in checks:
            for sentence in checks[one["kind"]](one, objects, groups):
                yield one, sentence


def roles_of(group: Object) -> dict[str, Object]:
    """The roles of a group by name."""
    return {str(role.get("name")): role for role in group["spec"].get("roles") or []}


def _group(group: Object, objects: Objects) -> Iterator[str]:
    name, roles = group["metadata"]["name"], roles_of(group)
    if group["apiVersion"].endswith("v1alpha1"):
        yield "v1alpha1 is converted, and stored as v1alpha2: write v1alpha2"
    if len(roles) < len(group["spec"].get("roles") or []):
        yield "a role's name stands there twice"
    templates = {t.get("name") for t in group["spec"].get("roleTemplates") or []}
    for role_name, role in roles.items():
        at = f"role {role_name}"
        if role_name == name or role_name.startswith(f"{name}-"):
            yield f"{at}: its pods are named {name}-{role_name}-0; leave {name} out"
        service = f"s-{name}-{role_name}"
        if len(service) > _LONGEST:
            yield f"{at}: its Service {service} is cut to {_LONGEST} characters"
        for check_one in (_patterns, _rollout, _dependencies, _scheduling):
            for sentence in check_one(role, roles, templates):
                yield f"{at}: {sentence}"
    cycle = _cycle({key: list(role.get("dependencies") or []) for key, role in roles.items()})
    if cycle:
        yield f"roles depend on each other in a circle: {' → '.join(cycle)}"


def _patterns(role: Object, roles: Any, templates: set[str]) -> Iterator[str]:
    names = ("standalonePattern", "leaderWorkerPattern", "customComponentsPattern")
    there = [key for key in names if key in role]
    if len(there) != 1:
        yield f"needs exactly one of {', '.join(names)}"
    for key in there:
        pattern = role[key] or {}
        if "template" in pattern and "templateRef" in pattern:
            yield f"{key}: template and templateRef exclude each other"
        named = (pattern.get("templateRef") or {}).get("name")
        if named and named not in templates:
            yield f"{key}: there is no roleTemplate {named}"
        if "restartPolicy" in pattern:
            yield f"{key}: restartPolicy is superseded by restartPolicyConfig"


def _scaled(value: Any, replicas: int, up: bool) -> int | None:
    text = str(value)
    if text.endswith("%") and text[:-1].isdigit():
        part = Decimal(text[:-1]) * replicas / 100
        return int(part.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR))
    return int(text) if text.isdigit() else None


def _rollout(role: Object, roles: Any, templates: Any) -> Iterator[str]:
    rolling = (role.get("rolloutStrategy") or {}).get("rollingUpdate") or {}
    replicas = int(role.get("replicas", 1))
    kind = rolling.get("type")
    if kind is not None and kind not in _UPDATE_TYPES:
        known = ", ".join(_UPDATE_TYPES)
        yield f"rollingUpdate.type {kind!r} must be {known}; RBG checks no spelling"
    surge = _scaled(rolling.get("maxSurge", 0), replicas, True)
    unavailable = _scaled(rolling.get("maxUnavailable", 1), replicas, False)
    if replicas and surge == 0 and unavailable == 0:
        yield "maxSurge and maxUnavailable are both 0: nothing could be updated, and RBG refuses it"
    if surge is None or unavailable is None:
        yield "maxSurge and maxUnavailable must be numbers, or percentages such as 25%"
    partition = _scaled(rolling.get("partition", 0), replicas, True)
    if replicas and (partition is None or partition >= replicas):
        yield f"partition must be below replicas ({replicas})"
    grace = (rolling.get("inPlaceUpdateStrategy") or {}).get("gracePeriodSeconds")
    if grace:
        yield "inPlaceUpdateStrategy.gracePeriodSeconds delays nothing; leave it out"


def _dependencies(role: Object, roles: dict[str, Object], templates: Any) -> Iterator[str]:
    for other in role.get("dependencies") or []:
        if other == role["name"]:
            yield "depends on itself"
        elif other not in roles:
            yield f"depends on {other}, which is no role"
        elif int(roles[other].get("replicas", 1)) > 1:
            yield (
                f"depends on {other}, all of whose replicas must then be ready at every reconcile: "
                "depend on a role of one replica, or on none"
            )


def _cycle(graph: dict[str, list[str]]) -> list[str]:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in graph.get(name, []):
            found = visit(other, [*path, name]) if other != name else []
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def _scheduling(role: Object, roles: Any, templates: Any) -> Iterator[str]:
    annotations = role.get("annotations") or {}
    mode = annotations.get(f"{LABELS}role-inplace-scheduling")
    if mode is not None and mode not in _MODES:
        yield f"role-inplace-scheduling must be Preferred or Required, not {mode!r}"


def _policy(one: Object, objects: Objects, groups: list[Object]) -> Iterator[str]:
    name = one["metadata"]["name"]
    group = objects.find("RoleBasedGroup", name, namespace(one))
    if group is None:
        yield f"there is no RoleBasedGroup {name}: RBG finds a policy by the group's own name only"
        return
    for policy in one["spec"].get("policies") or []:
        for role in policy.get("roles") or []:
            if role not in roles_of(group):
                yield f"policy {policy.get('name')}: {role} is no role of {name}"


def _autoscaler(one: Object, objects: Objects, groups: list[Object]) -> Iterator[str]:
    target = one["spec"].get("scaleTargetRef") or {}
    where = namespace(one)
    if target.get("kind") == "RoleBasedGroup":
        yield "a RoleBasedGroup has no scale: its roles' RoleBasedGroupScalingAdapters do"
    if target.get("kind") == "RoleBasedGroupScalingAdapter":
        own = {
            f"{group['metadata']['name']}-{name}"
            for group in groups
            if namespace(group) == where
            for name, role in roles_of(group).items()
            if (role.get("scalingAdapter") or {}).get("enable")
        }
        own |= {a["metadata"]["name"] for a in objects.of_kind("RoleBasedGroupScalingAdapter")}
        if target.get("name") not in own:
            wanted = "<rbg>-<role> of a role with scalingAdapter.enable"
            yield f"{target.get('name')} is no adapter: {wanted}"


def _budget(one: Object, objects: Objects, groups: list[Object]) -> Iterator[str]:
    spec = one["spec"]
    chosen = objects.selected(spec.get("selector"), namespace(one))
    if not chosen:
        yield "its selector finds no pod"
        return
    if any(pod.role for pod in chosen) and not isinstance(spec.get("minAvailable"), int):
        yield "for RBG's pods needs an integer minAvailable: all else blocks every eviction"
    replicas = sum(pod.replicas or 0 for pod in chosen)
    least = spec.get("minAvailable")
    if isinstance(least, int) and 0 < replicas <= least:
        yield f"minAvailable {least} of {replicas}: no machine could be drained"


def _warmup(one: Object, objects: Objects, groups: list[Object]) -> Iterator[str]:
    target = one["spec"].get("targetRoleBasedGroup")
    if not target:
        return
    group = objects.find("RoleBasedGroup", str(target.get("name")), namespace(one))
    if group is None:
        yield f"there is no RoleBasedGroup {target.get('name')} in {namespace(one)}"
        return
    for role in target.get("roles") or {}:
        if role not in roles_of(group):
            yield f"{role} is no role of {name_of(group)}"


def _service(one: Object, objects: Objects, groups: list[Object]) -> Iterator[str]:
    for group in groups:
        for role in roles_of(group):
            taken = f"{group['metadata']['name']}-{role}"
            if one["metadata"]["name"] == taken and namespace(one) == namespace(group):
                yield f"RBG takes over a Service named {taken} (<rbg>-<role>): rename it"
