"""The master's state as a text file, for backups and for moving to another host.

JSON lines: a header, one record a line in the order of the tables, and a last line with the number
of records and the SHA-256 of all lines before it. The file holds the cluster's secret.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from kvstore.errors import ChecksumMismatchError, InvalidArgumentError, IoError, NoSpaceError
from kvstore.lmdb_file import is_empty
from kvstore.master import cluster_file, records
from kvstore.master.cluster_file import ClusterFile
from kvstore.master.lmdb_state import examine, locked, put_aside
from kvstore.master.records import FORMAT, FORMAT_VERSION, TABLES, Rows
from kvstore.master.state_audit import DATA_FILE, Found

EXPORT_VERSION = 1
MOST_LINE_BYTES = 1 << 20
_FIRST_MAP_BYTES = 64 << 20
# Of the file alone, not of the cluster.
_OWN = (b"transaction", b"format")


def check(directory: Path, *, keep: bool = False) -> Found:
    """Check the state in a data directory that no master uses.

    Raises:
        UnavailableError: A master uses it.
        ChecksumMismatchError: It is damaged or lost; the message names the table and the record.
        VersionMismatchError: A newer kvstore wrote it.
        InvalidArgumentError: There is no state.
        IoError: It cannot be read.
    """
    with locked(directory):
        found, _ = examine(directory, keep=keep)
    if found is None:
        raise InvalidArgumentError(f"data directory {directory} holds no state yet")
    return found


def lines(found: Found) -> Iterator[str]:
    """Make the lines of an export, each with its end.

    Args:
        found: a state with its rows.
    """
    digest, count = hashlib.sha256(), 0
    head = {"kvstore_master_state": EXPORT_VERSION, "cluster_id": found.cluster_id}
    for value in (head, *_records(found.rows)):
        line = json.dumps(value) + "\n"
        digest.update(line.encode())
        count += 1
        yield line
    yield json.dumps({"records": count - 1, "sha256": digest.hexdigest()}) + "\n"


def _records(rows: Rows) -> Iterator[dict[str, Any]]:
    for table in TABLES:
        for key, value in sorted(rows.get(table, {}).items()):
            if not (table == "meta" and (key in _OWN or key.startswith(b"reserve"))):
                yield {"table": table, **_to_json(table, key, value)}


def _to_json(table: str, key: bytes, value: bytes) -> dict[str, Any]:
    match table:
        case "meta":
            is_secret = key == b"hash_secret"
            return {"name": key.decode(), "value": value.hex() if is_secret else value.decode()}
        case "namespaces":
            tenant, name = key.decode().split("\0")
            return {"tenant": tenant, "namespace": name, "epoch": int(value)}
        case "nodes":
            return {"node": json.loads(value)}
        case _:
            encoded = base64.b64encode(value).decode()
            return {"number": int.from_bytes(key, "big"), "record": encoded}


def _from_json(line: dict[str, Any]) -> tuple[str, bytes, bytes]:
    table = line["table"]
    match table:
        case "meta":
            name, text = line["name"].encode(), line["value"]
            return table, name, bytes.fromhex(text) if name == b"hash_secret" else text.encode()
        case "namespaces":
            key = f"{line['tenant']}\0{line['namespace']}".encode()
            return table, key, b"%d" % line["epoch"]
        case "nodes":
            node = msgspec.convert(line["node"], records.NodeRecord)
            return table, node.node_id.encode(), msgspec.json.encode(node)
        case "ops":
            record = base64.b64decode(line["record"], validate=True)
            return table, line["number"].to_bytes(8, "big"), record
    raise ValueError(f"unknown table {table!r}")


def parse(stream: Iterable[bytes], where: str) -> Rows:
    """Read an export.

    Args:
        stream: its lines, each with its end.
        where: its name, for messages.

    Returns:
        The rows; all of them are valid.

    Raises:
        InvalidArgumentError: It is not a whole export; the message names the line.
    """
    rows: Rows = {table: {} for table in TABLES}
    digest, count, last = hashlib.sha256(), 0, None
    for number, raw in enumerate(stream, 1):
        if len(raw) > MOST_LINE_BYTES or last is not None:
            raise InvalidArgumentError(f"{where}, line {number}: not a line of an export")
        try:
            line = json.loads(raw)
            if number == 1:
                _check_head(line, where)
            elif "sha256" in line:
                last = (line["records"], line["sha256"])
                continue
            else:
                table, key, value = _from_json(line)
                records.check(table, key, value)
                rows[table][key] = value
                count += 1
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(f"{where}, line {number}: {_said(error)}") from None
        except (RecursionError, ChecksumMismatchError, msgspec.MsgspecError) as error:
            raise InvalidArgumentError(f"{where}, line {number}: {_said(error)}") from None
        digest.update(raw)
    if last is None:
        raise InvalidArgumentError(f"{where}: its last line is missing; the export was cut short")
    if last != (count, digest.hexdigest()):
        raise InvalidArgumentError(f"{where}: it was changed (wrong number of records or SHA-256)")
    if not {b"cluster_id", b"hash_secret", b"epoch"} <= rows["meta"].keys():
        raise InvalidArgumentError(f"{where}: it lacks the cluster's id, secret or epoch")
    return rows


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _check_head(line: dict[str, Any], where: str) -> None:
    version = line.get("kvstore_master_state")
    if version != EXPORT_VERSION:
        raise InvalidArgumentError(
            f"{where} is not an export of this format (kvstore_master_state {EXPORT_VERSION})"
        )


def restore(directory: Path, rows: Rows, *, force: bool = False) -> str:
    """Write imported rows as the state of a data directory; the next master goes on with it.

    Args:
        directory: created if it is missing; a state that is there is refused, unless it is the
            lost one of the same cluster.
        rows: of an export.
        force: rename a state that is there.

    Returns:
        The name under which an earlier state was kept; empty if there was none.

    Raises:
        UnavailableError: A master uses the directory.
        InvalidArgumentError: It holds a state.
        NoSpaceError, IoError: The operating system refused.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise IoError(f"data directory {directory}: {error.strerror}") from error
    cluster_id = rows["meta"][b"cluster_id"].decode()
    with locked(directory):
        remembered, why = cluster_file.read(directory)
        kept_as, epoch = "", int(rows["meta"][b"epoch"])
        if remembered and remembered.cluster_id == cluster_id:
            epoch = max(epoch, remembered.epoch)
        if not force:
            _refuse_another(directory, cluster_id, remembered, why)
        elif remembered or why or not _is_free(directory):
            kept_as = put_aside(directory)
        meta = {**rows["meta"], b"epoch": b"%d" % epoch, b"settled": b"1"}
        meta[FORMAT] = b"%d" % FORMAT_VERSION
        # First, so that a directory without its state is never taken for a new one.
        cluster_file.write(directory, ClusterFile(cluster_id, epoch))
        _write(directory, {**rows, "meta": meta})
    return kept_as


def _is_free(directory: Path) -> bool:
    try:
        return is_empty(directory / DATA_FILE)
    except ChecksumMismatchError:
        return False


def _refuse_another(
    directory: Path, cluster_id: str, remembered: ClusterFile | None, why: str
) -> None:
    if not _is_free(directory):
        raise InvalidArgumentError(
            f"data directory {directory} holds a state: --force replaces it, and keeps it renamed"
        )
    if why or (remembered and remembered.cluster_id != cluster_id):
        whose = why or f"that of cluster {remembered.cluster_id if remembered else ''}"
        raise InvalidArgumentError(
            f"data directory {directory} is not that of cluster {cluster_id} ({whose}): --force "
            "imports all the same"
        )


def _write(directory: Path, rows: Rows) -> None:
    size = sum(
        len(key) + len(value) + 64 for table in rows.values() for key, value in table.items()
    )
    try:
        (directory / DATA_FILE).unlink(missing_ok=True)  # an empty one
        env = lmdb.open(
            str(directory), map_size=_FIRST_MAP_BYTES + 4 * size, max_dbs=len(TABLES), mode=0o600
        )
        try:
            tables = {name: env.open_db(name.encode()) for name in TABLES}
            with env.begin(write=True) as txn:
                last = {**rows["meta"], b"transaction": b"%d" % txn.id()}
                for table, values in {**rows, "meta": last}.items():
                    for key, value in sorted(values.items()):
                        txn.put(key, records.seal(table, key, value), db=tables[table])
        finally:
            env.close()
    except lmdb.Error as error:
        kind = NoSpaceError if isinstance(error, lmdb.DiskError) else IoError
        raise kind(f"data directory {directory}: {error}") from error
    except OSError as error:
        raise IoError(f"data directory {directory}: {error.strerror}") from error
