"""Configuration of master and node: typed, strict, one table. The only place defaults are written.

A file is one JSON object; flags of the command line override it. An unknown key fails with its name
and the nearest valid one.
"""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from kvstore.errors import InvalidArgumentError
from kvstore.limits import MAX_LABELS, is_valid_name
from kvstore.sizes import format_size, parse_size

_SIZE = "size"
Port = Annotated[int, Meta(ge=0, le=65535)]
Size = Annotated[int, Meta(ge=0, extra={_SIZE: True})]
Ms = Annotated[int, Meta(ge=1, le=7 * 24 * 3600 * 1000)]

T = TypeVar("T", bound="_Config")


def _about(description: str) -> Meta:
    return Meta(description=description)


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What master and node have in common."""

    host: Annotated[str, _about("Address to listen on. A public one needs `auth_token_file`.")] = (
        "127.0.0.1"
    )
    auth_token_file: Annotated[
        str, _about("File of principals (README, Security), mode 0600. Empty: no authentication.")
    ] = ""
    port_file: Annotated[str, _about("Write the chosen ports here, as JSON, once serving.")] = ""
    log_level: Annotated[
        str, Meta(pattern="^(debug|info|warning|error)$"), _about("debug, info, warning or error.")
    ] = "info"


class MasterConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of kvstore-master."""

    port: Annotated[Port, _about("Block port: the one address everybody is given. 0: any.")] = 50051
    grpc_port: Annotated[Port, _about("Control plane (gRPC). 0: any.")] = 50052
    http_port: Annotated[Port, _about("/metrics, /healthz, /readyz. 0: any.")] = 9080
    advertise_host: Annotated[
        str, _about("Host that the hello names for gRPC and HTTP. Empty: `host`.")
    ] = ""
    data_dir: Annotated[
        str, _about("Where the master keeps what must survive it. Empty: see `--help`.")
    ] = ""
    event_loops: Annotated[int, Meta(ge=1, le=64), _about("Threads of the block port.")] = 2
    heartbeat_ms: Annotated[Ms, _about("How often nodes report.")] = 1000
    node_ttl_ms: Annotated[Ms, _about("A node that was silent for so long is dead.")] = 5000
    known_node_retention_ms: Annotated[
        Ms, _about("A node that was away for so long is forgotten, and the remove log cut.")
    ] = 24 * 3600 * 1000
    slow_start_ms: Annotated[Ms, _about("How long a new node's share of writes ramps up.")] = 30_000
    repair_copies: Annotated[
        int, Meta(ge=0, le=100_000), _about("Copies a second for repair and drain. 0: none.")
    ] = 2000

    def __post_init__(self) -> None:
        """Refuse a TTL that a single lost heartbeat would exceed."""
        if self.node_ttl_ms < 2 * self.heartbeat_ms:
            raise ValueError("`node_ttl_ms` must be at least twice `heartbeat_ms`")


class NodeConfig(_Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of kvstore-node."""

    master_address: Annotated[
        str | tuple[str, ...],
        _about("The master's block port, HOST:PORT; a list is tried in order."),
    ] = "127.0.0.1:50051"
    node_id: Annotated[str, _about("Unique in the cluster. Empty: the host's name.")] = ""
    port: Annotated[Port, _about("Block port for other hosts. 0: any (it is announced).")] = 0
    http_port: Annotated[Port, _about("/metrics, /healthz, /readyz. 0: any.")] = 0
    advertise_host: Annotated[str, _about("Host announced to the cluster. Empty: `host`.")] = ""
    segment_size: Annotated[Size, _about('Memory for objects; an integer or "4gb".')] = 1 << 30
    segment_dir: Annotated[
        str, _about("Folder on tmpfs or hugetlbfs. Empty: /dev/shm/kvstore-<node_id>.")
    ] = ""
    keep_segment: Annotated[
        bool, _about("Keep the objects over a restart. false: SIGTERM deletes the segment's files.")
    ] = True
    discard_foreign_segment: Annotated[
        bool,
        _about(
            "Start empty when `segment_dir` holds what this node cannot take over (another format, "
            "node or cluster, or more than `segment_size`), instead of refusing to start."
        ),
    ] = False
    labels: Annotated[
        dict[str, str], _about("For placement: host, numa, rack, rdma_domain. host: its name.")
    ] = {}
    transports: Annotated[
        tuple[Annotated[str, Meta(pattern="^(shm|tcp)$")], ...],
        Meta(min_length=1),
        _about("What clients may use: shm (same host) and tcp."),
    ] = ("shm", "tcp")
    shm_tenants: Annotated[
        tuple[str, ...],
        _about("Tenants whose clients may map this node's memory; others use sockets."),
    ] = ("default",)
    event_loops: Annotated[int, Meta(ge=1, le=64), _about("Threads of the block port.")] = 2
    reservation_ms: Annotated[Ms, _about("A write that has not committed by then is over.")] = (
        30_000
    )
    client_cap_bytes: Annotated[
        Size, _about("Unpublished bytes one client may hold. 0: half of the segment.")
    ] = 0

    def __post_init__(self) -> None:
        """Check what a type cannot say."""
        if self.segment_size == 0:
            raise ValueError("`segment_size` must not be 0")
        if not self.addresses():
            raise ValueError("`master_address` names no address")
        names = [self.node_id, *self.shm_tenants, *self.labels, *self.labels.values()]
        if not all(map(is_valid_name, names)) or len(self.labels) > MAX_LABELS:
            raise ValueError("`node_id`, `shm_tenants` or `labels` has a name that is not valid")

    def addresses(self) -> list[str]:
        """The masters' addresses, in the order to try them."""
        given = self.master_address
        return [part for part in ([given] if isinstance(given, str) else given) if part]

    def name(self) -> str:
        """The node's id: as configured, else the host's name."""
        return self.node_id or socket.gethostname()

    def directory(self) -> str:
        """Folder of the segment: as configured, else one of its own below /dev/shm."""
        return self.segment_dir or f"/dev/shm/kvstore-{self.name().replace('/', '_')}"

    def placement_labels(self) -> dict[str, str]:
        """The labels, with the host's name as `host` unless another was given."""
        return {"host": socket.gethostname(), **self.labels}


def load(kind: type[T], path: str | os.PathLike[str] | None, flags: Mapping[str, Any]) -> T:
    """Read a configuration.

    Args:
        kind: MasterConfig or NodeConfig.
        path: a JSON file; None for defaults alone.
        flags: values of the command line by field name; None means "not given".

    Returns:
        The configuration: flags over the file over the defaults.

    Raises:
        InvalidArgumentError: The file cannot be read, is no JSON object, has an unknown key, or a
            value is wrong. The message names the file and the key.
    """
    where = f"config file {path}: " if path is not None else ""
    values = _read(Path(path), where) if path is not None else {}
    values.update({name: value for name, value in flags.items() if value is not None})
    _refuse_unknown(kind, values, where)
    try:
        values.update({name: _size(name, values[name]) for name in _size_fields(kind) & {*values}})
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{where}{error}") from None


def _read(path: Path, where: str) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise InvalidArgumentError(f"{where}{error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"{where}not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"{where}not a JSON object")
    return content


def _refuse_unknown(kind: type[_Config], values: Mapping[str, Any], where: str) -> None:
    known = kind.__struct_fields__
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise InvalidArgumentError(f"{where}unknown key {name!r}; did you mean {near!r}?")


def _size(name: str, value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


def _metas(hint: Any) -> list[Meta]:
    if get_origin(hint) is not Annotated:
        return []
    inner, *metas = get_args(hint)
    return [*_metas(inner), *(meta for meta in metas if isinstance(meta, Meta))]


def _size_fields(kind: type[_Config]) -> set[str]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        name
        for name, hint in hints.items()
        if any(m.extra and _SIZE in m.extra for m in _metas(hint))
    }


def _default(field: msgspec.structs.FieldInfo, is_size: bool) -> str:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if is_size and value:
        return f'`"{format_size(value).replace("i", "").replace(" ", "").lower()}"`'
    return f"`{msgspec.json.encode(value).decode()}`"


def table() -> str:
    """Every key of both configurations as two Markdown tables, for the README."""
    parts = []
    for kind, program in ((MasterConfig, "kvstore-master"), (NodeConfig, "kvstore-node")):
        hints = get_type_hints(kind, include_extras=True)
        sizes = _size_fields(kind)
        rows = [f"| `{program}` key | Default | Meaning |", "|---|---|---|"]
        for field in msgspec.structs.fields(kind):
            about = [m.description for m in _metas(hints[field.name]) if m.description]
            rows.append(
                f"| `{field.name}` | {_default(field, field.name in sizes)} | {about[-1]} |"
            )
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def default_data_dir() -> Path:
    """Where a master without `data_dir` keeps its state: the user's state folder (XDG)."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "kvstore-master"


if __name__ == "__main__":
    print(table(), end="")
