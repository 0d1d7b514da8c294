"""What a cluster refuses or ignores in a pod's template, beyond its schema."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from deploy.tools.objects import Object, Objects, Pod, quantity

_VARIABLE = re.compile(r"(\$?)\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_KUBERNETES = re.compile(r"(KUBERNETES|RBG)_[A-Z0-9_]+$")
"""Variables that every pod gets, from the kubelet or from RBG."""


def check(pod: Pod, objects: Objects) -> Iterator[str]:
    """Check a pod's template; yields sentences that begin with a path."""
    spec = pod.spec
    yield from _twice(spec.get("volumes"), "name", "volumes")
    yield from _twice(list(pod.containers()), "name", "containers")
    for volume in spec.get("volumes") or []:
        yield from _volume(volume, pod, objects)
    names = {volume.get("name") for volume in spec.get("volumes") or []}
    names |= _claim_templates(pod)
    for container in pod.containers():
        at = f"container {container.get('name')}"
        for check_one in (_mounts, _ports_and_probes, _resources, _environment, _user, _image):
            for sentence in check_one(container, pod, objects, names):
                yield f"{at}: {sentence}"
    used = {m.get("name") for c in pod.containers() for m in c.get("volumeMounts") or []}
    for name in sorted(str(name) for name in names - used):
        yield f"volumes: {name} is mounted by no container"
    yield from _spread(pod)
    yield from _in_place(pod)
    yield from _named(pod, objects)


def _twice(items: list[Object] | None, key: str, where: str) -> Iterator[str]:
    counts = Counter(str(item.get(key)) for item in items or [])
    for name in (name for name, count in counts.items() if count > 1):
        yield f"{where}: {key} {name} stands there twice"


def _claim_templates(pod: Pod) -> set[object]:
    templates = (pod.owner.get("spec") or {}).get("volumeClaimTemplates") or []
    return {template.get("metadata", {}).get("name") for template in templates}


def _volume(volume: Object, pod: Pod, objects: Objects) -> Iterator[str]:
    at = f"volume {volume.get('name')}"
    if len(volume) != 2:
        yield f"{at}: needs exactly one kind of volume"
    sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
    for source in sources:
        if "configMap" in source:
            given = source["configMap"]
            yield from (f"{at}: {one}" for one in _config_map(given, pod, objects))
    claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
    if claim and not objects.find("PersistentVolumeClaim", claim, pod.namespace):
        yield f"{at}: there is no PersistentVolumeClaim {claim}"
    empty = volume.get("emptyDir") or {}
    if "sizeLimit" in empty and quantity(empty["sizeLimit"]) is None:
        yield f"{at}: sizeLimit {empty['sizeLimit']!r} is no quantity"
    if empty.get("medium") == "Memory" and "sizeLimit" not in empty:
        yield f"{at}: memory without sizeLimit may take half of the machine"


def _config_map(given: Object, pod: Pod, objects: Objects) -> Iterator[str]:
    if given.get("optional"):
        return
    found = objects.find("ConfigMap", str(given.get("name")), pod.namespace)
    if found is None:
        yield f"there is no ConfigMap {given.get('name')} in {pod.namespace}"
        return
    for item in given.get("items") or []:
        if item.get("key") not in (found.get("data") or {}):
            yield f"ConfigMap {given['name']} has no key {item.get('key')}"


def _mounts(c: Object, pod: Pod, objects: Objects, volumes: set[object]) -> Iterator[str]:
    yield from _twice(c.get("volumeMounts"), "mountPath", "volumeMounts")
    for mount in c.get("volumeMounts") or []:
        if mount.get("name") not in volumes:
            yield f"mounts {mount.get('name')}, which is no volume of its pod"
        volume = pod.volume(str(mount.get("name"))) or {}
        if ("subPath" in mount or "subPathExpr" in mount) and {"configMap", "secret"} & set(volume):
            yield f"mounts {mount['name']} by subPath, which never sees a change of it"


def _ports_and_probes(c: Object, pod: Pod, objects: Objects, _: object) -> Iterator[str]:
    ports = c.get("ports") or []
    yield from _twice([p for p in ports if "name" in p], "name", "ports")
    yield from _twice(
        [{"p": f"{p.get('containerPort')}/{p.get('protocol', 'TCP')}"} for p in ports], "p", "ports"
    )
    known = {p.get("containerPort") for p in ports} | {p.get("name") for p in ports}
    hooks = c.get("lifecycle") or {}
    probes = {key: c[key] for key in _PROBES if key in c}
    for key, probe in {**probes, **hooks}.items():
        if not isinstance(probe, dict):
            continue
        for kind in ("httpGet", "tcpSocket", "grpc"):
            port = (probe.get(kind) or {}).get("port")
            if port is not None and port not in known:
                yield f"{key}: port {port} is none of its ports"
        kinds = {"httpGet", "tcpSocket", "grpc", "exec", "sleep"} & set(probe)
        if len(kinds) != 1:
            yield f"{key}: needs exactly one of httpGet, tcpSocket, grpc and exec"
    for key in ("startupProbe", "livenessProbe"):
        if probes.get(key, {}).get("successThreshold", 1) != 1:
            yield f"{key}: successThreshold must be 1"
    sidecar = c.get("restartPolicy") == "Always"
    if c in (pod.spec.get("initContainers") or []) and not sidecar and (probes or hooks):
        yield "an init container has no probes and no lifecycle"


def _resources(c: Object, pod: Pod, objects: Objects, _: object) -> Iterator[str]:
    resources = c.get("resources") or {}
    read = {}
    for side in ("requests", "limits"):
        for name, value in (resources.get(side) or {}).items():
            amount = quantity(value)
            if amount is None:
                yield f"resources.{side}.{name}: {value!r} is no quantity, such as 500m or 8Gi"
            else:
                read[side, name] = amount
    for (side, name), amount in read.items():
        if side != "requests":
            continue
        limit = read.get(("limits", name))
        if limit is not None and amount > limit:
            yield f"resources: requests more {name} than its limit"
        if "/" in name and limit != amount:
            yield f"resources: {name} needs a limit that equals its request"
    for (side, name), amount in read.items():
        if name in ("memory", "ephemeral-storage") and amount != int(amount):
            yield f"resources.{side}.{name}: a part of a byte (m is a thousandth)"


def _environment(c: Object, pod: Pod, objects: Objects, _: object) -> Iterator[str]:
    env = c.get("env") or []
    yield from _twice(env, "name", "env")
    from_maps = set()
    for source in c.get("envFrom") or []:
        given = source.get("configMapRef") or {}
        if given:
            yield from (f"envFrom: {one}" for one in _config_map(given, pod, objects))
            found = objects.find("ConfigMap", str(given.get("name")), pod.namespace) or {}
            from_maps |= {source.get("prefix", "") + key for key in found.get("data") or {}}
    opaque = any("secretRef" in source for source in c.get("envFrom") or [])
    before: set[str] = set(from_maps)
    for one in env:
        if not opaque:
            yield from _undefined(f"env {one.get('name')}", str(one.get("value", "")), before)
        before.add(str(one.get("name")))
        key = (one.get("valueFrom") or {}).get("configMapKeyRef")
        if key:
            items = [{"key": key.get("key")}]
            given = {**key, "items": items}
            yield from (f"env {one['name']}: {s}" for s in _config_map(given, pod, objects))
    if not opaque:
        for word in [*(c.get("command") or []), *(c.get("args") or [])]:
            yield from _undefined("command", str(word), before)


def _undefined(where: str, text: str, known: set[str]) -> Iterator[str]:
    for escaped, name in _VARIABLE.findall(text):
        if not escaped and name not in known and not _KUBERNETES.match(name):
            yield f"{where}: $({name}) is not defined, and stays as it is"


def _user(c: Object, pod: Pod, objects: Objects, _: object) -> Iterator[str]:
    own = {**(pod.spec.get("securityContext") or {}), **(c.get("securityContext") or {})}
    if own.get("runAsNonRoot") and own.get("runAsUser") == 0:
        yield "runs as user 0 in spite of runAsNonRoot: the kubelet does not start it"
    if own.get("privileged") and own.get("allowPrivilegeEscalation") is False:
        yield "cannot be privileged with allowPrivilegeEscalation false"


def _image(c: Object, pod: Pod, objects: Objects, _: object) -> Iterator[str]:
    image = str(c.get("image", ""))
    name, _sep, tag = image.rpartition("/")[2].partition(":")
    if "@sha256:" not in image and (not name or not tag or tag == "latest"):
        yield f"image {image!r} names no version"


def _spread(pod: Pod) -> Iterator[str]:
    for one in pod.spec.get("topologySpreadConstraints") or []:
        selector = (one.get("labelSelector") or {}).get("matchLabels") or {}
        if any(pod.labels.get(key) != value for key, value in selector.items()) or not selector:
            yield "topologySpreadConstraints: its labelSelector does not find the pod itself"


def _in_place(pod: Pod) -> Iterator[str]:
    """RBG never changes an init container in place: an image that both have makes new pods."""
    images = {c.get("image") for c in pod.spec.get("containers") or []}
    for container in pod.spec.get("initContainers") or []:
        if pod.in_place and container.get("image") in images:
            yield (
                f"init container {container.get('name')} has the image of a container: where both "
                "change, RBG makes new pods"
            )


def _named(pod: Pod, objects: Objects) -> Iterator[str]:
    """Objects that a pod names, which have to be applied with it."""
    account = pod.spec.get("serviceAccountName")
    if account not in (None, "", "default") and not objects.find(
        "ServiceAccount", str(account), pod.namespace
    ):
        yield f"there is no ServiceAccount {account} in {pod.namespace}"
    priority = str(pod.spec.get("priorityClassName", "system-"))
    if not priority.startswith("system-") and not objects.find("PriorityClass", priority):
        yield f"there is no PriorityClass {priority}"
