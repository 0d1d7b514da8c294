"""Types of the native extension; private to kvstore."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict

from kvstore.client.buffers import BufferLike
from kvstore.node.core_api import Uses
from kvstore.security import NativePrincipal

MISS_REASON_COUNT: int
MAX_KEY_BYTES: int
MAX_BATCH_KEYS: int
MAX_LEASE_MS: int
MAX_TIMEOUT_MS: int
MAX_CLAIMS_BYTES: int
USE_RECORD_BYTES: int
MAX_REPORT_USES: int

def code_name(code: int) -> str: ...
def miss_reason_name(reason: int) -> str: ...
def leak(object: object) -> None: ...
def set_trace(context: bytes) -> None: ...
def set_leak_warnings(on: bool) -> None: ...
def parse_minted(token: str) -> tuple[str, str] | None: ...
def minted_key(secret: str, principal: str, claims: str) -> str: ...
def read_claims(claims: str, now_s: int | None) -> tuple[int, list[tuple[int, list[str], str]]]: ...

class FailedProofs:
    def __init__(self) -> None: ...
    def refuse_ms(self, principal: str, network: str) -> int: ...
    def failed(self, principal: str, network: str) -> int: ...
    def passed(self, principal: str, network: str) -> None: ...
    def clear(self) -> None: ...
    def stats(self) -> dict[str, int]: ...

def parse_scopes(text: str, separator: str = ...) -> list[tuple[int, list[str], str]]: ...

# Buffers, bytes between pages, bytes of a piece, layers and tokens of a buffer, pages.
Grid: TypeAlias = tuple[Sequence[int], int, int, int, int, int]

class Block:
    @property
    def released(self) -> bool: ...
    @property
    def size(self) -> int: ...
    @property
    def zero_copy(self) -> bool: ...
    def release(self) -> None: ...

class Leases:
    @property
    def length(self) -> int: ...
    @property
    def reason(self) -> int: ...
    def alive(self) -> bool: ...
    def release(self) -> None: ...

class Transfer:
    def done(self) -> bool: ...
    def wait(self, timeout_ms: int) -> bool: ...
    def results(self) -> list[int]: ...
    def reasons(self) -> list[int]: ...
    def failure(self) -> tuple[int, str]: ...

# Node, whether in DRAM, whether on NVMe, version, size, when put, used and gone, miss reason.
Explanation: TypeAlias = tuple[str, bool, bool, int, int, int, int, int, str]

class Inspection(TypedDict):
    size: int
    version: int
    pin: int
    create_ms: int
    replicas_wanted: int
    replicas: list[tuple[str, int]]

class Tls:
    def __init__(
        self,
        *,
        cert: str = "",
        key: str = "",
        ca: str,
        client_auth: int = 0,
        required: bool = True,
        follow: bool = False,
    ) -> None: ...
    def replace(self, other: Tls) -> None: ...
    def expires_in_s(self) -> int: ...

class Client:
    def __init__(
        self,
        *,
        masters: list[str],
        tenant: str,
        namespace: str,
        principal: str,
        token: str,
        client_name: str,
        timeout_ms: int,
        transport: int,
        stripes: int,
        poll_us: int = ...,
        ucx_libraries: list[str] = ...,
        ucx_settings: list[tuple[str, str]] = ...,
        locality: tuple[str, str, str] = ...,
        tls: Tls | None = None,
    ) -> None: ...
    @property
    def closed(self) -> bool: ...
    def get(self, key: str) -> bytes | None: ...
    def batch_get(
        self, keys: Sequence[str], reasons: list[Any] | None = None
    ) -> list[bytes | None]: ...
    def batch_get_bytearrays(self, keys: Sequence[str]) -> list[bytearray | None]: ...
    def get_into(self, key: str, out: BufferLike) -> int: ...
    def batch_get_into(
        self, keys: Sequence[str], buffers: Sequence[BufferLike], reasons: list[Any] | None = None
    ) -> list[int]: ...
    def batch_get_into_pointers(
        self,
        keys: Sequence[str],
        pointers: Sequence[int | Sequence[int]],
        sizes: Sequence[int | Sequence[int]],
        reasons: list[Any] | None = None,
    ) -> list[int]: ...
    def device_get(
        self,
        keys: Sequence[str],
        pointers: Sequence[int | Sequence[int]],
        sizes: Sequence[int | Sequence[int]],
        *,
        header_on_host: bool,
        stream: int,
        queued: bool,
        verify_checksum: bool,
    ) -> Transfer: ...
    def device_get_pages(
        self,
        keys: Sequence[str],
        pool: Grid,
        page_ids: Sequence[int],
        *,
        stream: int,
        queued: bool,
        verify_checksum: bool,
    ) -> Transfer: ...
    def device_put_pages(
        self,
        keys: Sequence[str],
        pool: Grid,
        page_ids: Sequence[int],
        replicas: int,
        pin: int,
        ttl_ms: int,
        parent: str | None,
        upsert: bool,
        *,
        stream: int,
    ) -> list[int]: ...
    def gpu_devices(self) -> list[tuple[int, str]]: ...
    def device_put(
        self,
        keys: Sequence[str],
        pointers: Sequence[int | Sequence[int]],
        sizes: Sequence[int | Sequence[int]],
        replicas: int,
        pin: int,
        ttl_ms: int,
        parent: str | None,
        upsert: bool,
        *,
        header_on_host: bool,
        stream: int,
    ) -> list[int]: ...
    def size(self, key: str, local: bool = False) -> int: ...
    def sizes(self, keys: Sequence[str], local: bool = False) -> list[int]: ...
    def prefix_length(
        self, keys: Sequence[str], stride: int, wait_ms: int = 0, local: bool = False
    ) -> tuple[int, int]: ...
    def lease(
        self, keys: Sequence[str], stride: int, lease_ms: int, wait_ms: int = 0, local: bool = False
    ) -> Leases: ...
    def view(self, key: str) -> Block | None: ...
    def put(
        self,
        key: str,
        buffer: BufferLike,
        replicas: int,
        pin: int,
        ttl_ms: int,
        parent: str | None,
        upsert: bool = False,
    ) -> int: ...
    def batch_put(
        self,
        keys: Sequence[str],
        buffers: Sequence[BufferLike],
        replicas: int,
        pin: int,
        ttl_ms: int,
        parent: str | None,
        upsert: bool = False,
    ) -> list[int]: ...
    def batch_put_from(
        self,
        keys: Sequence[str],
        pointers: Sequence[int | Sequence[int]],
        sizes: Sequence[int | Sequence[int]],
        replicas: int,
        pin: int,
        ttl_ms: int,
        parent: str | None,
        upsert: bool = False,
    ) -> list[int]: ...
    def remove(self, keys: Sequence[str]) -> tuple[list[int], list[str]]: ...
    def set_pin(self, keys: Sequence[str], level: int) -> list[int]: ...
    def flush(self) -> int: ...
    def list_keys(self, prefix: str, cursor: bytes, limit: int) -> tuple[list[str], bytes]: ...
    def inspect(self, key: str) -> Inspection | None: ...
    def explain(self, key: str) -> list[Explanation]: ...
    def prefetch(self, keys: Sequence[str]) -> int: ...
    def counters(self) -> dict[str, int]: ...
    def nodes(self) -> list[dict[str, Any]]: ...
    def link_of(self, node_id: str) -> tuple[bool, bool]: ...
    def links_id(self) -> int: ...
    def set_link_silence(self, silence_ms: int) -> None: ...
    def peers(self) -> list[dict[str, Any]]: ...
    def node_counters(self) -> dict[str, dict[str, int]]: ...
    def register_buffer(self, buffer: BufferLike) -> tuple[int, int]: ...
    def register_memory(self, address: int, bytes: int) -> None: ...
    def register_on_device(self, address: int, bytes: int) -> None: ...
    def forget_memory(self, address: int) -> bool: ...
    def ucx_state(self) -> dict[str, Any]: ...
    @property
    def transport(self) -> int: ...
    def close(self) -> None: ...

class ReuseSummary(TypedDict):
    buckets: list[tuple[int, float]]
    cold: float
    hits: float
    puts: float
    lost: float
    level: int
    keys: int
    uses: int
    since_ms: int
    memory_bytes: int
    busy_us: int

class ReuseCurve:
    def __init__(self, *, half_life_ms: int = ...) -> None: ...
    def note(
        self,
        *,
        level: int,
        records: bytes,
        hits: int = ...,
        puts: int = ...,
        lost: int = ...,
        capacity_bytes: int = ...,
        now_ms: int = ...,
    ) -> int: ...
    def set_reach(self, bytes: int) -> None: ...
    def summary(self, now_ms: int = ...) -> ReuseSummary: ...

class PrefixSummary(TypedDict):
    # Tenant, namespace, first key, uses and bytes a second.
    rows: list[tuple[str, str, str, float, float]]
    memory_bytes: int
    busy_us: int

class HotPrefixes:
    def __init__(self, *, half_life_ms: int) -> None: ...
    def note(self, report: list[tuple[str, str, str, int, int]], now_ms: int) -> None: ...
    def summary(self, now_ms: int) -> PrefixSummary: ...

def serve_by_ucx(
    socket: int,
    segment: int,
    *,
    libraries: list[str],
    settings: list[tuple[str, str]],
    slice_bytes: int,
) -> None: ...

class MasterCore:
    def __init__(self, **options: Any) -> None: ...
    @staticmethod
    def decode_op(record: bytes) -> dict[str, Any]: ...
    def start(self) -> list[str]: ...
    def stop(self) -> None: ...
    def register_node(
        self,
        node_id: str,
        session_id: int,
        node_epoch: int,
        tcp_endpoint: str,
        unix_endpoint: str,
        host: str,
        weight: int,
        capacity_bytes: int,
        free_bytes: int = 0,
        state: int = 0,
        known: bool = False,
        fresh: bool = False,
        locality: tuple[str, str, str] = ...,
    ) -> None: ...
    def set_node(
        self, node_id: str, state: int, weight: int, free_bytes: int, capacity_bytes: int
    ) -> None: ...
    def set_node_endpoints(
        self,
        node_id: str,
        tcp_endpoint: str,
        unix_endpoint: str,
        host: str,
        locality: tuple[str, str, str] = ...,
    ) -> None: ...
    def stats(self) -> dict[str, Any]: ...

class SegmentFiles:
    def __init__(
        self, directory: str, domains: list[str] = ..., *, discard_foreign: bool = ...
    ) -> None: ...
    @property
    def kept_epoch(self) -> int: ...

class DomainOptions:
    def __init__(self) -> None: ...
    name: str
    tenants: list[str]
    others: bool
    is_private: bool
    segment_bytes: int

class NodeTunables:
    client_cap_bytes: int
    reservation_ms: int
    shm_read: list[str]
    shm_write: list[str]
    pin_cap_bytes: int
    principal_share: float
    hot_reads_per_s: int
    hot_replicas: int
    demote_ahead: float
    promote_reads: int
    readmit_share: float
    prefetch_depth: int
    prefetch_bytes_per_s: int
    def __init__(self) -> None: ...

# hash_secret and principals cannot be read back.
class NodeOptions:
    tunables: NodeTunables
    cluster_id: str
    node_id: str
    node_epoch: int
    session_id: int
    hash_secret: bytes
    tcp_endpoint: str
    unix_endpoint: str
    unix_mode: int
    unix_gid: int
    master_endpoints: list[str]
    principal: str
    token: str
    principals: list[NativePrincipal]
    tls: Tls | None
    segment_bytes: int
    domains: list[DomainOptions]
    index_entries: int
    lease_cap_bytes: int
    ucx: bool
    tracing: bool
    server_threads: int
    poll_us: int
    nvme_dirs: list[str]
    nvme_bytes: int
    discard_foreign_nvme: bool
    nvme_keep_free: float
    allow_cold_restart: bool
    nvme_catalogs: list[Any]
    on_nvme_progress: Callable[[int, int, int], None] | None
    def __init__(self) -> None: ...

class NodeCore:
    def __init__(self, options: NodeOptions, *, files: SegmentFiles | None = ...) -> None: ...
    def start(self) -> tuple[str, str]: ...
    def stop(self) -> None: ...
    def close(self, *, remove_files: bool = ...) -> None: ...
    def beginning(self) -> dict[str, Any]: ...
    def audit(self) -> None: ...
    def wait_link(self, timeout_ms: int) -> bool: ...
    def heartbeat(self, request: bytes, timeout_ms: int) -> bytes: ...
    def stats(self) -> dict[str, Any]: ...
    def take_uses(self, level: int) -> Uses: ...
    def take_prefixes(self) -> list[tuple[str, str, str, int, int]]: ...
    def client_counters(self) -> list[dict[str, Any]]: ...
    def take_spans(self) -> list[tuple[bytes, bytes, bytes, int, int, int, int, int, int]]: ...

def probe_node(
    address: str,
    *,
    cluster_id: str,
    node_id: str,
    principal: str = "",
    token: str = "",
    timeout_ms: int = 5000,
    tls: Tls | None = None,
) -> dict[str, Any]: ...
def probe_master(
    address: str,
    *,
    role: int,
    principal: str = "",
    token: str = "",
    timeout_ms: int = 5000,
    tls: Tls | None = None,
) -> Any: ...
