"""`kvstore-master --check`, `--export` and `--import`: the master's state, without a master.

A state in etcd may be checked and exported while a master uses it: it is read as of one moment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

import click

from kvstore import folders
from kvstore.cli.output import Exit, print_fields, print_json
from kvstore.config import MasterConfig
from kvstore.environment import state_folder
from kvstore.errors import ChecksumMismatchError, InvalidArgumentError, IoError
from kvstore.master import records, state_export
from kvstore.master.state_audit import Found


def _read(config: MasterConfig) -> Found:
    """Read and check the whole state that a configuration names."""
    if not config.state:
        return state_export.check(state_folder(config.data_dir), keep=True)
    from kvstore.master.etcd_client import EtcdClient
    from kvstore.master.etcd_state import examine

    client = EtcdClient(config)
    try:
        found = examine(client, keep=True)
    finally:
        client.close()
    if found is None:
        raise InvalidArgumentError(f"{config.state} holds no state yet")
    return found


def check(config: MasterConfig, as_json: bool) -> None:
    """Check every record; exits with 5 when one is damaged."""
    where = {"state": config.state} if config.state else {}
    if not where:
        where = {"data_dir": str(state_folder(config.data_dir))}
    try:
        found = _read(config)
        _check_operations(found)
    except ChecksumMismatchError as error:
        if not as_json:
            raise
        print_json({"valid": False, **where, "error": str(error)})
        raise SystemExit(Exit.FAILED) from None
    told = {
        "valid": True,
        **where,
        "format": found.format,
        "cluster_id": found.cluster_id,
        "epoch": found.number(b"epoch"),
        "settled": found.settled,
    }
    if as_json:
        print_json({**told, "error": None, "records": found.counts})
        return
    counts = {f"records of {table}": f"{count:,}" for table, count in found.counts.items()}
    print_fields({**told, **counts})


def _check_operations(found: Found) -> None:
    """Decode the operations: a checksum says that they are as written, not that we know them."""
    from kvstore import _native

    for key, value in found.rows.get("ops", {}).items():
        try:
            _native.MasterCore.decode_op(value)
        except InvalidArgumentError as error:
            raise records.damaged("ops", key, str(error)) from None


def export(config: MasterConfig, target: str, as_json: bool) -> None:
    """Write the state to a new file of mode 0600, or to stdout for "-"."""
    found = _read(config)
    if target == "-":
        for line in state_export.lines(found):
            click.echo(line, nl=False)
        return
    path = Path(target)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folders.replace_file(path, state_export.lines(found), temporary)
    except OSError as error:
        raise IoError(f"{path}: {error.strerror}") from error
    _tell(as_json, "exported", target, found.cluster_id, sum(found.counts.values()))


def import_(config: MasterConfig, source: str, force: bool, as_json: bool) -> None:
    """Write an export as the state of a data directory."""
    if config.state:
        raise InvalidArgumentError(
            "--import writes into a data directory; etcd is restored from etcd's own backup"
        )
    directory = state_folder(config.data_dir)
    if source == "-":
        rows = _parse(sys.stdin.buffer, "stdin")
    else:
        try:
            with Path(source).open("rb") as file:
                rows = _parse(file, source)
        except OSError as error:
            if isinstance(error, IoError):
                raise
            raise IoError(f"{source}: {error.strerror}") from error
    kept_as = state_export.restore(directory, rows, force=force)
    count = sum(map(len, rows.values()))
    cluster_id = rows["meta"][b"cluster_id"].decode()
    _tell(as_json, "imported", str(directory), cluster_id, count, earlier_state=kept_as)


def _parse(file: BinaryIO, where: str) -> records.Rows:
    longest = state_export.MOST_LINE_BYTES + 1
    return state_export.parse(iter(lambda: file.readline(longest), b""), where)


def _tell(as_json: bool, done: str, where: str, cluster_id: str, count: int, **more: str) -> None:
    told = {done: where, "cluster_id": cluster_id, "records": count, **more}
    if as_json:
        print_json(told)
    else:
        print_fields({name: value for name, value in told.items() if value != ""})
