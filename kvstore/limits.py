"""Limits of the control plane; those shared with the native side have the same values.

Source: native/src/base/limits.h (a test compares the two).
"""

from __future__ import annotations

MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_BATCH_KEYS = 4096
MAX_REPLICAS = 8
MAX_NODES = 4096
MAX_ENDPOINT_BYTES = 512
MAX_TIMEOUT_MS = 600_000
MAX_EPOCH = (1 << 24) - 1  # types.h

# Limits of the control plane only.
MAX_SOCKET_PATH_BYTES = 107  # sun_path, less its terminating zero
MAX_LABELS = 16
MAX_DOMAINS = 8  # of one node, beside shared and private
MAX_LIST_KEYS = 2000  # a page stays below the 4 MiB that gRPC clients accept
MAX_SEGMENTS = 64
MAX_LIST_NAMESPACES = 4000  # a reply stays below the 4 MiB that gRPC clients accept
MAX_ACTIVITY_COUNTERS = 256
MAX_ACTIVITY_LATENCIES = 16
MAX_RESTART_MS = 60_000  # that a node is awaited which has announced its restart
MAX_LACKS = 16  # sentences of a node about what it lacks
MAX_ACTIVITY_BUCKETS = 256
MAX_GRPC_MESSAGE_BYTES = 8 << 20
MAX_WATCHERS = 256
MAX_WATCH_EVENTS = 1024
MAX_TOKEN_FILE_BYTES = 1 << 20
MAX_CONFIG_BYTES = 1 << 20
MIN_SECRET_BYTES = 16
DEFAULT_TIMEOUT_MS = 5_000
LIST_PAGE_KEYS = 1000
"""Keys of a page, where the caller does not say."""


def is_valid_name(name: str) -> bool:
    """Say whether a tenant, namespace, node id or label value is acceptable.

    Args:
        name: at most MAX_NAME_BYTES of UTF-8 without control characters; empty is allowed.
    """
    if name.isascii():  # nearly all are; each heartbeat has a dozen
        return len(name) <= MAX_NAME_BYTES and name.isprintable()
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return size <= MAX_NAME_BYTES and not any(ord(c) < 0x20 or ord(c) == 0x7F for c in name)


def is_valid_key(key: str) -> bool:
    """Say whether a key has 1 to MAX_KEY_BYTES bytes of UTF-8."""
    try:
        return 1 <= len(key.encode()) <= MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False
