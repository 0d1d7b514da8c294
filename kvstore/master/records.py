"""Records of the master's state: each value ends with a checksum over its table, key and bytes.

Format 1 had none; its records are read as they are, and rewritten when the state is next opened.
``format`` itself has none, so that every version can read it.
"""

from __future__ import annotations

import re
import zlib

import msgspec

from kvstore.errors import ChecksumMismatchError
from kvstore.limits import MAX_EPOCH, is_valid_name

FORMAT_VERSION = 2
TABLES = ("meta", "namespaces", "nodes", "ops")
"""In the order of their names, as they lie in the file."""
FORMAT = b"format"
_CHECKSUM_BYTES = 4
_OPERATION_MAGIC = b"KVJ\x01"
_MAX_NUMBER = 2**64 - 1

Rows = dict[str, dict[bytes, bytes]]
"""Values by table and key, without checksums."""


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Durable record of a node."""

    node_id: str
    node_epoch: int
    incarnation: int
    draining: bool
    left: bool
    last_seen_unix_ms: int


def shown(key: bytes) -> str:
    """Name a key in a message: text as it is, a number of an operation in digits."""
    if len(key) == 8 and key.startswith(b"\0"):
        return str(int.from_bytes(key, "big"))
    return repr(key.decode(errors="replace"))


def damaged(table: str, key: bytes, what: str) -> ChecksumMismatchError:
    """Make the error for a record that is not as it was written."""
    return ChecksumMismatchError(f"table {table}, record {shown(key)}: {what}")


def seal(table: str, key: bytes, value: bytes) -> bytes:
    """Append the checksum."""
    return value if (table, key) == ("meta", FORMAT) else value + _checksum(table, key, value)


def unseal(table: str, key: bytes, stored: bytes) -> bytes:
    """Check and remove the checksum.

    Raises:
        ChecksumMismatchError: The record is damaged; the message names it.
    """
    if (table, key) == ("meta", FORMAT):
        return stored
    value, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
    if checksum != _checksum(table, key, value):
        raise damaged(table, key, "wrong checksum")
    return value


def _checksum(table: str, key: bytes, value: bytes) -> bytes:
    where = zlib.crc32(key, zlib.crc32(b"%b\0%d\0" % (table.encode(), len(key))))
    return zlib.crc32(value, where).to_bytes(_CHECKSUM_BYTES, "little")


def check(table: str, key: bytes, value: bytes) -> None:
    """Check that a value is one that its table may hold.

    Raises:
        ChecksumMismatchError: It is not; the message names it.
    """
    is_valid = {"meta": _meta, "namespaces": _namespace, "nodes": _node, "ops": _operation}
    if table not in is_valid:
        raise ChecksumMismatchError(f"there is no table {table!r}")
    if not is_valid[table](key, value):
        raise damaged(table, key, "not a valid value")


def _meta(key: bytes, value: bytes) -> bool:
    if key == b"cluster_id":
        return is_cluster_id(value.decode(errors="replace"))
    if key == b"hash_secret":
        return len(value) == 16
    if key.startswith(b"reserve"):
        return True  # only ever there to be deleted
    return number(value, MAX_EPOCH if key == b"epoch" else _MAX_NUMBER) is not None


def number(value: bytes, most: int = _MAX_NUMBER) -> int | None:
    """Read a number as a record holds it; None for anything else, and above `most`."""
    found = int(value) if re.fullmatch(rb"\d{1,20}", value) else most + 1
    return found if found <= most else None


def is_cluster_id(text: str) -> bool:
    """Say whether a text is the id of a cluster."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def _namespace(key: bytes, value: bytes) -> bool:
    try:
        names = key.decode().split("\0")
    except UnicodeDecodeError:
        return False
    return (
        len(names) == 2 and all(map(is_valid_name, names)) and number(value, MAX_EPOCH) is not None
    )


def _node(key: bytes, value: bytes) -> bool:
    try:
        node = msgspec.json.decode(value, type=NodeRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return (
        bool(key)
        and is_valid_name(node.node_id)
        and node.node_id.encode() == key
        and 0 <= node.node_epoch <= MAX_EPOCH
        and 0 <= node.incarnation <= _MAX_NUMBER
        and 0 <= node.last_seen_unix_ms <= _MAX_NUMBER
    )


def _operation(key: bytes, value: bytes) -> bool:
    """Whether it is a record of the native log, with the number that its key says."""
    return value[:4] == _OPERATION_MAGIC and value[4:12] == key[::-1]
