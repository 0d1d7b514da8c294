"""`kvstore config`: check, show and start configuration files; convert those of other stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from kvstore.cli.output import (
    Exit,
    fail,
    print_fields,
    print_json,
    print_table,
    reports_errors,
    warn,
)
from kvstore.cli.target import json_option
from kvstore.errors import InvalidArgumentError
from kvstore.text import printable

if TYPE_CHECKING:
    from kvstore.config import CommonConfig

Kind = Literal["node", "master"]

_STARTERS: dict[Kind, dict[str, Any]] = {
    "node": {
        "master_address": "127.0.0.1:50051",
        "node_id": "",
        "host": "127.0.0.1",
        "segment_size": "1gb",
        "labels": {},
    },
    "master": {
        "host": "127.0.0.1",
        "port": 50051,
        "grpc_port": 50052,
        "http_port": 9080,
        "data_dir": "/var/lib/kvstore",
    },
}

_kind_option = click.option(
    "--kind",
    type=click.Choice(["node", "master"]),
    help="Whose configuration it is (default: found by its keys).",
)


@click.group()
def config() -> None:
    """Check, show, start and convert configuration files."""


def _class_of(kind: Kind) -> type[CommonConfig]:
    from kvstore.config import MasterConfig, NodeConfig

    return NodeConfig if kind == "node" else MasterConfig


def kind_of(file: str, kind: Kind | None) -> Kind:
    """Tell a node's file from a master's: by the keys that only one of them has."""
    if kind is not None:
        return kind
    from kvstore.options import read_object

    given = read_object(file, f"config file {file}: ")
    kinds: tuple[Kind, ...] = ("node", "master")
    names = {one: set(_class_of(one).__struct_fields__) for one in kinds}
    only_master = names["master"] - names["node"]
    only_node = names["node"] - names["master"]
    return "master" if len(given.keys() & only_master) > len(given.keys() & only_node) else "node"


def load_as(file: str, kind: Kind) -> CommonConfig:
    """Read a file as the configuration of a node or a master."""
    from kvstore.config import load

    return load(_class_of(kind), file, {})


def _remarks(settings: CommonConfig) -> list[str]:
    """Find what is valid, but would keep this machine from starting with it, or is likely wrong."""
    from kvstore.config import NodeConfig
    from kvstore.security import load_principals

    remarks = []
    if settings.auth_token_file:
        try:
            load_principals(settings.auth_token_file)
        except InvalidArgumentError as error:
            remarks.append(f"auth_token_file: {error}")
    elif settings.host not in ("127.0.0.1", "localhost", "::1"):
        remarks.append(
            f"host is {settings.host}, but auth_token_file is empty: anybody may connect"
        )
    if settings.port_file and not Path(settings.port_file).parent.is_dir():
        remarks.append(f"port_file: there is no folder {Path(settings.port_file).parent}")
    if isinstance(settings, NodeConfig):
        nvme = [("nvme_dir", path) for path in settings.nvme_dirs()]
        for name, value in (("segment_dir", settings.segment_dir), *nvme):
            if value and not Path(value).parent.is_dir():
                remarks.append(f"{name}: there is no folder {Path(value).parent}")
    return remarks


def _discovered(settings: CommonConfig) -> tuple[dict[str, Any] | None, list[str]]:
    """Find the masters as a node with these settings would; and what is wrong, a sentence."""
    from kvstore.discovery.look import look

    found = look(settings)
    if found is None:
        return None, []
    remarks = [f"{found.problem}; {found.fix}"] if found.problem else []
    return {"by": found.by, "source": found.source, "masters": list(found.masters)}, remarks


@config.command(epilog="Example: kvstore config check node.json")
@click.argument("file", type=click.Path())
@_kind_option
@json_option
@reports_errors
def check(file: str, kind: Kind | None, as_json: bool) -> None:
    """Say whether FILE is a valid configuration; exits with 2 when it is not.

    What may be wrong only on this machine, such as a missing folder, is a remark on stderr. With
    `discovery` it looks for the master as the node would, and names it.
    """
    kind = kind_of(file, kind)
    try:
        settings = load_as(file, kind)
        discovered, missing = _discovered(settings)
        remarks = [*_remarks(settings), *missing]
    except InvalidArgumentError as error:
        if not as_json:
            raise
        wrong: dict[str, Any] = {"valid": False, "kind": kind, "error": str(error), "remarks": []}
        print_json({**wrong, "discovery": None})
        raise SystemExit(Exit.USAGE) from None
    if as_json:
        right: dict[str, Any] = {"valid": True, "kind": kind, "error": None, "remarks": remarks}
        print_json({**right, "discovery": discovered})
        return
    for remark in remarks:
        warn(remark)
    click.echo(f"{printable(file)}: a valid configuration of kvstore-{kind}")
    if discovered and discovered["masters"]:
        masters = ", ".join(discovered["masters"])
        click.echo(printable(f"master: {masters}, by {discovered['by']}: {discovered['source']}"))


@config.command(epilog="Example: kvstore config show node.json --changed")
@click.argument("file", type=click.Path())
@_kind_option
@click.option("--changed", is_flag=True, help="Leave out keys that have their default.")
@json_option
@reports_errors
def show(file: str, kind: Kind | None, changed: bool, as_json: bool) -> None:
    """Show every key's value as a server would use it, and whether it is the default."""
    import msgspec

    kind = kind_of(file, kind)
    values: dict[str, Any] = msgspec.to_builtins(load_as(file, kind))
    defaults: dict[str, Any] = msgspec.to_builtins(_class_of(kind)())
    shown = {n: value for n, value in values.items() if not changed or value != defaults[n]}
    if as_json:
        print_json(shown)
        return
    print_fields({"configuration of": f"kvstore-{kind}"})
    print_table(
        ["key", "value", "default"],
        [
            [name, json.dumps(value), "yes" if value == defaults[name] else "no"]
            for name, value in shown.items()
        ],
    )


@config.command(epilog="Example: kvstore config init node --output node.json")
@click.argument("kind", type=click.Choice(["node", "master"]))
@click.option("--output", type=click.Path(path_type=Path), help="Write to this new file.")
@click.option("--all", "every", is_flag=True, help="Every key with its default.")
@reports_errors
def init(kind: Kind, output: Path | None, every: bool) -> None:
    """Print a configuration to start from; deploy/README.md explains every key."""
    import msgspec

    from kvstore.config import load

    values = msgspec.to_builtins(_class_of(kind)()) if every else _STARTERS[kind]
    load(_class_of(kind), None, values)  # it stays valid when keys change
    text = json.dumps(values, indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("x") as stream:  # never over somebody's file
            stream.write(text)
    except FileExistsError:
        fail(f"{output} exists: give another name, or remove it", Exit.USAGE)
    except OSError as error:
        fail(f"{output}: {error.strerror}", Exit.USAGE)


@config.command(epilog="Example: kvstore config migrate mooncake.json --output node.json")
@click.argument("file", type=click.Path())
@click.option("--output", type=click.Path(), help="Write the node's config.json to this file.")
@json_option
@reports_errors
def migrate(file: str, output: str | None, as_json: bool) -> None:
    """Convert a config.json of Mooncake to one of kvstore-node.

    Prints the result, and on standard error the settings that are not carried over, with reasons.
    """
    from kvstore.compat.mooncake.migrate import migrate as migration_of
    from kvstore.compat.mooncake.settings import read_file
    from kvstore.config import NodeConfig, load
    from kvstore.errors import IoError

    done = migration_of(read_file(file))
    if done.node:
        load(NodeConfig, None, done.node)  # check that kvstore-node accepts the result
    text = json.dumps(done.node, indent=2) + "\n"
    if output is not None:
        try:
            Path(output).write_text(text)
        except OSError as error:
            raise IoError(f"{output}: {error.strerror}") from error
    if as_json:
        print_json({"node": done.node, "remarks": done.remarks})
        return
    if output is None:
        click.echo(text, nl=False)
    for remark in done.remarks:
        click.echo(remark, err=True)
