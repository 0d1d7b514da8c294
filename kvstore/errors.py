"""Every outcome in one table: code, name, exception class, gRPC status, retryable.

The numbers are those of ``native/src/base/status.h``; a test compares the two. A miss is not
an exception, and neither is AlreadyExists: exceptions report what the caller has to fix.

Exception tree::

    KvstoreError
    ├── InvalidArgumentError (also ValueError)
    │   └── TooLargeError
    ├── ClosedError
    ├── UnauthenticatedError
    ├── PermissionDeniedError
    ├── VersionMismatchError
    ├── ProtocolError
    ├── UnavailableError
    │   ├── DeadlineExceededError (also TimeoutError)
    │   ├── RebuildingError
    │   └── OverloadedError
    ├── NoSpaceError
    ├── IoError (also OSError)
    ├── ChecksumMismatchError
    ├── UnsupportedError
    └── InternalError
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, IntEnum
from typing import Any, NamedTuple


class Status(IntEnum):
    """Outcome of one operation. Ok is 0, everything else is negative."""

    Ok = 0
    AlreadyExists = -1
    NotFound = -2
    NoSpace = -3
    Unavailable = -4
    DeadlineExceeded = -5
    InvalidArgument = -6
    TooLarge = -7
    Unauthenticated = -8
    PermissionDenied = -9
    VersionMismatch = -10
    ProtocolError = -11
    ChecksumMismatch = -12
    Expired = -13
    Removed = -14
    Partial = -15
    BufferTooSmall = -16
    Closed = -17
    IoError = -18
    Unsupported = -19
    Rebuilding = -20
    Overloaded = -21
    Internal = -22

    def __str__(self) -> str:
        """Return the name; the number is `int(status)`."""
        return self.name

    def __bool__(self) -> bool:
        """As `ok`: `if store.put(key, data):` means that readers find the key."""
        return self.ok

    @property
    def ok(self) -> bool:
        """True for Ok and AlreadyExists: a cluster's readers find the key."""
        return self in (Status.Ok, Status.AlreadyExists)

    @property
    def retryable(self) -> bool:
        """True when the same call may succeed later without any change by the caller."""
        return TABLE[self].retryable


class MissReason(Enum):
    """Why a read found nothing; the values are the names used in metrics and stats."""

    None_ = "none"
    Absent = "absent"
    Evicted = "evicted"
    Expired = "expired"
    Removed = "removed"
    Flushed = "flushed"
    NodeDown = "node_down"
    Version = "version"
    Checksum = "checksum"
    Rebuilding = "rebuilding"
    IoError = "io_error"
    Unavailable = "unavailable"
    IndexFull = "index_full"
    BufferTooSmall = "buffer_too_small"
    Restarting = "restarting"

    def __bool__(self) -> bool:
        """Say whether something was missed: None_ is false."""
        return self is not MissReason.None_


class KvstoreError(Exception):
    """Base of every exception this package raises."""

    status: Status = Status.Internal


class InvalidArgumentError(KvstoreError, ValueError):
    """An argument is wrong; the message names it and the valid values."""

    status = Status.InvalidArgument


class TooLargeError(InvalidArgumentError):
    """A key, an object or a batch is above a limit."""

    status = Status.TooLarge


class ClosedError(KvstoreError):
    """The store was closed, or this process was forked from the one that opened it."""

    status = Status.Closed


class UnauthenticatedError(KvstoreError):
    """The token is missing or wrong."""

    status = Status.Unauthenticated


class PermissionDeniedError(KvstoreError):
    """The principal may not do this."""

    status = Status.PermissionDenied


class VersionMismatchError(KvstoreError):
    """Client and server share no protocol version, or a required feature is missing."""

    status = Status.VersionMismatch


class ProtocolError(KvstoreError):
    """The peer does not speak the block protocol, or a frame was malformed."""

    status = Status.ProtocolError


class UnavailableError(KvstoreError):
    """A required process cannot be reached; retry later."""

    status = Status.Unavailable


class DeadlineExceededError(UnavailableError, TimeoutError):
    """The call's deadline has passed; its outcome is unknown."""

    status = Status.DeadlineExceeded


class RebuildingError(UnavailableError):
    """The master is still collecting the announcements of its known nodes."""

    status = Status.Rebuilding


class OverloadedError(UnavailableError):
    """Refused by admission control; retry later."""

    status = Status.Overloaded


class NoSpaceError(KvstoreError):
    """Out of space: no memory for a segment, or nothing that may be evicted."""

    status = Status.NoSpace


class IoError(KvstoreError, OSError):
    """A call of the operating system failed; the message names it."""

    status = Status.IoError


class ChecksumMismatchError(KvstoreError):
    """Stored bytes differ from the bytes that were put."""

    status = Status.ChecksumMismatch


class UnsupportedError(KvstoreError):
    """The peer does not offer this feature."""

    status = Status.Unsupported


class InternalError(KvstoreError):
    """An invariant was violated: this is a bug, please report it."""

    status = Status.Internal


class Row(NamedTuple):
    """One line of the table."""

    error: type[KvstoreError]
    grpc: str
    retryable: bool


TABLE: dict[Status, Row] = {
    Status.Ok: Row(KvstoreError, "OK", False),
    Status.AlreadyExists: Row(KvstoreError, "ALREADY_EXISTS", False),
    Status.NotFound: Row(KvstoreError, "NOT_FOUND", False),
    Status.NoSpace: Row(NoSpaceError, "RESOURCE_EXHAUSTED", True),
    Status.Unavailable: Row(UnavailableError, "UNAVAILABLE", True),
    Status.DeadlineExceeded: Row(DeadlineExceededError, "DEADLINE_EXCEEDED", True),
    Status.InvalidArgument: Row(InvalidArgumentError, "INVALID_ARGUMENT", False),
    Status.TooLarge: Row(TooLargeError, "OUT_OF_RANGE", False),
    Status.Unauthenticated: Row(UnauthenticatedError, "UNAUTHENTICATED", False),
    Status.PermissionDenied: Row(PermissionDeniedError, "PERMISSION_DENIED", False),
    Status.VersionMismatch: Row(VersionMismatchError, "FAILED_PRECONDITION", False),
    Status.ProtocolError: Row(ProtocolError, "INTERNAL", False),
    Status.ChecksumMismatch: Row(ChecksumMismatchError, "DATA_LOSS", False),
    Status.Expired: Row(KvstoreError, "ABORTED", True),
    Status.Removed: Row(KvstoreError, "ABORTED", False),
    Status.Partial: Row(KvstoreError, "ABORTED", True),
    Status.BufferTooSmall: Row(InvalidArgumentError, "OUT_OF_RANGE", False),
    Status.Closed: Row(ClosedError, "CANCELLED", False),
    Status.IoError: Row(IoError, "INTERNAL", False),
    Status.Unsupported: Row(UnsupportedError, "UNIMPLEMENTED", False),
    Status.Rebuilding: Row(RebuildingError, "UNAVAILABLE", True),
    Status.Overloaded: Row(OverloadedError, "RESOURCE_EXHAUSTED", True),
    Status.Internal: Row(InternalError, "INTERNAL", False),
}

# What a call raises; every other code is a value that the call returns.
RAISED = frozenset(
    {
        Status.InvalidArgument,
        Status.Unauthenticated,
        Status.PermissionDenied,
        Status.VersionMismatch,
        Status.Closed,
    }
)


def error_for(code: int, message: str = "") -> KvstoreError:
    """Make the exception for a code.

    Args:
        code: a status number; one outside the table counts as Internal.
        message: a sentence for the user; the code's name when empty.

    Returns:
        The exception, not raised.
    """
    try:
        status = Status(code)
    except ValueError:
        status, message = Status.Internal, message or f"unknown status code {code}"
    error = TABLE[status].error(message or status.name)
    error.status = status
    return error


def status_for_grpc(name: str) -> Status:
    """Find the status that a gRPC status name stands for.

    Args:
        name: for example "UNAVAILABLE".

    Returns:
        The first status of the table with that gRPC name; Internal when there is none.
    """
    for status, row in TABLE.items():
        if row.grpc == name:
            return status
    return Status.Internal


def error_from_rpc(grpc_name: str, details: str, trailing: Iterable[Any] | None) -> KvstoreError:
    """Make the exception for a failed call of the control plane.

    Args:
        grpc_name: the gRPC status, for example "UNAVAILABLE".
        details: the server's sentence; may be empty.
        trailing: the call's trailing metadata, (name, value) each; its `kvstore-status` is more
            precise than the gRPC status.

    Returns:
        The exception, not raised.
    """
    for name, value in trailing or ():
        if name == "kvstore-status":
            return error_for(int(value), details)
    return error_for(status_for_grpc(grpc_name), details or grpc_name)
