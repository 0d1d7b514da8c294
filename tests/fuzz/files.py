"""Targets for files that people write: configuration, tokens, exports of a state, traces."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path

from kvstore import config, security
from kvstore.addresses import is_host_and_port
from kvstore.compat.mooncake.settings import MooncakeConfig, read_file, settings
from kvstore.config import MasterConfig, NodeConfig
from kvstore.discovery.source import Discovery
from kvstore.errors import InvalidArgumentError
from kvstore.master import state_export
from kvstore.node import domains
from kvstore.replay.trace import read_trace
from kvstore.security import Guard, Principal, Role, Secret
from tests.fuzz import state

_PRINCIPALS = (Principal("e", Role.CLIENT, ("default", "*"), Secret("s" * 16)),)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kvstore-fuzz-")  # goes with the process


def _written(raw: bytes) -> Path:
    path = Path(_folder().name) / "file"
    path.touch(0o600)
    path.write_bytes(raw)
    return path


def config_file(raw: bytes) -> None:
    """A configuration: the first byte says whose."""
    kind = NodeConfig if raw[:1] in (b"n", b"N") else MasterConfig
    path = _written(raw[1:])
    try:
        loaded = config.load(kind, path, {})
    except InvalidArgumentError as error:
        assert str(path) in str(error)
        return
    assert loaded.host == loaded.host.strip()
    if isinstance(loaded, NodeConfig):
        assert loaded.addresses() and "/" not in loaded.file_name()
        loaded.placement_labels()
        for principals in ((), _PRINCIPALS):
            planned = domains.plan(loaded, principals)
            assert sum(one.segment_bytes for one in planned) <= 2 * loaded.segment_size + (1 << 20)


def token_file(raw: bytes) -> None:
    """A token file, or a client's identity in it."""
    path = _written(raw)
    try:
        found = security.load_principals(path)
    except InvalidArgumentError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    guard = Guard(found)
    for principal in found:
        ((_, header),) = security.bearer(principal)
        assert guard.identify(header, "") == principal
        assert principal.secret.reveal() not in repr(principal)
    try:
        security.load_identity(path)
        security.load_node_identity(path, "node")
    except InvalidArgumentError as error:
        assert str(path) in str(error)


def discovery_file(raw: bytes) -> None:
    """The file in which RBG lists a group: what is accepted completes a node's configuration."""
    path = str(_written(raw))
    given = config.load(NodeConfig, None, {"discovery_file": path, "advertise_host": "a"})
    try:
        completed = Discovery().complete(given)
    except InvalidArgumentError as error:
        assert path in str(error) and "\n" not in str(error)
        return
    assert completed.addresses() and completed.addresses() != given.addresses()
    assert all(is_host_and_port(address) for address in completed.addresses())


def trace_file(raw: bytes) -> None:
    """A trace for `kvstore replay`."""
    try:
        requests = read_trace(_written(raw))
    except InvalidArgumentError as error:
        assert "file" in str(error)
        return
    assert all(0 <= block < 1 << 63 for request in requests for block in request.hash_ids)


def mooncake_config(raw: bytes) -> None:
    """A config.json of Mooncake: as an object, and as the arguments of setup."""
    path = _written(raw)
    for load in (MooncakeConfig.from_file, lambda file: settings(read_file(file))):
        try:
            load(str(path))
        except InvalidArgumentError as error:
            assert str(error)


def state_file(raw: bytes) -> None:
    """An export of the master's state: what is accepted becomes a state that a master starts with,
    or refuses with a sentence.

    Nobody guesses a SHA-256: an export without its last line gets the right one.
    """
    lines = raw.splitlines(keepends=True)
    if lines and b"sha256" not in lines[-1]:
        lines[-1] = lines[-1].removesuffix(b"\n") + b"\n"
        digest = hashlib.sha256(b"".join(lines)).hexdigest()
        lines.append(json.dumps({"records": len(lines) - 1, "sha256": digest}).encode() + b"\n")
    try:
        rows = state_export.parse(lines, "export")
    except InvalidArgumentError as error:
        assert str(error).startswith("export")
        return
    with tempfile.TemporaryDirectory(prefix="kvstore-fuzz-") as name:
        state_export.restore(Path(name), rows)
        state.start(Path(name))
