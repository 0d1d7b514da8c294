"""What a kvstore server or an engine would not start with, or do without saying so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from deploy.tools.objects import Object, Objects, Pod, quantity
from kvstore import config
from kvstore.addresses import masters_of
from kvstore.config import CommonConfig, MasterConfig, NodeConfig
from kvstore.errors import KvstoreError
from kvstore.integrations.sglang.options import Options as SglangOptions
from kvstore.integrations.vllm.options import Options as VllmOptions

# Beside the segment, in its folder: an index (two while a restart builds a new one) and the slots.
INDEX_SHARE = 1 / 16
SLOT_BYTES = 32 << 20
PROCESS_BYTES = 1 << 30
"""Of the process itself."""
_KINDS: dict[str, type[CommonConfig]] = {"kvstore-master": MasterConfig, "kvstore-node": NodeConfig}
_HICACHE = "--hicache-storage-backend-extra-config"
_TRANSFER = "--kv-transfer-config"
_ANY_IPV4 = "0.0.0.0"


def check(pod: Pod, objects: Objects) -> Iterator[str]:
    """Check the servers and engines of a pod; yields sentences that begin with a path."""
    for container in pod.containers():
        words = _words(container, pod, objects)
        program = PurePosixPath(words[0]).name if words else ""
        found: Iterator[str] = iter(())
        if program in _KINDS:
            found = _server(_KINDS[program], words, container, pod, objects)
        elif any(word.startswith((_HICACHE, _TRANSFER)) for word in words):
            found = _engine(words, container, pod, objects)
        for sentence in found:
            yield f"container {container.get('name')}: {sentence}"


def _words(container: Object, pod: Pod, objects: Objects) -> list[str]:
    """The command line, with the variables that are known here."""
    known = {}
    for one in container.get("env") or []:
        key = (one.get("valueFrom") or {}).get("configMapKeyRef")
        value = one.get("value")
        if key:
            found = objects.find("ConfigMap", str(key.get("name")), pod.namespace) or {}
            value = (found.get("data") or {}).get(key.get("key"))
        if value is not None:
            known[f"$({one.get('name')})"] = str(value)
    words = [str(w) for w in [*(container.get("command") or []), *(container.get("args") or [])]]
    for name, value in known.items():
        words = [word.replace(name, value) for word in words]
    return words


def _option(words: list[str], name: str) -> str | None:
    for i, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and i + 1 < len(words):
            return words[i + 1]
    return None


def _mount(path: str, container: Object) -> Object | None:
    """The mount that a path lies in: the longest one."""
    mounts = [
        m
        for m in container.get("volumeMounts") or []
        if PurePosixPath(path).is_relative_to(str(m.get("mountPath")))
    ]
    return max(mounts, key=lambda m: len(m["mountPath"]), default=None)


def _volume(path: str, container: Object, pod: Pod) -> Object:
    mount = _mount(path, container)
    return (pod.volume(str(mount.get("name"))) or {}) if mount else {}


def _load(
    kind: type[CommonConfig], words: list[str], container: Object, pod: Pod, objects: Objects
) -> CommonConfig:
    """Read the configuration of a server as its process would.

    Raises:
        KvstoreError: It would be refused.
        ValueError: It is not there.
    """
    values: dict[str, Any] = {}
    path = _option(words, "--config")
    if path is not None:
        volume = _volume(path, container, pod)
        name = str((volume.get("configMap") or {}).get("name"))
        data = (objects.find("ConfigMap", name, pod.namespace) or {}).get("data") or {}
        file = PurePosixPath(path).name
        if file not in data:
            raise ValueError(f"{path} is no file of a ConfigMap that it mounts")
        try:
            values = json.loads(data[file])
        except ValueError as error:
            raise ValueError(f"ConfigMap {name}, {file}: not JSON: {error}") from None
    for flag in ("advertise-host", "auth-token-file", "segment-size", "master-address"):
        given = _option(words, f"--{flag}")
        if given is not None:
            # What the cluster fills in is any address.
            values[flag.replace("-", "_")] = "192.0.2.1" if given.startswith("$(") else given
    return config.load(kind, None, values)


def _server(
    kind: type[CommonConfig], words: list[str], container: Object, pod: Pod, objects: Objects
) -> Iterator[str]:
    try:
        settings = _load(kind, words, container, pod, objects)
    except (KvstoreError, ValueError) as error:
        yield str(error)
        return
    yield from _exposed(settings, container, pod)
    yield from _guaranteed(container)
    yield from _secured(settings, container, pod)
    if isinstance(settings, NodeConfig):
        yield from _memory(settings, container, pod)
        yield from _stopping(settings, container, pod)
        yield from _tiers(settings, container, pod)
        yield from _sockets(settings, container, pod)
        yield from _masters(settings, pod, objects)
    elif isinstance(settings, MasterConfig):
        host = settings.advertise_host
        if host and ".svc" not in host and not host.startswith("192.0.2."):
            yield f"advertise_host {host} resolves in this namespace only: NAME.NAMESPACE.svc…"
        yield from _state(settings, container, pod)


def _state(settings: MasterConfig, container: Object, pod: Pod) -> Iterator[str]:
    """Where a master keeps its state, and whether others may stand by."""
    several = (pod.replicas or 1) > 1
    if settings.state:
        if several and "grpc" in (container.get("readinessProbe") or {}):
            yield "readinessProbe: a standby opens its HTTP port alone, and would never be ready"
        return
    if several:
        yield "replicas above 1: masters share a state in etcd only (`state`)"
    claim = _volume(settings.data_dir, container, pod) if settings.data_dir else {}
    if "persistentVolumeClaim" not in claim and not _claim_template(
        claim, settings, container, pod
    ):
        yield "data_dir is not on a PersistentVolumeClaim: the state would go with the pod"


def _masters(settings: NodeConfig, pod: Pod, objects: Objects) -> Iterator[str]:
    """How a node finds its master: by an address, or by discovery."""
    if settings.master_address != NodeConfig().master_address:
        for address in settings.addresses():
            yield from _address("master_address", address, objects)
    elif settings.discovery == "dns":
        yield from _address("discovery_name", settings.discovery_name, objects)
    elif settings.discovery == "static" or not pod.role:
        yield "master_address is not set, and nothing tells it"
    elif settings.discovery_role not in {r["name"] for r in pod.owner["spec"]["roles"]}:
        yield f"discovery_role {settings.discovery_role} is no role of its group"


def _claim_template(volume: Object, settings: MasterConfig, container: Object, pod: Pod) -> bool:
    mount = _mount(settings.data_dir, container) if settings.data_dir else None
    templates = (pod.owner.get("spec") or {}).get("volumeClaimTemplates") or []
    names = {template["metadata"]["name"] for template in templates}
    return mount is not None and mount.get("name") in names


def _exposed(settings: CommonConfig, container: Object, pod: Pod) -> Iterator[str]:
    listening = {
        "block": getattr(settings, "port", 0),
        "http": getattr(settings, "http_port", 0),
        "grpc": getattr(settings, "grpc_port", 0),
    }
    ports = {p.get("name"): p.get("containerPort") for p in container.get("ports") or []}
    for name, port in listening.items():
        if port and name in ports and ports[name] != port:
            yield f"port {name} is {ports[name]}, but the configuration says {port}"
        if port and name not in ports:
            yield f"has no port named {name} ({port})"
    if settings.host == _ANY_IPV4:
        yield 'host 0.0.0.0 listens on IPv4 only: "::" listens on both'
    elif settings.host in ("127.0.0.1", "::1"):
        yield f"host {settings.host} is reached by nobody outside of the pod"
    if not settings.auth_token_file:
        yield "auth_token_file is not set: whoever reaches its ports may read and write"


def _guaranteed(container: Object) -> Iterator[str]:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in ("cpu", "memory"):
        if quantity(limits.get(name)) is None:
            yield f"has no {name} limit: no Guaranteed QoS, no static CPU"
        elif quantity(requests.get(name, limits[name])) != quantity(limits[name]):
            yield f"requests and limits of {name} differ: no Guaranteed QoS, no static CPU"
    cpus = quantity(limits.get("cpu"))
    if cpus is not None and cpus != int(cpus):
        yield f"{limits['cpu']} CPUs are no whole number: no static CPU"


def _secured(settings: CommonConfig, container: Object, pod: Pod) -> Iterator[str]:
    if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem is not true; the servers write to volumes only"
    if settings.auth_token_file:
        yield from _token(settings.auth_token_file, container, pod)
    if container in (pod.spec.get("initContainers") or []) and pod.in_place:
        yield "is an init container, whose image never changes in place: make it a container"
    policy = (pod.pattern.get("restartPolicyConfig") or {}).get("type") or pod.pattern.get(
        "restartPolicy"
    )
    if policy == "RecreateRoleInstanceOnPodRestart":
        yield f"restartPolicyConfig {policy} makes a new pod of every restart: its memory is lost"


def _token(path: str, container: Object, pod: Pod) -> Iterator[str]:
    volume = _volume(path, container, pod)
    secret = volume.get("secret")
    if secret is None:
        yield f"{path} lies on no Secret that it mounts"
    elif int(secret.get("defaultMode", 0o644)) & 0o337:
        yield f"Secret {secret.get('secretName')}: defaultMode must be 0400, or the file is refused"


def room(settings: NodeConfig) -> int:
    """Bytes that the folder of a segment takes at most."""
    return int(settings.segment_size * (1 + 2 * INDEX_SHARE)) + SLOT_BYTES


def _memory(settings: NodeConfig, container: Object, pod: Pod) -> Iterator[str]:
    needed = room(settings)
    empty = _volume(settings.directory(), container, pod).get("emptyDir") or {}
    if empty.get("medium") != "Memory":
        yield f"segment_dir {settings.directory()} is on no emptyDir of medium Memory"
    size = quantity(empty.get("sizeLimit"))
    if size is not None and size < needed:
        given = empty["sizeLimit"]
        yield f"sizeLimit {given} is below the segment and two indexes ({_mib(needed)})"
    limit = quantity((container.get("resources") or {}).get("limits", {}).get("memory"))
    if limit is not None and limit < needed + PROCESS_BYTES:
        least = _mib(needed + PROCESS_BYTES)
        yield f"memory limit is below segment, two indexes and 1 GiB for the process ({least})"


def _mib(size: int) -> str:
    return f"{-(-size // (1 << 20))}Mi"


def _stopping(settings: NodeConfig, container: Object, pod: Pod) -> Iterator[str]:
    hook = ((container.get("lifecycle") or {}).get("preStop") or {}).get("sleep") or {}
    grace_ms = (
        int(pod.spec.get("terminationGracePeriodSeconds", 30)) - int(hook.get("seconds", 0))
    ) * 1000
    if grace_ms <= settings.shutdown_grace_ms:
        yield (
            f"terminationGracePeriodSeconds, less preStop, must exceed shutdown_grace_ms "
            f"({settings.shutdown_grace_ms}): it is killed while it writes"
        )


def _tiers(settings: NodeConfig, container: Object, pod: Pod) -> Iterator[str]:
    volumes = {path: _volume(path, container, pod) for path in settings.nvme_dirs()}
    for path, volume in volumes.items():
        if not volume:
            yield f"nvme_dir {path} is on no volume, and the image is read-only"
    on_kubelet = sum("emptyDir" in volume for volume in volumes.values())
    if on_kubelet:
        requests = (container.get("resources") or {}).get("requests") or {}
        wanted = quantity(requests.get("ephemeral-storage")) or 0
        if wanted < settings.nvme_size // len(volumes) * on_kubelet:
            yield "nvme_size is on the kubelet's disk without a request for it (ephemeral-storage)"


def _sockets(settings: NodeConfig, container: Object, pod: Pod) -> Iterator[str]:
    if not settings.socket_dir:
        return
    mount = _mount(settings.socket_dir, container)
    if mount is None:
        yield f"socket_dir {settings.socket_dir} is mounted from nowhere: no engine sees it"
    elif mount.get("readOnly"):
        yield f"socket_dir {settings.socket_dir} is mounted read-only"


def _address(what: str, address: str, objects: Objects) -> Iterator[str]:
    host, _, port = address.rpartition(":")
    parts = host.split(".")
    if len(parts) > 3 and parts[3] == "svc":
        yield from _address_of_pod(what, address, parts, objects)
        return
    if len(parts) < 3 or parts[2] != "svc":
        yield f"{what} {address} resolves in one namespace only: NAME.NAMESPACE.svc…"
        return
    service = objects.find("Service", parts[0], parts[1])
    if service is None:
        yield f"{what} {address}: there is no Service {parts[0]} in {parts[1]}"
    elif port not in {str(p.get("port")) for p in service["spec"].get("ports") or []}:
        yield f"{what} {address}: Service {parts[0]} has no port {port}"


def _address_of_pod(what: str, address: str, parts: list[str], objects: Objects) -> Iterator[str]:
    """POD.SERVICE.NAMESPACE.svc…, where a StatefulSet gives the pod its name."""
    service = objects.find("Service", parts[1], parts[2])
    if service is None or service["spec"].get("clusterIP") != "None":
        yield f"{what} {address}: there is no headless Service {parts[1]} in {parts[2]}"
    elif not service["spec"].get("publishNotReadyAddresses"):
        yield f"{what} {address}: Service {parts[1]} lacks publishNotReadyAddresses"
    name, _, number = parts[0].rpartition("-")
    workload = objects.find("StatefulSet", name, parts[2])
    replicas = int((workload or {}).get("spec", {}).get("replicas", 1))
    if workload is None or not number.isdecimal() or int(number) >= replicas:
        yield f"{what} {address}: no StatefulSet makes the pod {parts[0]}"


def _engine(words: list[str], container: Object, pod: Pod, objects: Objects) -> Iterator[str]:
    try:
        options = _options(words)
    except (KvstoreError, ValueError) as error:
        yield str(error)
        return
    for address in masters_of(options.master):
        yield from _address("master", address, objects)
    if options.token_file:
        yield from _token(options.token_file, container, pod)
    if options.transport != "tcp":
        yield from _shared_socket(container, pod, objects)


def _options(words: list[str]) -> SglangOptions | VllmOptions:
    for option in (_HICACHE, _TRANSFER):
        text = _option(words, option)
        if text is None:
            continue
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{option}: not JSON: {error}") from None
        if option == _TRANSFER:
            return VllmOptions.of(values.get("kv_connector_extra_config") or {})
        return SglangOptions.of(values)
    raise ValueError("no options of kvstore")


def _shared_socket(container: Object, pod: Pod, objects: Objects) -> Iterator[str]:
    """An engine sees the sockets of its machine's node at the node's own path, read-only."""
    for path in sorted(_socket_dirs(objects)):
        mount = _mount(path, container)
        if mount is None:
            yield f"does not mount {path}, where the node's socket is: it would use TCP"
        elif not mount.get("readOnly"):
            yield f"mounts {path} for writing: readOnly is enough for an engine"
        elif "hostPath" not in (pod.volume(str(mount.get("name"))) or {}):
            yield f"{path} is not the hostPath on which the node's socket is"


def _socket_dirs(objects: Objects) -> set[str]:
    """Folders of the machine in which nodes have their sockets."""
    found = set()
    for pod in objects.pods:
        for container in pod.containers():
            words = _words(container, pod, objects)
            if not words or PurePosixPath(words[0]).name != "kvstore-node":
                continue
            try:
                settings = _load(NodeConfig, words, container, pod, objects)
            except (KvstoreError, ValueError):
                continue
            assert isinstance(settings, NodeConfig)
            if settings.socket_dir and "hostPath" in _volume(settings.socket_dir, container, pod):
                found.add(settings.socket_dir)
    return found
