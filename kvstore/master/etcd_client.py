"""Calls to etcd: bounded in time and size, tried at each member, with typed errors.

The messages and stubs are those of the package aetcd. Its client does not fit: it has no TLS, one
address, one time limit for all calls and no ranges in pages, and needs an event loop, while the
writes of a master come from threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc

from kvstore import clock
from kvstore.addresses import etcd_of
from kvstore.config import MasterConfig
from kvstore.errors import (
    ClosedError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    KvstoreError,
    NoSpaceError,
    PermissionDeniedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from kvstore.security import Secret, read_secrets

try:
    from aetcd import rpc
except ImportError as missing:  # pragma: no cover - where the extra is not installed
    raise InvalidArgumentError(
        "`state` etcd:// needs the package aetcd: pip install 'kvcache-store[etcd]'"
    ) from missing

_CALL_MS = 2000
_PAGE_ROWS = 500
MOST_TXN_BYTES = 1 << 20
"""Of the writes of a transaction. etcd takes requests of 1.5 MiB (--max-request-bytes)."""
MOST_TXN_WRITES = 120
"""Writes in a transaction. etcd takes 128 (--max-txn-ops)."""
_OPTIONS = (
    # The largest value that etcd has, and a page of ours.
    ("grpc.max_receive_message_length", 2 << 20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_FULL = "database space exceeded"
_RELOGIN = ("invalid auth token", "auth: revision in header is old")

T = TypeVar("T")
Operation = Any
"""One of `put`, `delete` and `delete_range`."""


class Found(NamedTuple):
    """A key that was read."""

    value: bytes
    revision: int
    """Of its last change."""
    lease: int
    read_at: int
    """Revision of the whole store when it was read."""


class _Member:
    """The stubs of one member."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options=_OPTIONS)
        else:
            self.channel = grpc.secure_channel(address, credentials, options=_OPTIONS)
        self.kv = rpc.KVStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.auth = rpc.AuthStub(self.channel)
        self.maintenance = rpc.MaintenanceStub(self.channel)


class EtcdClient:
    """Calls to the members of an etcd; thread-safe."""

    def __init__(self, config: MasterConfig) -> None:
        """Read the files that the configuration names; nothing is called yet.

        Raises:
            InvalidArgumentError: One of them is wrong.
        """
        address = etcd_of(config.state)
        credentials = _credentials(config.etcd_tls) if address.tls else None
        self.where = config.state
        """Its address, for messages."""
        self.prefix = address.prefix.encode() + b"/"
        """Of all keys of the cluster."""
        self._members = [_Member(member, credentials) for member in address.members]
        self._first = 0
        """The member that answered last."""
        self._login = _login(config.etcd_auth_file)
        self._token = ""
        self._mutex = threading.Lock()
        self._closed = False

    def get(self, key: bytes) -> Found | None:
        """Read a key; None if it is not there."""
        reply = self._call(lambda member: member.kv.Range, rpc.RangeRequest(key=key))
        if not reply.kvs:
            return None
        (found,) = reply.kvs
        return Found(found.value, found.mod_revision, found.lease, reply.header.revision)

    def rows(self, prefix: bytes, timeout_ms: int = _CALL_MS) -> list[tuple[bytes, bytes]]:
        """Read all keys with a prefix, in their order, all as of one revision.

        Args:
            prefix: not empty.
            timeout_ms: for each page.
        """
        found: list[tuple[bytes, bytes]] = []
        start, end, revision, most = prefix, _end_of(prefix), 0, _PAGE_ROWS
        while True:
            request = rpc.RangeRequest(key=start, range_end=end, limit=most, revision=revision)
            try:
                reply = self._call(lambda member: member.kv.Range, request, timeout_ms)
            except TooLargeError:
                if most == 1:
                    raise
                most = max(1, most // 4)
                continue
            found += [(bytes(one.key), bytes(one.value)) for one in reply.kvs]
            if not reply.more or not reply.kvs:
                return found
            revision = revision or reply.header.revision
            start = found[-1][0] + b"\0"

    def create(self, key: bytes, value: bytes, lease: int, also: Sequence[Operation] = ()) -> int:
        """Put a key that is not there; its revision, or 0 if it is there.

        Args:
            key: to put.
            value: of the key.
            lease: with which it is deleted.
            also: operations that are carried out with it.
        """
        absent = rpc.Compare(
            key=key, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=0
        )
        return self._transact([absent], [put(key, value, lease), *also])

    def write(
        self,
        fence: bytes,
        revision: int,
        operations: Sequence[Operation],
        timeout_ms: int = _CALL_MS,
    ) -> int:
        """Carry out all operations, if a key is as it was.

        Args:
            fence: the key.
            revision: of its last change.
            operations: at most MOST_TXN_WRITES; none: only compare.
            timeout_ms: for all members together.

        Returns:
            The revision of the writes; 0 if the key is another one, or gone.
        """
        same = rpc.Compare(
            key=fence, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision
        )
        return self._transact([same], operations, timeout_ms)

    def _transact(
        self, compare: list[Any], operations: Sequence[Operation], timeout_ms: int = _CALL_MS
    ) -> int:
        request = rpc.TxnRequest(compare=compare, success=operations)
        reply = self._call(lambda member: member.kv.Txn, request, timeout_ms)
        return int(reply.header.revision) if reply.succeeded else 0

    def grant(self, ttl_s: int) -> tuple[int, int]:
        """Make a lease; its id, and its time to live in seconds, which may be longer."""
        reply = self._call(lambda member: member.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s))
        return int(reply.ID), int(reply.TTL)

    def keep_alive(self, lease: int, timeout_ms: int) -> int:
        """Renew a lease; its time to live in seconds, 0 if it is gone."""
        request = rpc.LeaseKeepAliveRequest(ID=lease)

        def first(member: _Member) -> Callable[..., Any]:
            def renew(request: Any, **how: Any) -> Any:
                replies = member.lease.LeaseKeepAlive(iter([request]), **how)
                try:
                    for reply in replies:
                        return reply
                finally:
                    replies.cancel()
                raise UnavailableError(f"etcd {member.address} (`state`) ended the renewal")

            return renew

        return int(self._call(first, request, timeout_ms).TTL)

    def revoke(self, lease: int) -> None:
        """End a lease, with all keys that are bound to it."""
        self._call(lambda member: member.lease.LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease))

    def check_room(self, timeout_ms: int) -> None:
        """Ask a member whether etcd takes writes.

        Raises:
            NoSpaceError: It does not: its quota is used up.
        """
        reply = self._call(
            lambda member: member.maintenance.Status, rpc.StatusRequest(), timeout_ms
        )
        if any("NOSPACE" in error for error in reply.errors):
            raise NoSpaceError(_full(self.where))

    def wait_deleted(self, key: bytes, after: int, timeout_ms: int) -> None:
        """Wait until a key may have been deleted, or the time is over.

        Args:
            key: to watch.
            after: revision up to which its changes are known.
            timeout_ms: returns then at the latest.
        """
        wanted = rpc.WatchCreateRequest(key=key, start_revision=after + 1)

        def watch(member: _Member) -> Callable[..., Any]:
            def until_deleted(request: Any, **how: Any) -> None:
                replies = member.watch.Watch(iter([request]), **how)
                try:
                    for reply in replies:
                        if reply.canceled or any(e.type == e.DELETE for e in reply.events):
                            return
                except grpc.RpcError as error:
                    if not _is_late(error):
                        raise
                finally:
                    replies.cancel()

            return until_deleted

        self._call(watch, rpc.WatchRequest(create_request=wanted), timeout_ms)

    def close(self) -> None:
        """End all calls."""
        self._closed = True
        for member in self._members:
            member.channel.close()

    def _call(
        self,
        method: Callable[[_Member], Callable[..., T]],
        request: Any,
        timeout_ms: int = _CALL_MS,
    ) -> T:
        """Call one member after the other, the one that answered last first, until one answers.

        Raises:
            KvstoreError: None did; the message names etcd.
        """
        until_ms = clock.monotonic_ms() + timeout_ms
        refusal: KvstoreError = UnavailableError(f"{self.where}: no answer within {timeout_ms} ms")
        count = len(self._members)
        first = self._first
        for turn in range(count):
            member = self._members[(first + turn) % count]
            left_ms = until_ms - clock.monotonic_ms()
            if left_ms <= 0:
                break
            try:
                reply = self._ask(member, method, request, left_ms / 1000 / (count - turn))
            except grpc.RpcError as error:
                refusal = _error(member.address, error)
                if self._closed:
                    refusal = ClosedError(f"{self.where}: closed")
                if not isinstance(refusal, UnavailableError):
                    break
            except ValueError:  # a channel that was closed meanwhile
                if not self._closed:
                    raise
                refusal = ClosedError(f"{self.where}: closed")
                break
            else:
                self._first = (first + turn) % count
                return reply
        raise refusal

    def _ask(
        self,
        member: _Member,
        method: Callable[[_Member], Callable[..., T]],
        request: Any,
        timeout_s: float,
    ) -> T:
        token = self._token
        if self._login and not token:
            token = self._log_in(member, "", timeout_s)
        try:
            return method(member)(request, timeout=timeout_s, metadata=_metadata(token))
        except grpc.RpcError as error:
            if not self._login or not any(why in (error.details() or "") for why in _RELOGIN):
                raise
        token = self._log_in(member, token, timeout_s)
        return method(member)(request, timeout=timeout_s, metadata=_metadata(token))

    def _log_in(self, member: _Member, refused: str, timeout_s: float) -> str:
        """Get a token in place of a refused one, unless another thread already has."""
        assert self._login is not None
        name, password = self._login
        with self._mutex:
            if self._token == refused:
                request = rpc.AuthenticateRequest(name=name, password=password.reveal())
                self._token = member.auth.Authenticate(request, timeout=timeout_s).token
            return self._token


def put(key: bytes, value: bytes, lease: int = 0) -> Operation:
    """Make an operation that writes a key; it is deleted with the lease, if there is one."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes) -> Operation:
    """Make an operation that deletes a key."""
    return delete_range(key, key + b"\0")


def delete_range(first: bytes, end: bytes) -> Operation:
    """Make an operation that deletes the keys from `first` to before `end`."""
    request = rpc.DeleteRangeRequest(key=first, range_end=end)
    return rpc.RequestOp(request_delete_range=request)


def _end_of(prefix: bytes) -> bytes:
    """The first key behind all those with a prefix, whose last byte is not 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("token", token),) if token else ()


def _full(where: str) -> str:
    return (
        f"etcd {where} is full (--quota-backend-bytes): compact and defragment it, then "
        "`etcdctl alarm disarm`"
    )


def _error(member: str, error: grpc.RpcError) -> KvstoreError:
    """Turn a failed call into one of our errors, which names etcd and the member."""
    code, details = error.code(), error.details() or ""
    where = f"etcd {member} (`state`)"
    if "larger than max" in details:  # of gRPC, with one code or another
        return TooLargeError(f"{where}: {details}")
    if _is_late(error):
        return DeadlineExceededError(f"{where} did not answer in time")
    match code:
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _FULL in details:
            return NoSpaceError(_full(member))
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return UnavailableError(f"{where}: {details}")
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(f"{where}: {details}")
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDeniedError(f"{where}: {details}")
        case grpc.StatusCode.INVALID_ARGUMENT if "authentication failed" in details:
            return UnauthenticatedError(f"{where}: {details} (`etcd_auth_file`)")
        case grpc.StatusCode.INVALID_ARGUMENT if "user name is empty" in details:
            return UnauthenticatedError(f"{where} wants a user: `etcd_auth_file`")
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED:
            return InternalError(f"{where}: {code.name}: {details}")
    # A member that stops, a compaction meanwhile, and what only a newer etcd says: try again.
    return UnavailableError(f"{where}: {code.name}: {details}")


def _is_late(error: grpc.RpcError) -> bool:
    """Say whether the time was over: etcd itself may notice first, and gives no code then."""
    late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    return late or "context deadline exceeded" in (error.details() or "")


def _credentials(files: Mapping[str, str]) -> grpc.ChannelCredentials:
    read = {}
    for name, path in files.items():
        try:
            read[name] = Path(path).read_bytes()
        except OSError as error:
            raise InvalidArgumentError(f"etcd_tls: {path}: {error.strerror}") from error
    return grpc.ssl_channel_credentials(read.get("ca"), read.get("key"), read.get("cert"))


def _login(path: str) -> tuple[str, Secret] | None:
    if not path:
        return None
    name, colon, password = read_secrets(path, "etcd_auth_file").strip().partition(":")
    if not (name and colon and password):
        raise InvalidArgumentError(f"etcd_auth_file {path}: it is not USER:PASSWORD")
    return name, Secret(password)
