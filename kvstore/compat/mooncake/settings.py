"""Arguments of Mooncake's setup, and Mooncake's own configuration, in kvstore's terms.

The only place that knows Mooncake's configuration keys and its MOONCAKE_* environment names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kvstore.client.connect import Transport
from kvstore.errors import InvalidArgumentError
from kvstore.limits import DEFAULT_TIMEOUT_MS
from kvstore.options import read_object, refuse_unknown, require
from kvstore.sizes import parse_size

NAMESPACE = "mooncake"
"""Namespace of the drop-in's objects, separate from those of kvstore's own integrations: engines
encode everything that makes pages compatible in Mooncake's keys."""

_DEFAULT_SEGMENT_BYTES = 16 << 20
_DEFAULT_FILE_SEGMENT_BYTES = 3355443200
_DEFAULT_FILE_BUFFER_BYTES = 1 << 30

# The second spelling of a key → the first.
SPELLINGS = {
    "master_server_address": "master_server_addr",
    "device_name": "rdma_devices",
}
# Environment name → key of config.json.
ENVIRONMENT = {
    "MOONCAKE_LOCAL_HOSTNAME": "local_hostname",
    "MOONCAKE_TE_META_DATA_SERVER": "metadata_server",
    "MOONCAKE_GLOBAL_SEGMENT_SIZE": "global_segment_size",
    "MOONCAKE_LOCAL_BUFFER_SIZE": "local_buffer_size",
    "MOONCAKE_PROTOCOL": "protocol",
    "MOONCAKE_DEVICE": "device_name",
    "MOONCAKE_MASTER": "master_server_address",
    "MOONCAKE_TENANT_ID": "tenant_id",
    "MOONCAKE_OFFLOAD_ENABLED": "enable_ssd_offload",
    "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": "ssd_offload_path",
    "MOONCAKE_ENABLE_CLIENT_HTTP_SERVER": "enable_client_http_server",
    "MOONCAKE_CLIENT_HTTP_PORT": "client_http_port",
}
# Settings that kvstore does not need: key → why it has no effect here.
WITHOUT_EFFECT = {
    "metadata_server": "the master itself locates everything",
    "local_buffer_size": "clients read and write the engine's memory directly",
    "protocol": "the client chooses shared memory, RDMA or TCP by itself, or as transport says",
    "rdma_devices": "UCX chooses among the devices, or as UCX_NET_DEVICES says",
    "engine": "no transfer engine is needed",
    "ipc_socket_path": "nodes of this host are found through the master",
    "enable_ssd_offload": "the NVMe tier belongs to kvstore-node: nvme_dir and nvme_size there",
    "ssd_offload_path": "the NVMe tier belongs to kvstore-node: nvme_dir and nvme_size there",
    "enable_client_http_server": "clients appear in the metrics of their host's node",
    "client_http_port": "clients appear in the metrics of their host's node",
}
# Values that mean "not used" and need no remark.
_QUIET = (None, "", 0, False, "0", "false", "False", "tcp", "P2PHANDSHAKE")


@dataclass(frozen=True)
class Settings:
    """Arguments of `MooncakeDistributedStore.setup`, checked."""

    local_hostname: str
    metadata_server: str = ""
    global_segment_size: int = _DEFAULT_SEGMENT_BYTES
    local_buffer_size: int = 0
    protocol: str = "tcp"
    rdma_devices: str = ""
    master_server_addr: str = ""
    engine: object = None
    enable_ssd_offload: bool = False
    ssd_offload_path: str = ""
    tenant_id: str = "default"
    enable_client_http_server: bool = False
    client_http_port: int = 0
    ipc_socket_path: str = ""
    # kvstore's own, through setup(dict) or the environment.
    token_file: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    transport: Transport = "auto"

    @property
    def masters(self) -> list[str]:
        """Block addresses of the masters, in the order to try them."""
        return [one.strip() for one in self.master_server_addr.split(",") if one.strip()]

    def without_effect(self) -> dict[str, str]:
        """Return the given settings that have no effect here: key → why."""
        return {key: why for key, why in WITHOUT_EFFECT.items() if getattr(self, key) not in _QUIET}


_KEYS = tuple(one.name for one in fields(Settings))
_SIZES = ("global_segment_size", "local_buffer_size")
_FILES = ("token_file", "tls_ca", "tls_cert", "tls_key")
_FLAGS = ("enable_ssd_offload", "enable_client_http_server")


def settings(values: Mapping[str, Any]) -> Settings:
    """Check the arguments of setup.

    Args:
        values: by Mooncake's names, in either spelling; values of a dict may all be strings.

    Returns:
        The settings. A missing token_file, tls_ca, tls_cert, tls_key or transport comes from the
        environment: KVSTORE_TOKEN_FILE, KVSTORE_TLS_CA and so on.

    Raises:
        InvalidArgumentError: A key is unknown, missing or given twice, or a value is wrong.
    """
    refuse_unknown(values, [*_KEYS, *SPELLINGS])
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = SPELLINGS.get(name, name)
        if key in found and found[key] != value:
            raise InvalidArgumentError(f"{key!r} is given twice, in two spellings")
        found[key] = value
    require(("local_hostname", "metadata_server", "master_server_addr"), found)
    for key in _FILES:
        found.setdefault(key, os.environ.get(f"KVSTORE_{key.upper()}") or None)
    found.setdefault("transport", os.environ.get("KVSTORE_TRANSPORT") or "auto")
    typed = Settings(**{key: _typed(key, value) for key, value in found.items()})
    if not typed.masters:
        raise InvalidArgumentError("'master_server_addr' names no master")
    for address in typed.masters:
        if address.startswith(("etcd://", "redis://", "k8s://")):
            raise InvalidArgumentError(
                f"master_server_addr {address!r}: use the addresses of kvstore's masters, "
                "host:port, separated by commas"
            )
    return typed


def _typed(key: str, value: Any) -> Any:
    if key in _SIZES:
        try:
            return parse_size(value if isinstance(value, int) else str(value).strip())
        except ValueError as error:
            raise InvalidArgumentError(f"{key!r}: {error}") from None
    if key in _FLAGS:
        return truth(key, value)
    if key in ("client_http_port", "timeout_ms"):
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise InvalidArgumentError(f"{key!r} is not a number: {value!r}") from None
    if key == "tenant_id":
        return str(value).strip() or "default" if value is not None else "default"
    if key == "engine" or (key in _FILES and value is None):
        return value
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{key!r} is not a string: {value!r}")
    return value


def truth(key: str, value: Any) -> bool:
    """Read a flag in the spelling of Mooncake's files and environment.

    Raises:
        InvalidArgumentError: It is neither true nor false.
    """
    text = str(value).strip().lower()
    if text in ("true", "1", "yes", "on", "enable"):
        return True
    if text in ("false", "0", "no", "off", "disable", "", "none"):
        return False
    raise InvalidArgumentError(f"{key!r} is neither true nor false: {value!r}")


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a config.json of Mooncake.

    Returns:
        Its keys and values.

    Raises:
        InvalidArgumentError: The file cannot be read, or is not a JSON object.
    """
    return read_object(path, f"{path}: ")


def from_environment() -> dict[str, Any]:
    """Read the MOONCAKE_* environment: the file of MOONCAKE_CONFIG_PATH, else single variables.

    Returns:
        Keys of config.json and their values; empty when nothing is set.

    Raises:
        InvalidArgumentError: The file cannot be read.
    """
    path = os.environ.get("MOONCAKE_CONFIG_PATH")
    if path:
        return read_file(path)
    return {key: os.environ[name] for name, key in ENVIRONMENT.items() if name in os.environ}


@dataclass
class MooncakeConfig:
    """`mooncake.mooncake_config.MooncakeConfig`: config.json, or the environment, as an object."""

    local_hostname: str
    metadata_server: str
    global_segment_size: int
    local_buffer_size: int
    protocol: str
    device_name: str | None
    master_server_address: str
    enable_ssd_offload: bool = False
    ssd_offload_path: str = ""
    tenant_id: str = "default"
    enable_client_http_server: bool = False
    client_http_port: int = 9300
    further: dict[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_file(file_path: str) -> MooncakeConfig:
        """Read a config.json.

        Raises:
            ValueError: It cannot be read, a key is missing, or a value is wrong.
        """
        return _config_of(read_file(file_path))

    @staticmethod
    def load_from_env() -> MooncakeConfig:
        """Read the environment.

        Raises:
            ValueError: Neither MOONCAKE_CONFIG_PATH nor MOONCAKE_MASTER is set, or a value is
                wrong.
        """
        found = from_environment()
        if not found.get("master_server_address"):
            raise InvalidArgumentError("neither MOONCAKE_CONFIG_PATH nor MOONCAKE_MASTER is set")
        return _config_of(
            {"local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE"} | found
        )


def _config_of(found: dict[str, Any]) -> MooncakeConfig:
    for key in ("local_hostname", "metadata_server", "master_server_address"):
        if not isinstance(found.get(key), str) or not found[key].strip():
            raise InvalidArgumentError(f"{key!r} is missing or empty")
    known = {one.name for one in fields(MooncakeConfig)}
    return MooncakeConfig(
        local_hostname=found["local_hostname"],
        metadata_server=found["metadata_server"],
        global_segment_size=_typed(
            "global_segment_size", found.get("global_segment_size", _DEFAULT_FILE_SEGMENT_BYTES)
        ),
        local_buffer_size=_typed(
            "local_buffer_size", found.get("local_buffer_size", _DEFAULT_FILE_BUFFER_BYTES)
        ),
        protocol=str(found.get("protocol", "tcp")).strip().lower(),
        device_name=found.get("device_name", ""),
        master_server_address=found["master_server_address"],
        enable_ssd_offload=truth("enable_ssd_offload", found.get("enable_ssd_offload", False)),
        ssd_offload_path=str(found.get("ssd_offload_path") or ""),
        tenant_id=_typed("tenant_id", found.get("tenant_id")),
        enable_client_http_server=truth(
            "enable_client_http_server", found.get("enable_client_http_server", False)
        ),
        client_http_port=_typed("client_http_port", found.get("client_http_port", 9300)),
        further={key: value for key, value in found.items() if key not in known},
    )
