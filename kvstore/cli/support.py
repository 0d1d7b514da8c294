"""`kvstore support-bundle`: what somebody needs to look into a problem, in one file."""

from __future__ import annotations

import json
import platform
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import kvstore
from kvstore import clock
from kvstore.cli.output import format_time, print_json, reports_errors, warn
from kvstore.cli.target import Target, json_option, target, target_options
from kvstore.cli.web import opener_of
from kvstore.errors import InvalidArgumentError, KvstoreError, UnavailableError
from kvstore.sizes import format_size
from kvstore.support.bundle import MAX_PART_BYTES, Part, write
from kvstore.support.redact import Redactor, secrets_in, secrets_of

if TYPE_CHECKING:
    from kvstore._proto import master_pb2
    from kvstore.doctor import Finding

_PACKAGES = ("grpcio", "protobuf", "lmdb", "msgspec", "aiohttp", "click", "rich")
_LOG_BYTES = 4 << 20
_TOKEN_FILE_BYTES = 1 << 20
_PAGES = ("metrics", "readyz")


@dataclass(frozen=True)
class Wanted:
    """What the command was asked for."""

    where: Target
    configs: tuple[Path, ...]
    logs: tuple[Path, ...]
    begins: Callable[[str], None]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _versions() -> str:
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return _json(
        {
            "kvstore": kvstore.__version__,
            "python": sys.version,
            "platform": platform.platform(),
            "machine": platform.machine(),
            "packages": packages,
        }
    )


def _variables() -> str:
    from kvstore.environment import variables

    return "\n".join(sorted(name for name in variables() if name.startswith("KVSTORE_"))) + "\n"


def _doctor(wanted: Wanted) -> str:
    from kvstore.cli.doctor import document, host_of
    from kvstore.cli.examine import examine
    from kvstore.doctor import run
    from kvstore.doctor.checks import CLUSTER, HOST

    findings: list[Finding] = []
    for checks in HOST.values():
        findings += run(checks, host_of(None), wanted.begins)
    findings += run(CLUSTER, examine(wanted.where, True), wanted.begins)
    return _json(document(findings))


def _ask(where: Target, method: str) -> str:
    """Return the master's answer to a call without arguments."""
    from google.protobuf.json_format import MessageToJson

    from kvstore._proto import master_pb2
    from kvstore.cli.control import control

    with control(where) as (master, call):
        request = getattr(master_pb2, f"{method}Request")()
        reply = getattr(master, method)(request, **call)
    return MessageToJson(reply, preserving_proto_field_name=True) + "\n"


def _config(path: Path, redactor: Redactor) -> str:
    from kvstore.config import MasterConfig, NodeConfig
    from kvstore.options import read_object

    known = set(NodeConfig.__struct_fields__) | set(MasterConfig.__struct_fields__)
    return _json(redactor.config(read_object(str(path), f"config file {path}: "), known))


def _end_of(path: Path, most: int = _LOG_BYTES) -> str:
    """Return the last bytes of a regular file, from the beginning of a line."""
    if not path.is_file():
        raise InvalidArgumentError(f"{path} is no regular file")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - most))
        data = file.read(most)
    if size > most:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def _page(url: str, where: Target) -> str:
    """Read a page without a token: nobody is to learn it."""
    opener = opener_of(where.tls)
    timeout_ms = where.timeout_ms
    try:
        with opener.open(url, timeout=timeout_ms / 1000) as reply:
            data: bytes = reply.read(MAX_PART_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            data = error.read(65_536)
        if error.code == 401:
            raise InvalidArgumentError(f"{url} wants a token (metrics_public is false)") from None
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{url}: {error}") from None
    return data.decode(errors="replace")


def _servers(where: Target) -> Iterator[tuple[str, str]]:
    """Yield a name and the HTTP endpoint of the master, and of each node that has one."""
    from kvstore._proto import master_pb2
    from kvstore.cli.control import control

    with control(where) as (master, call):
        status: master_pb2.StatusReply = master.Status(master_pb2.StatusRequest(), **call)
        nodes = master.ListNodes(master_pb2.ListNodesRequest(), **call).nodes
    yield "master", status.http_endpoint
    for number, node in enumerate(nodes):
        if node.endpoints.http:
            yield f"node-{number}-{_file_name(node.node_id)}", node.endpoints.http


def _file_name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)[:80]


def _parts(wanted: Wanted, redactor: Redactor, servers: Sequence[tuple[str, str]]) -> list[Part]:
    where = wanted.where
    parts = [
        Part("versions.json", "this installation", _versions),
        Part("environment.txt", "names of the variables KVSTORE_…", _variables),
    ]
    for name, method in (
        ("status.json", "Status"),
        ("nodes.json", "ListNodes"),
        ("namespaces.json", "ListNamespaces"),
        ("reuse.json", "Reuse"),
    ):
        parts.append(Part(name, f"the master's {method}", partial(_ask, where, method)))
    for server, endpoint in servers:
        for page in _PAGES:
            url = f"{endpoint}/{page}"
            name = f"servers/{server}.{page}.txt"
            parts.append(Part(name, url, partial(_page, url, where)))
    for number, path in enumerate(wanted.configs):
        name = f"configs/{number}-{_file_name(path.name)}"
        parts.append(Part(name, str(path), partial(_config, path, redactor)))
    for number, path in enumerate(wanted.logs):
        name = f"logs/{number}-{_file_name(path.name)}"
        parts.append(Part(name, f"the end of {path}", partial(_end_of, path)))
    parts.append(Part("doctor.json", "kvstore doctor", partial(_doctor, wanted)))
    return parts


def _of_configs(configs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the token files and the log files that configurations name."""
    from kvstore.options import read_object

    tokens: list[Path] = []
    logs: list[Path] = []
    for path in configs:
        try:
            values = read_object(str(path), "")
        except KvstoreError:
            continue  # its own part says so
        for name, found in (("auth_token_file", tokens), ("audit_log", logs)):
            value = values.get(name)
            if isinstance(value, str) and value:
                found.append(Path(value))
    return tokens, logs


def _known_secrets(token_files: Sequence[Path]) -> list[str]:
    from kvstore.environment import variables

    known = secrets_of(variables())
    for path in token_files:
        try:
            known += secrets_in(_end_of(path, _TOKEN_FILE_BYTES))
        except (OSError, InvalidArgumentError) as error:
            warn(f"{path}: its secrets are not known, and only hidden where they look like some")
            warn(str(error))
    return known


@click.command(
    "support-bundle",
    epilog="Example: kvstore support-bundle -o bundle.tar.gz --config /etc/kvstore/node.json "
    "--log /var/log/kvstore/node.log",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="A new .tar.gz file."
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Configuration of a kvstore-node or kvstore-master of this host; repeatable.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Log file, of which the last 4 MiB are taken; repeatable.",
)
@click.option("--show-keys", is_flag=True, help="Leave keys of objects in logs as they are.")
@json_option
@target_options
@reports_errors
def support_bundle(
    output: Path,
    configs: tuple[Path, ...],
    logs: tuple[Path, ...],
    show_keys: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write what is needed to look into a problem to a file, without secrets and objects.

    The bundle has versions, status, nodes, namespaces, metrics, findings of the doctor,
    configurations and the ends of logs; manifest.json lists them, and what could not be collected.
    Secrets are hidden: those of the token files that options and configurations name wherever they
    occur, others by their form. Keys of objects in logs become hashes. Look through it before you
    send it.
    """
    from kvstore.cli.doctor import progress

    where = target(options)
    token_files, audit_logs = _of_configs(configs)
    if where.token_file:
        token_files.append(Path(where.token_file))
    redactor = Redactor(_known_secrets(token_files), secrets.token_bytes(16), show_keys)
    with progress() as begins:
        wanted = Wanted(where, configs, (*logs, *audit_logs), begins)
        begins("asking the master")
        try:
            servers = list(_servers(where))
        except KvstoreError:
            servers = []  # status.json says why
        created = format_time(clock.unix_ms())
        manifest = write(output, _parts(wanted, redactor, servers), redactor, created, begins)
    manifest["file"] = str(output)
    manifest["bytes"] = output.stat().st_size
    if as_json:
        print_json(manifest)
        return
    for part in manifest["parts"]:
        if part["error"]:
            warn(f"{part['name']} is missing: {part['error']}")
    there = sum(not part["error"] for part in manifest["parts"])
    click.echo(f"{output}: {there} files, {format_size(manifest['bytes'])}")
