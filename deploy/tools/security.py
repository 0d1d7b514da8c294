"""Pod Security: what the level of a namespace does not admit."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.tools.objects import Object, Objects, Pod

ENFORCE = "pod-security.kubernetes.io/enforce"
LEVELS = ("privileged", "baseline", "restricted")
_ALLOWED_CAPABILITIES = {"NET_BIND_SERVICE"}
_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}


def level_of(pod: Pod, objects: Objects, default: str) -> str:
    """The level that a pod's namespace enforces; `default` where no namespace says."""
    found = objects.find("Namespace", pod.namespace)
    labels = ((found or {}).get("metadata") or {}).get("labels") or {}
    return str(labels.get(ENFORCE, default))


def check(pod: Pod, level: str) -> Iterator[str]:
    """Check a pod's template against a level; yields sentences."""
    if level == "privileged":
        return
    spec = pod.spec
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} is not admitted at the Pod Security level {level}"
    for volume in spec.get("volumes") or []:
        kind = next(iter(set(volume) - {"name"}), "")
        if kind == "hostPath" or (level == "restricted" and kind not in _VOLUMES):
            at = f"volume {volume.get('name')}"
            yield f"{at}: {kind} is not admitted at the Pod Security level {level}"
    for container in pod.containers():
        for sentence in _container(container, spec, level):
            yield f"container {container.get('name')}: {sentence} (Pod Security level {level})"


def _container(container: Object, spec: Object, level: str) -> Iterator[str]:
    context = container.get("securityContext") or {}
    both = {**(spec.get("securityContext") or {}), **context}
    capabilities = context.get("capabilities") or {}
    if context.get("privileged"):
        yield "privileged"
    if any("hostPort" in port for port in container.get("ports") or []):
        yield "has a hostPort"
    if level != "restricted":
        return
    if both.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if "ALL" not in (capabilities.get("drop") or []):
        yield "does not drop ALL capabilities"
    if set(capabilities.get("add") or []) - _ALLOWED_CAPABILITIES:
        yield "adds capabilities"
    if (both.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccompProfile"
