"""kvstore: a distributed KVCache store for LLM inference. This is the whole public API.

store = kvstore.open(segment_size="256mb")        # master and node inside this process
store = kvstore.connect("127.0.0.1:50051")        # a cluster
store = await kvstore.connect_async("127.0.0.1:50051")
"""

from typing import TYPE_CHECKING, Any

from kvstore.client.connect import connect
from kvstore.client.lookup import Lookup
from kvstore.client.page_pools import PagePool
from kvstore.client.store import Store
from kvstore.client.transfer import Transfer
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

if TYPE_CHECKING:
    from kvstore.client.async_store import AsyncStore, connect_async
else:

    def __getattr__(name: str) -> Any:
        """Load the part for asyncio when it is first accessed, as asyncio takes long to import.

        Source: PEP 562; importing asyncio took more than half as long as kvstore itself.
        """
        if name in {"AsyncStore", "connect_async"}:
            from kvstore.client import async_store

            return getattr(async_store, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "AsyncStore",
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
    "PagePool",
    "PermissionDeniedError",
    "ProtocolError",
    "RebuildingError",
    "Status",
    "Store",
    "TooLargeError",
    "Transfer",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "VersionMismatchError",
    "View",
    "connect",
    "connect_async",
    "open",
]
