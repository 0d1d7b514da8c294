"""Mooncake's error codes for kvstore's statuses."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from kvstore.errors import Status


class ErrorCode(IntEnum):
    """The codes that Mooncake documents and this drop-in returns.

    Source: Mooncake's error table (docs, "Error Code Explanation").
    """

    OK = 0
    INTERNAL_ERROR = -1
    SEGMENT_NOT_FOUND = -101
    NO_AVAILABLE_HANDLE = -200
    INVALID_PARAMS = -600
    OBJECT_NOT_FOUND = -704
    OBJECT_ALREADY_EXISTS = -705
    OBJECT_HAS_LEASE = -706
    TRANSFER_FAIL = -800
    RPC_FAIL = -900
    UNAVAILABLE_IN_CURRENT_MODE = -1011
    TASK_NOT_FOUND = -1400


_CODES: Final = {
    Status.Ok: ErrorCode.OK,
    Status.AlreadyExists: ErrorCode.OK,  # a put of an existing key is a silent success
    Status.NotFound: ErrorCode.OBJECT_NOT_FOUND,
    Status.NoSpace: ErrorCode.NO_AVAILABLE_HANDLE,
    Status.Unavailable: ErrorCode.RPC_FAIL,
    Status.DeadlineExceeded: ErrorCode.RPC_FAIL,
    Status.InvalidArgument: ErrorCode.INVALID_PARAMS,
    Status.TooLarge: ErrorCode.INVALID_PARAMS,  # not NO_AVAILABLE_HANDLE: waiting does not help
    Status.Unauthenticated: ErrorCode.INVALID_PARAMS,
    Status.PermissionDenied: ErrorCode.INVALID_PARAMS,
    Status.VersionMismatch: ErrorCode.RPC_FAIL,
    Status.ProtocolError: ErrorCode.RPC_FAIL,
    Status.ChecksumMismatch: ErrorCode.TRANSFER_FAIL,
    Status.Expired: ErrorCode.TRANSFER_FAIL,
    Status.Removed: ErrorCode.OBJECT_NOT_FOUND,
    Status.Partial: ErrorCode.OK,  # unreached nodes apply it before they serve again
    Status.BufferTooSmall: ErrorCode.INVALID_PARAMS,
    Status.Closed: ErrorCode.INVALID_PARAMS,
    Status.IoError: ErrorCode.TRANSFER_FAIL,
    Status.Unsupported: ErrorCode.UNAVAILABLE_IN_CURRENT_MODE,
    Status.Rebuilding: ErrorCode.RPC_FAIL,
    Status.Overloaded: ErrorCode.RPC_FAIL,
    Status.Internal: ErrorCode.INTERNAL_ERROR,
}
_BY_NUMBER: Final = {int(status): int(code) for status, code in _CODES.items()}


def code_of(status: int) -> int:
    """Return Mooncake's number for a status of kvstore; INTERNAL_ERROR for an unknown one."""
    return _BY_NUMBER.get(status, int(ErrorCode.INTERNAL_ERROR))


def size_or_code(number: int) -> int:
    """Keep a size, translate a negative status."""
    return number if number >= 0 else code_of(number)


def presence(number: int) -> int:
    """Result of is_exist: 1, 0, or negative when the store was unreachable.

    Args:
        number: a size or a negative status of `Store.batch_sizes`.
    """
    if number >= 0:
        return 1
    code = code_of(number)
    return 0 if code == ErrorCode.OBJECT_NOT_FOUND else code
