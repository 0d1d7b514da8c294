"""MooncakeDistributedStore: Mooncake's store object, on kvstore."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from kvstore.client.connect import connect
from kvstore.client.store import Store
from kvstore.compat.mooncake.calls import log
from kvstore.compat.mooncake.codes import ErrorCode, code_of
from kvstore.compat.mooncake.memory import MooncakeHostMemAllocator
from kvstore.compat.mooncake.replicas import Replicas
from kvstore.compat.mooncake.sessions import Sessions
from kvstore.compat.mooncake.settings import NAMESPACE, Settings, from_environment, settings
from kvstore.compat.mooncake.tensors import Tensors
from kvstore.embedded import MemberNode, join
from kvstore.errors import InvalidArgumentError, KvstoreError
from kvstore.tls import tls_files

_POSITIONAL = (
    "local_hostname",
    "metadata_server",
    "global_segment_size",
    "local_buffer_size",
    "protocol",
    "rdma_devices",
    "master_server_addr",
    "engine",
    "enable_ssd_offload",
    "ssd_offload_path",
    "tenant_id",
    "enable_client_http_server",
    "client_http_port",
)
_REQUIRED = 7


class MooncakeDistributedStore(Tensors, Sessions, Replicas):
    """A store with Mooncake's Python interface; `setup` connects it, `close` disconnects it.

    Thread-safe. Calls return numbers: 0, counts and sizes, or a negative code (`codes.ErrorCode`);
    they raise only TypeError, for a wrong number of arguments. Objects are verified on every read;
    failures become misses.
    """

    def __init__(self) -> None:
        """Create a store that is not connected yet."""
        super().__init__()
        self._settings: Settings | None = None
        self._node: MemberNode | None = None
        self._pool = MooncakeHostMemAllocator()

    def setup(self, *args: Any, **kwargs: Any) -> int:
        """Connect to the cluster and lend it memory.

        Args:
            *args: a dict by Mooncake's names, in either spelling (`master_server_addr` or
                `master_server_address`, `rdma_devices` or `device_name`); or, in this order,
                local_hostname, metadata_server, global_segment_size, local_buffer_size, protocol,
                rdma_devices, master_server_addr, engine, ….
            **kwargs: the same by name; `tenant_id` is the tenant.

        Returns:
            0, or a negative code; the log states the reason. With `global_segment_size` above 0
            this process then also runs a node of the cluster.

        Raises:
            TypeError: Too few or too many arguments, or an unknown keyword.
        """
        if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
            return self._setup(args[0])
        if "config" in kwargs and len(kwargs) == 1 and not args:
            return self._setup(kwargs["config"])
        return self._setup(_named(args, kwargs))

    def _setup(self, values: Mapping[str, Any]) -> int:
        with self._lock:
            if self._store is not None:
                log.error("mooncake drop-in: the store is already set up; close it first")
                return int(ErrorCode.INVALID_PARAMS)
            try:
                wanted = settings(values)
                self._open(wanted)
            except KvstoreError as error:
                log.error("mooncake drop-in: setup failed: %s", error)
                return code_of(error.status) or int(ErrorCode.INTERNAL_ERROR)
            except Exception:
                log.exception("mooncake drop-in: setup failed")
                return int(ErrorCode.INTERNAL_ERROR)
        return int(ErrorCode.OK)

    def _open(self, wanted: Settings) -> None:
        for key, why in wanted.without_effect().items():
            log.info("mooncake drop-in: %s has no effect: %s", key, why)
        store = _connect(wanted)
        node = None
        try:
            if wanted.global_segment_size > 0:
                node = join(
                    wanted.masters,
                    wanted.global_segment_size,
                    name=wanted.local_hostname,
                    tenant=wanted.tenant_id,
                    token_file=wanted.token_file,
                    tls=tls_files(wanted.tls_ca, wanted.tls_cert, wanted.tls_key),
                )
        except BaseException:
            store.close()
            raise
        self._settings, self._store, self._node = wanted, store, node
        log.info(
            "mooncake drop-in: connected to %s, tenant %s, %s",
            wanted.master_server_addr,
            wanted.tenant_id,
            f"with node {node.node_id} in this process" if node else "as a client only",
        )

    def setup_dummy(self, mem_pool_size: int, local_buffer_size: int, server_address: str) -> int:
        """Connect as a client without memory of its own.

        Args:
            mem_pool_size: no effect.
            local_buffer_size: no effect.
            server_address: of kvstore's master: there is no separate client process.

        Returns:
            0, or a negative code.
        """
        return self._setup(
            {
                "local_hostname": "localhost",
                "metadata_server": "",
                "global_segment_size": 0,
                "master_server_addr": server_address,
            }
        )

    def init_all(self, protocol: str, device_name: str, mount_segment_size: int = 16 << 20) -> int:
        """Connect as configured by the MOONCAKE_* environment; lend `mount_segment_size` bytes."""
        try:
            found = {"local_hostname": "localhost", "metadata_server": ""} | from_environment()
        except InvalidArgumentError as error:
            log.error("mooncake drop-in: %s", error)
            return int(ErrorCode.INVALID_PARAMS)
        given = {"protocol": protocol, "device_name": device_name}
        return self._setup(found | given | {"global_segment_size": mount_segment_size})

    def health_check(self) -> int:
        """Return 0 if healthy, 1 if not set up or closed, 2 if the master cannot be reached."""
        if self._store is None:
            return 1
        present = self.is_exist("kvstore-health")
        return 0 if present >= 0 else 2

    def get_hostname(self) -> str:
        """Return the name of this process's node, else the `local_hostname` of setup."""
        if self._node is not None:
            return self._node.node_id
        return self._settings.local_hostname if self._settings is not None else ""

    def alloc_from_mem_pool(self, size: int) -> int:
        """Map memory for the engine; return its address, or 0. It stays until the process exits."""
        return self._pool.alloc(size)

    def close(self) -> int:
        """Disconnect; this process's node leaves the cluster, and its objects are lost.

        Returns:
            0, also the second time.
        """
        with self._lock:
            store, self._store = self._store, None
            node, self._node = self._node, None
        self._end_sessions()
        if store is not None:
            store.close()
        if node is not None:
            node.close()
        return int(ErrorCode.OK)

    def stats(self) -> dict[str, Any]:
        """Return kvstore's counters and those of the drop-in (not of Mooncake's interface)."""
        store = self._store
        return {} if store is None else {**store.stats(), "drop_in": self._guard.stats()}


def _connect(wanted: Settings) -> Store:
    return connect(
        wanted.masters,
        tenant=wanted.tenant_id,
        namespace=NAMESPACE,
        token_file=wanted.token_file,
        tls_ca=wanted.tls_ca,
        tls_cert=wanted.tls_cert,
        tls_key=wanted.tls_key,
        timeout_ms=wanted.timeout_ms,
        transport=wanted.transport,
    )


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give positional arguments their names, as a signature would."""
    if len(args) > len(_POSITIONAL):
        raise TypeError(f"setup() takes at most {len(_POSITIONAL)} arguments, {len(args)} given")
    values = dict(zip(_POSITIONAL, args, strict=False))
    for name, value in kwargs.items():
        if name not in _POSITIONAL:
            raise TypeError(f"setup() got an unexpected keyword argument {name!r}")
        if name in values:
            raise TypeError(f"setup() got multiple values for argument {name!r}")
        values[name] = value
    missing = [name for name in _POSITIONAL[:_REQUIRED] if name not in values]
    if missing:
        raise TypeError(f"setup() is missing {', '.join(missing)}")
    return values


class MooncakeDistributedStoreAsync(MooncakeDistributedStore):
    """Adds an awaitable `async_…` variant of every call, run on the loop's executor."""

    def __getattr__(self, name: str) -> Any:
        """Make the awaitable variant of a call.

        Raises:
            AttributeError: There is no such call.
        """
        call = getattr(self, name[6:], None) if name.startswith("async_") else None
        if not callable(call):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        @functools.wraps(call)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            import asyncio

            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, functools.partial(call, *args, **kwargs))

        return awaited
