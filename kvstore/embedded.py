"""open(): master and node inside this process, and a client onto them.

For development, tests, notebooks and engines that run alone. The same native code as in a cluster,
over sockets in the abstract namespace and anonymous memory: nothing is left behind, however this
process ends. The objects are lost with it.
"""

from __future__ import annotations

import atexit
import os
import re
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from kvstore import _native
from kvstore.client.connect import connect
from kvstore.client.store import Store
from kvstore.errors import InvalidArgumentError, UnavailableError, UnsupportedError
from kvstore.limits import DEFAULT_TIMEOUT_MS
from kvstore.options import path, text, whole_number
from kvstore.sizes import parse_size
from kvstore.tls import TlsFiles

_NODE_ID = "embedded"
_ALIVE = 1  # NodeState of native types.h
_FULL_WEIGHT = 1000
_START_MS = 5000
_START_SLICE_MS = 100
_MIN_SEGMENT_BYTES = 1 << 20


class _Servers:
    """The native master and node of one embedded store."""

    def __init__(self, segment_bytes: int, segment_dir: str, tenant: str) -> None:
        """Start both and wait until puts are served."""
        name = f"unix:@kvstore-{os.getpid()}-{os.urandom(8).hex()}"
        self.address = f"{name}-master"
        secret = os.urandom(16)
        session_id = (int.from_bytes(os.urandom(8), "big") >> 1) | 1
        cluster_id = f"embedded-{os.urandom(4).hex()}"
        self.master = _native.MasterCore(
            listen=[self.address],
            cluster_id=cluster_id,
            secret=secret,
            epoch=1,
            journal_auto_ack=True,
        )
        self.master.start()
        node_endpoint = f"{name}-node"
        self.master.register_node(
            node_id=_NODE_ID,
            session_id=session_id,
            node_epoch=1,
            tcp_endpoint="",
            unix_endpoint=node_endpoint,
            host="localhost",
            weight=_FULL_WEIGHT,
            capacity_bytes=segment_bytes,
            free_bytes=segment_bytes,
            state=_ALIVE,
        )
        try:
            # Nothing is kept across processes: each is a cluster of its own.
            files = _native.SegmentFiles(segment_dir, discard_foreign=True) if segment_dir else None
            options = _native.NodeOptions()
            options.cluster_id = cluster_id
            options.node_id = _NODE_ID
            options.session_id = session_id
            options.hash_secret = secret
            options.unix_endpoint = node_endpoint
            options.master_endpoints = [self.address]
            options.segment_bytes = segment_bytes
            options.tunables.shm_write = [tenant]
            self.node = _native.NodeCore(options, files=files)
        except BaseException:
            self.master.stop()
            raise
        try:
            self.node.start()
            # In slices: signals are handled between them.
            waits = range(_START_MS // _START_SLICE_MS)
            if not any(self.node.wait_link(_START_SLICE_MS) for _ in waits):
                raise UnavailableError("the embedded node did not reach its master")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both and remove their files."""
        self.node.stop()
        self.node.close(remove_files=True)
        self.master.stop()

    def stats(self) -> dict[str, Any]:
        """Return their counters, for Store.stats."""
        return {"node": self.node.stats(), "master": self.master.stats()}


_running: weakref.WeakSet[_Servers] = weakref.WeakSet()


def _abandon_in_child() -> None:
    """A forked child has the servers' memory but not their threads: it must never stop them."""
    for servers in list(_running):
        _native.leak(servers)
        _native.leak(servers.node)
        _native.leak(servers.master)
    _running.clear()


os.register_at_fork(after_in_child=_abandon_in_child)


def _end(client: _native.Client, servers: _Servers, pid: int) -> None:
    if os.getpid() == pid:
        client.close()
        servers.stop()


def open(
    segment_size: int | str = "256mb",
    *,
    segment_dir: str | os.PathLike[str] | None = None,
    tenant: str = "default",
    namespace: str = "",
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
) -> Store:
    """Open a store that lives inside this process.

    Args:
        segment_size: bytes for objects, a number or "256mb"; memory is allocated as it is used.
        segment_dir: folder (tmpfs or hugetlbfs) for the memory's files, removed by close; a killed
            process leaves them behind. None: anonymous memory, which leaves nothing behind.
        tenant: as in `kvstore.connect`.
        namespace: as in `kvstore.connect`.
        timeout_ms: deadline of each call, 1 to 600,000.

    Returns:
        An open store; close it, or use it as a context manager. It is also closed at exit.

    Raises:
        InvalidArgumentError: An argument is wrong.
        NoSpaceError: The segment does not fit the machine, the cgroup or `segment_dir`.
        IoError: A call of the operating system failed.
    """
    try:
        segment_bytes = parse_size(segment_size)
    except ValueError as error:
        raise InvalidArgumentError(f"segment_size: {error}") from None
    if segment_bytes < _MIN_SEGMENT_BYTES:
        raise InvalidArgumentError("segment_size must be 1mb or more")
    directory = "" if segment_dir is None else path("segment_dir", segment_dir)
    # Checked before the servers start, which need them.
    text("tenant", tenant)
    text("namespace", namespace)
    timeout_ms = whole_number("timeout_ms", timeout_ms, 1, _native.MAX_TIMEOUT_MS)
    servers = _Servers(segment_bytes, directory, tenant)
    try:
        store = connect(servers.address, tenant=tenant, namespace=namespace, timeout_ms=timeout_ms)
    except BaseException:
        servers.stop()
        raise
    _running.add(servers)
    # Runs at close, when the store is dropped, and at exit: whichever comes first.
    end = weakref.finalize(store, _end, store._client, servers, os.getpid())
    store._attach(servers.stats, end)
    return store


class MemberNode(Protocol):
    """A node of a cluster inside this process; made by `join`."""

    @property
    def node_id(self) -> str:
        """Its name in the cluster."""

    def close(self) -> None:
        """Leave the cluster; its objects are lost. Does nothing the second time."""


def join(
    masters: Sequence[str],
    segment_bytes: int,
    *,
    name: str = "",
    tenant: str = "default",
    token_file: str | None = None,
    tls: TlsFiles | None = None,
) -> MemberNode:
    """Run a node of a cluster inside this process: anonymous memory, no files.

    Its objects are lost when the process exits. Needs the server extra (its control plane is that
    of kvstore-node).

    Args:
        masters: their block addresses, in the order to try them.
        segment_bytes: memory for objects that is lent to the cluster.
        name: "host" or "host:port" by which other hosts reach this one; the node's name starts with
            it. It does not affect the address when the master is on this host.
        tenant: its clients may map the memory, besides those of the tenant "default".
        token_file: of principals, one of them with the role node; None without authentication.
        tls: with a certificate for `name`; None: plain.

    Returns:
        The node; close it. It also leaves when the interpreter exits.

    Raises:
        InvalidArgumentError: An argument is wrong.
        UnsupportedError: The server extra is not installed.
        UnavailableError: The node could not join in time.
        NoSpaceError: The memory does not fit the machine or the cgroup.
    """
    if segment_bytes < _MIN_SEGMENT_BYTES:
        raise InvalidArgumentError("a node needs a segment of 1 MiB or more")
    try:
        from kvstore.config import NodeConfig, load
        from kvstore.node.ephemeral import EphemeralNode
    except ImportError as error:
        raise UnsupportedError(
            "lending memory of this process needs the server extra, pip install "
            f"'kvcache-store[server]' ({error}); or lend none and run kvstore-node on this host"
        ) from None
    host = re.sub(r":\d+$", "", name).strip("[]")
    local = all(_is_local(master) for master in masters) or host in ("", "localhost")
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", name) or "process"
    node = EphemeralNode(
        load(
            NodeConfig,
            None,
            {
                "master_address": list(masters),
                "node_id": f"{readable[:64]}-{os.getpid()}-{os.urandom(4).hex()}",
                "host": "127.0.0.1" if local else host,
                "segment_size": segment_bytes,
                "shm_write": sorted({"default", tenant}),
                "auth_token_file": token_file or "",
                "labels": {"ephemeral": "true"},  # the master forgets it soon after it left
                "tls": {"cert": tls.cert, "key": tls.key, "ca": tls.ca} if tls else None,
            },
        )
    )
    atexit.register(node.close)
    return node


def _is_local(address: str) -> bool:
    host = re.sub(r":\d+$", "", address)
    return host.startswith("unix:") or host in ("127.0.0.1", "localhost", "[::1]", "::1")
