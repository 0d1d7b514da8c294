"""Configuration of master and node: typed, strict, one table, the only place of the defaults.

A file is one JSON object; flags of the command line override it. An unknown key fails with its name
and the nearest valid one. Each field also says whether a change of it is applied while the process
runs (_live) or waits for a restart (_fixed); kvstore.reload carries that out.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from kvstore import limits
from kvstore.addresses import check_etcd, is_host, is_host_and_port
from kvstore.certificates import TlsConfig
from kvstore.errors import InvalidArgumentError
from kvstore.isolation import check_domains, check_socket
from kvstore.options import read_object, refuse_unknown
from kvstore.polling import AUTO, MAX_US
from kvstore.sizes import parse_size

_SIZE = "size"
RELOAD = "reload"
EMPTIED = "emptied"
Port = Annotated[int, Meta(ge=0, le=65535)]
Size = Annotated[int, Meta(ge=0, le=1 << 47, extra={_SIZE: True})]  # an address space
PollUs = Annotated[int, Meta(ge=AUTO, le=MAX_US)]
Ms = Annotated[int, Meta(ge=1, le=7 * 24 * 3600 * 1000)]

T = TypeVar("T", bound="CommonConfig")


def _fixed(description: str) -> Meta:
    """A field whose change waits for a restart."""
    return Meta(description=description, extra={RELOAD: False})


def _live(description: str) -> Meta:
    """A field whose change is applied while the process runs."""
    return Meta(description=description, extra={RELOAD: True})


def _live_until_emptied(description: str) -> Meta:
    """A field that may be set or changed while the process runs, but not emptied."""
    return Meta(description=description, extra={RELOAD: EMPTIED})


class CommonConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that master and node share."""

    host: Annotated[
        str, _fixed("Address to listen on. Set `auth_token_file` when it is public.")
    ] = "127.0.0.1"
    auth_token_file: Annotated[
        str,
        _live_until_emptied(
            "File of principals (deploy/README.md, Tokens), mode 0600; every request without a "
            "valid token is rejected. Empty: no authentication."
        ),
    ] = ""
    tls: Annotated[
        TlsConfig | None,
        _fixed(
            'TLS 1.3 on all ports but Unix sockets (deploy/README.md, TLS): {"cert": …, "key": …, '
            '"ca": …, "client_auth": "none", "required": true}. Changed files are taken at once.'
        ),
    ] = None
    principal_share: Annotated[
        float,
        Meta(gt=0, le=1),
        _live(
            "Largest share of the sessions, watches and waiting calls of a server that one "
            "principal of the token file may hold. Nodes are exempt."
        ),
    ] = 0.75
    port_file: Annotated[
        str, _fixed("Write the bound ports to this file, as JSON, once serving.")
    ] = ""
    poll_us: Annotated[
        PollUs,
        _fixed("A waiting thread polls up to this long, if that pays. -1: 20 with 8 CPUs, else 0."),
    ] = AUTO
    log_level: Annotated[
        str, Meta(pattern="^(debug|info|warning|error)$"), _live("debug, info, warning or error.")
    ] = "info"
    log_format: Annotated[
        str,
        Meta(pattern="^(text|json)$"),
        _fixed("text: a name and key=value pairs. json: one object a line."),
    ] = "text"

    audit_log: Annotated[
        str,
        _live(
            'File for JSON lines about calls that neither read nor write, or "stderr" '
            "(deploy/README.md, Audit log). Empty: none."
        ),
    ] = ""
    metrics_public: Annotated[
        bool, _live("Serve /metrics to everybody. false: only with a token (`auth_token_file`).")
    ] = True

    discovery: Annotated[
        str,
        Meta(pattern="^(auto|static|rbg|dns)$"),
        _fixed(
            "Where keys that are not set (`master_address`, `advertise_host`, labels) come from: "
            "rbg (`discovery_file`), dns (`discovery_name`) or nowhere (static). auto: rbg, where "
            "that file is."
        ),
    ] = "auto"
    discovery_file: Annotated[
        str, _fixed("File in which RBG lists the roles of its group; changes of it are followed.")
    ] = "/etc/rbg/config.yaml"
    discovery_role: Annotated[str, _fixed("Role of the masters in that file.")] = "master"
    discovery_name: Annotated[
        str,
        _fixed(
            "Headless Service of the masters for `discovery` dns, HOST:PORT; resolved every five "
            "seconds."
        ),
    ] = ""

    def check_discovery(self) -> None:
        """Refuse discovery without what it needs; raises ValueError."""
        if self.discovery_name and not is_host_and_port(self.discovery_name):
            raise ValueError("`discovery_name` must be HOST:PORT")
        if self.discovery == "dns" and not self.discovery_name:
            raise ValueError("`discovery` dns needs `discovery_name`")
        if self.discovery == "rbg" and not self.discovery_file:
            raise ValueError("`discovery` rbg needs `discovery_file`")

    def check_metrics(self) -> None:
        """Refuse to hide metrics where nobody could show a token.

        Raises:
            ValueError: There is no token file.
        """
        if not (self.metrics_public or self.auth_token_file):
            raise ValueError("`metrics_public` false needs `auth_token_file`")

    def check_hosts(self, advertise_host: str) -> None:
        """Refuse a host that would only fail later, somewhere else.

        Raises:
            ValueError: It has blanks, a port, or (of the announced one) brackets.
        """
        bracketed = self.host.startswith("[") and self.host.endswith("]") and ":" in self.host
        if not is_host(self.host[1:-1] if bracketed else self.host):
            raise ValueError("`host` must be an address or a name, without blanks and port")
        if advertise_host and not is_host(advertise_host):
            raise ValueError(
                "`advertise_host` must be an address or a name, without brackets, blanks and port"
            )


class MasterConfig(CommonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of kvstore-master."""

    port: Annotated[
        Port, _fixed("Block port: the one address that clients, nodes and tools need. 0: any.")
    ] = 50051
    grpc_port: Annotated[Port, _fixed("Control plane (gRPC). 0: any.")] = 50052
    http_port: Annotated[Port, _fixed("/metrics, /healthz, /readyz, /console. 0: any.")] = 9080
    advertise_host: Annotated[str, _live("Host announced for gRPC and HTTP. Empty: `host`.")] = ""
    data_dir: Annotated[
        str, _fixed("Folder of the master's durable state. Empty: see `--help`.")
    ] = ""
    state: Annotated[
        str,
        _fixed(
            "Keep the state in etcd instead, so that masters can stand by: "
            "etcd://HOST:PORT[,HOST:PORT…]/PREFIX, or etcds://. Empty: in `data_dir`."
        ),
    ] = ""
    lease_s: Annotated[
        int, Meta(ge=1, le=60), _fixed("A standby takes over when etcd was not reached this long.")
    ] = 2
    etcd_tls: Annotated[
        dict[str, str],
        _fixed('PEM files for etcds://: {"ca": …, "cert": …, "key": …}. No "ca": the system\'s.'),
    ] = {}
    etcd_auth_file: Annotated[str, _fixed("File with USER:PASSWORD for etcd, mode 0600.")] = ""
    event_loops: Annotated[int, Meta(ge=1, le=64), _fixed("Threads of the block port.")] = 2
    heartbeat_ms: Annotated[Ms, _live("Interval of heartbeats; longer above 50 nodes.")] = 1000
    node_ttl_ms: Annotated[
        Ms, _live("A node is considered dead after this long without a heartbeat.")
    ] = 5000
    known_node_retention_ms: Annotated[
        Ms, _live("A dead node is forgotten after this time, and the remove log trimmed.")
    ] = 24 * 3600 * 1000
    slow_start_ms: Annotated[
        Ms, _live("Time over which a new node's share of writes ramps up.")
    ] = 30_000
    repair_copies: Annotated[
        int, Meta(ge=0, le=100_000), _live("Copies per second for repair and drain. 0: none.")
    ] = 2000
    verify_endpoints: Annotated[
        bool,
        _live(
            "Call every node back at the block port it announces, and tell clients of it once it "
            "has answered as that node. false: tell them at once."
        ),
    ] = True
    tenant_namespaces: Annotated[
        int,
        Meta(ge=1, le=65536),
        _live(
            "Namespaces that the clients of one tenant may create. Unused ones go by themselves."
        ),
    ] = 8192
    metric_namespaces: Annotated[
        int,
        Meta(ge=0, le=1000),
        _live("Namespaces with metrics of their own: those with the most bytes. 0: none."),
    ] = 20
    bytes_per_token: Annotated[
        Size,
        _live(
            "Bytes that one token of the model takes in the store, over all ranks: with it the "
            "console and `kvstore status` show what was saved in tokens. 0: unknown."
        ),
    ] = 0
    prefill_tokens_per_s: Annotated[
        float,
        Meta(ge=0, le=1e9),
        _live("How fast one engine computes a prompt: what was saved in seconds. 0: unknown."),
    ] = 0

    def __post_init__(self) -> None:
        """Refuse a TTL that a single lost heartbeat would exceed, and a wrong host."""
        self.check_hosts(self.advertise_host)
        self.check_metrics()
        self.check_discovery()
        if self.node_ttl_ms < 2 * self.heartbeat_ms:
            raise ValueError("`node_ttl_ms` must be at least twice `heartbeat_ms`")
        check_etcd(self.state, self.etcd_tls, self.etcd_auth_file)


class NodeConfig(CommonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of kvstore-node."""

    master_address: Annotated[
        str | tuple[str, ...],
        _live("The master's block port, HOST:PORT; the entries of a list are tried in order."),
    ] = "127.0.0.1:50051"
    node_id: Annotated[str, _fixed("Unique in the cluster. Empty: the host's name.")] = ""
    port: Annotated[
        Port, _fixed("Block port for other hosts. 0: any; the bound port is announced.")
    ] = 0
    http_port: Annotated[Port, _fixed("/metrics, /healthz, /readyz. 0: any.")] = 0
    advertise_host: Annotated[str, _live("Host announced to the cluster. Empty: `host`.")] = ""
    segment_size: Annotated[Size, _fixed('Memory for objects; an integer or "4gb".')] = 1 << 30
    segment_dir: Annotated[
        str, _fixed("Folder on tmpfs or hugetlbfs. Empty: /dev/shm/kvstore-<node_id>.")
    ] = ""
    keep_segment: Annotated[
        bool, _live("Keep the objects across restarts. false: SIGTERM deletes the segment's files.")
    ] = True
    discard_foreign_segment: Annotated[
        bool,
        _fixed(
            "Start empty when `segment_dir` cannot be taken over (it belongs to another format, "
            "node or cluster), instead of refusing to start."
        ),
    ] = False
    allow_cold_restart: Annotated[
        bool,
        _fixed(
            "Start although `segment_dir` has no room for the second index that a restart builds. "
            "A restart without that room then loses the objects, instead of refusing to start."
        ),
    ] = False
    labels: Annotated[
        dict[str, str],
        _live(
            "For placement: host, numa, rack, rdma_domain. Clients read from the replica whose "
            "labels are nearest to their own. Defaults: host: the host's name; numa: "
            "the NUMA node, if the process is bound to one or there is only one; rdma_domain: the "
            "fabric of the active RDMA ports (ib:<subnet prefix> or roce:<IPv4 network>)."
        ),
    ] = {}
    transports: Annotated[
        tuple[Annotated[str, Meta(pattern="^(shm|tcp|ucx)$")], ...],
        Meta(min_length=1),
        _fixed(
            "Transports offered to clients: shm (same host), tcp, and ucx (RDMA), which needs tcp "
            "for its requests."
        ),
    ] = ("shm", "tcp")
    rdma_devices: Annotated[
        tuple[Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]+(:[0-9]+)?$")], ...],
        _fixed('RDMA devices for ucx, "mlx5_0" or "mlx5_0:1" (a port). None: all.'),
    ] = ()
    ucx: Annotated[
        dict[str, str],
        _fixed('Settings of UCX: {"TLS": "rc,ud,self"}. They win over UCX_… in the environment.'),
    ] = {}
    shm_write: Annotated[
        tuple[str, ...],
        _live(
            "Tenants whose clients may map this node's memory for reading and writing; those that "
            "are in no list use sockets."
        ),
    ] = ("default",)
    shm_read: Annotated[
        tuple[str, ...],
        _live("Tenants whose clients may map it for reading only; they put by socket."),
    ] = ()
    domains: Annotated[
        dict[str, tuple[str, ...]],
        _fixed(
            'Tenants that share memory with each other and nobody else: {"name": ["tenant", …]}. '
            "Those of `shm_write` and `shm_read` that are in none share a domain named shared; all "
            "other tenants of the token file are in one named private, which nobody maps."
        ),
    ] = {}
    domain_shares: Annotated[
        dict[str, float],
        _fixed(
            'Parts of `segment_size`, by domain: {"private": 0.25}. Domains that are not named '
            "divide the remainder equally."
        ),
    ] = {}
    socket_dir: Annotated[
        str,
        _fixed(
            "Folder for `<node_id>/node.sock`: all that engines in other containers or of other "
            "users have to see of a node. Empty: the socket lies in `segment_dir`."
        ),
    ] = ""
    socket_mode: Annotated[
        str,
        Meta(pattern="^(0?[0-7]{3})?$"),
        _fixed(
            'Permissions of the socket: "0660" lets its group connect, "0666" every user (needs '
            "`auth_token_file`). Empty: 0600, or 0660 with `socket_group`. Needs `socket_dir`."
        ),
    ] = ""
    socket_group: Annotated[
        str,
        _fixed(
            "Group of the socket, a name or a number; its members connect like the node's own "
            "user. Needs `socket_dir`."
        ),
    ] = ""
    nvme_dir: Annotated[
        str | tuple[str, ...],
        _fixed(
            "Folder on NVMe for evicted objects and snapshots; or a list, with a folder on each "
            "device. Empty: no NVMe tier."
        ),
    ] = ""
    nvme_size: Annotated[
        Size, _fixed("Capacity for objects in `nvme_dir`; folders of a list have equal shares.")
    ] = 0
    nvme_keep_free: Annotated[
        float,
        Meta(ge=0, le=0.9),
        _fixed(
            "Share of the file system of `nvme_dir` that stays free: nothing is allocated beyond "
            "it, and the tier is read-only when `nvme_size` does not fit."
        ),
    ] = 0.05
    discard_foreign_nvme: Annotated[
        bool,
        _fixed(
            "Start empty when `nvme_dir` belongs to another node, cluster or format, instead of "
            "refusing to start."
        ),
    ] = False
    demote_ahead: Annotated[
        float,
        Meta(ge=0, le=1),
        _live("Share of the segment that is written to NVMe ahead of its eviction."),
    ] = 0.5
    promote_reads: Annotated[
        int,
        Meta(ge=1, le=4),
        _live("Reads from NVMe after which an object is promoted even if DRAM is full."),
    ] = 2
    readmit_share: Annotated[
        float,
        Meta(ge=0, le=1),
        _live("Largest share of a reclaimed NVMe log file kept for objects read from it."),
    ] = 0.5
    prefetch_depth: Annotated[
        int,
        Meta(ge=0, le=4096),
        _live(
            "Pages of a chain that are promoted from NVMe ahead of the page being read. 0: none."
        ),
    ] = 16
    prefetch_rate: Annotated[
        Size, _live("Bytes per second that prefetches may read from NVMe. 0: no prefetching.")
    ] = 256 << 20
    snapshot_interval_ms: Annotated[
        int,
        Meta(ge=0, le=7 * 24 * 3600 * 1000),
        _live("Interval at which DRAM-only objects are written to NVMe. 0: never."),
    ] = 0
    shutdown_grace_ms: Annotated[
        Ms,
        _live(
            "Time that SIGTERM may spend on writing DRAM-only objects to NVMe, most recent first."
        ),
    ] = 20_000
    restart_ms: Annotated[
        int,
        Meta(ge=0, le=limits.MAX_RESTART_MS),
        _live("A node that SIGTERM stops is restarting, at most this long, then dead. 0: at once."),
    ] = 10_000
    event_loops: Annotated[int, Meta(ge=1, le=64), _fixed("Threads of the block port.")] = 2
    reservation_ms: Annotated[Ms, _live("Uncommitted writes are aborted after this time.")] = 30_000
    hot_reads_per_s: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        _live("Reads per second by other hosts that give an object another replica. 0: none do."),
    ] = 10
    hot_replicas: Annotated[
        int,
        Meta(ge=1, le=limits.MAX_REPLICAS),
        _live("Replicas of such an object, at most; what nobody reads any more is evicted."),
    ] = 4
    client_cap_bytes: Annotated[
        Size, _live("Uncommitted bytes that one client may hold. 0: half of the segment.")
    ] = 0
    pin_cap_bytes: Annotated[
        Size, _live("Hard-pinned bytes of one tenant. 0: half of the segment.")
    ] = 0
    otlp_endpoint: Annotated[
        str,
        Meta(pattern="^(https?://[^/\\s]+)?$"),
        _fixed(
            "OTLP collector (gRPC) for spans of requests that clients trace: http://HOST:PORT or "
            "https://. Needs the extra [otel]. Empty: none."
        ),
    ] = ""
    rest_api: Annotated[
        str,
        Meta(pattern="^(off|localhost|all)$"),
        _fixed("Access to /api/put, /api/get/KEY, … on the HTTP port: off, localhost or all."),
    ] = "off"
    rest_max_body: Annotated[
        Size,
        _fixed(
            "Largest accepted body of /api/put, and most bytes of all bodies at once, received and "
            "sent: further requests get 503 with Retry-After."
        ),
    ] = 64 << 20

    def __post_init__(self) -> None:
        """Check conditions that involve several fields."""
        self.check_hosts(self.advertise_host)
        self.check_metrics()
        self.check_discovery()
        if self.segment_size == 0:
            raise ValueError("`segment_size` must not be 0")
        if not self.addresses():
            raise ValueError("`master_address` names no address")
        if bool(self.nvme_dirs()) != bool(self.nvme_size):
            raise ValueError("`nvme_dir` and `nvme_size` must be set together")
        if len({*map(os.path.normpath, self.nvme_dirs())}) < len(self.nvme_dirs()):
            raise ValueError("`nvme_dir` names a folder twice")
        names = [self.node_id, *self.labels, *self.labels.values()]
        fit = len(self.placement_labels()) <= limits.MAX_LABELS
        if not (fit and all(map(limits.is_valid_name, names))):
            raise ValueError("`node_id` or `labels` contains an invalid name")
        check_domains(self.domains, self.shm_read, self.shm_write, self.domain_shares)
        self._check_socket()
        if self.tls and self.tls.required and "ucx" in self.transports:
            raise ValueError(
                "`transports` with ucx and `tls` with required: true exclude each other: RDMA is "
                "not encrypted"
            )

    def _check_socket(self) -> None:
        """Refuse a socket that nobody could reach, or that would trust everybody."""
        check_socket(
            self.socket_permissions(),
            Path(self.socket_dir) / self.file_name() / "node.sock" if self.socket_dir else None,
            self.socket_group,
            self.auth_token_file,
        )

    def socket_permissions(self) -> int:
        """Permission bits of the Unix socket."""
        if self.socket_mode:
            return int(self.socket_mode, 8)
        return 0o660 if self.socket_group else 0o600

    def addresses(self) -> list[str]:
        """The masters' addresses, in the order to try them."""
        return _listed(self.master_address)

    def nvme_dirs(self) -> list[str]:
        """The folders of the NVMe tier, one on each device."""
        return _listed(self.nvme_dir)

    def name(self) -> str:
        """The node's id: as configured, else the host's name."""
        return self.node_id or socket.gethostname()

    def file_name(self) -> str:
        """The node's id as one component of a path."""
        name = self.name().replace("/", "_")
        return f"_{name}" if name in (".", "..") else name

    def directory(self) -> str:
        """Folder of the segment: as configured, else one of its own below /dev/shm."""
        return self.segment_dir or f"/dev/shm/kvstore-{self.file_name()}"

    def placement_labels(self) -> dict[str, str]:
        """The labels, with the host's name as `host` unless another was given."""
        return {"host": socket.gethostname(), **self.labels}


def _listed(given: str | tuple[str, ...]) -> list[str]:
    return [part for part in ([given] if isinstance(given, str) else given) if part]


def load(kind: type[T], path: str | os.PathLike[str] | None, flags: Mapping[str, Any]) -> T:
    """Read a configuration.

    Args:
        kind: MasterConfig or NodeConfig.
        path: a JSON file; None for defaults alone.
        flags: values of the command line by field name; None means "not given".

    Returns:
        The configuration: flags over the file over the defaults.

    Raises:
        InvalidArgumentError: The file cannot be read, is not a JSON object, has an unknown key or a
            wrong value. The message names the file and the key.
    """
    where = f"config file {path}: " if path is not None else ""
    values = {} if path is None else read_object(path, where)
    values.update({name: value for name, value in flags.items() if value is not None})
    refuse_unknown(values, kind.__struct_fields__, where)
    try:
        values.update({name: _size(name, values[name]) for name in size_fields(kind) & {*values}})
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{where}{error}") from None


def _size(name: str, value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


def metas_of(hint: Any) -> list[Meta]:
    """Return the Metas of a field's type, the outermost last."""
    if get_origin(hint) is not Annotated:
        return []
    inner, *metas = get_args(hint)
    return [*metas_of(inner), *(meta for meta in metas if isinstance(meta, Meta))]


def marks(kind: type[CommonConfig], key: str) -> dict[str, Any]:
    """Collect one key of the fields' Metas, by field name."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: meta.extra[key]
        for name, hint in hints.items()
        for meta in metas_of(hint)
        if meta.extra and key in meta.extra
    }


def reloads(kind: type[CommonConfig], name: str, value: Any) -> bool:
    """Say whether a field takes a new value while the process runs.

    Args:
        kind: MasterConfig or NodeConfig.
        name: of the field.
        value: the new one.
    """
    mark = marks(kind, RELOAD)[name]
    return bool(value) if mark == EMPTIED else bool(mark)


def size_fields(kind: type[CommonConfig]) -> set[str]:
    """Names of the fields that take "4gb"."""
    return {*marks(kind, _SIZE)}
