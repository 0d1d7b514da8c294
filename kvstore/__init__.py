"""kvstore: a distributed KVCache store for LLM inference. This is the whole public API.

store = kvstore.open(segment_size="256mb")        # master and node inside this process
store = kvstore.connect("127.0.0.1:50051")        # a cluster
"""

from kvstore.client.connect import connect
from kvstore.client.lookup import Lookup
from kvstore.client.store import Store
from kvstore.client.view import View
from kvstore.embedded import open
from kvstore.errors import (
    ChecksumMismatchError,
    ClosedError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    IoError,
    KvstoreError,
    MissReason,
    NoSpaceError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RebuildingError,
    Status,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
    VersionMismatchError,
)

__version__ = "0.1.0"

__all__ = [
    "ChecksumMismatchError",
    "ClosedError",
    "DeadlineExceededError",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "KvstoreError",
    "Lookup",
    "MissReason",
    "NoSpaceError",
    "OverloadedError",
    "PermissionDeniedError",
    "ProtocolError",
    "RebuildingError",
    "Status",
    "Store",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "VersionMismatchError",
    "View",
    "connect",
    "open",
]
