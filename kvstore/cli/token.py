"""The commands token mint and token show: short-lived tokens, signed offline."""

from __future__ import annotations

import os
import re

import click

from kvstore import clock, minted, scopes
from kvstore.cli.output import format_duration, print_json, reports_errors
from kvstore.cli.target import json_option
from kvstore.errors import InvalidArgumentError, IoError
from kvstore.minted import MAX_TTL_S, Claims
from kvstore.scopes import Scope
from kvstore.security import Principal, Role, load_identity

_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"(\d{1,6})([smh])", re.ASCII)


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Read a time like 90s, 15m or 8h."""
    found = _DURATION.fullmatch(value)
    if found is None or not 1 <= int(found[1]) * _UNITS_S[found[2]] <= MAX_TTL_S:
        raise click.BadParameter(f"{value!r} is no time from 1s to 24h: 90s, 15m, 8h")
    return int(found[1]) * _UNITS_S[found[2]]


_token_file = click.option(
    "--token-file",
    envvar="KVSTORE_TOKEN_FILE",
    required=True,
    type=click.Path(dir_okay=False),
    help="File with the line of the principal (also: KVSTORE_TOKEN_FILE).",
)


@click.group()
def token() -> None:
    """Mint short-lived tokens, and show what one may do."""


@token.command(
    epilog="\b\nExamples:\n"
    "  kvstore token mint --token-file engine --ttl 15m --verbs read,list --out reader\n"
    "  kvstore token mint --token-file ops --name ops --ttl 1h --scope 'verbs=read keys=docs/'"
)
@_token_file
@click.option("--name", default="", help="The principal, when the file has several.")
@click.option(
    "--ttl",
    callback=_seconds,
    required=True,
    metavar="TIME",
    help="How long it is valid: 90s, 15m, 8h; at most 24h.",
)
@click.option("--verbs", help="read, write, remove, list, watch, admin; default: all of them.")
@click.option("--tenant", "tenants", multiple=True, help="A tenant; may be repeated.")
@click.option("--keys", metavar="PREFIX", help="Only keys that start so.")
@click.option(
    "--scope",
    "scope_text",
    metavar="SCOPES",
    help="Instead of --verbs, --tenant and --keys: scopes as in a token file, separated by |.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Write it to this new file, mode 0600."
)
@reports_errors
def mint(
    token_file: str,
    name: str,
    ttl: int,
    verbs: str | None,
    tenants: tuple[str, ...],
    keys: str | None,
    scope_text: str | None,
    out: str | None,
) -> None:
    """Sign a token with the secret of a principal; no server is asked.

    Prints a line for a token file. It narrows what the principal may do, by scopes as in the
    servers' token file, and is worth nothing after its time: open sessions end then. It cannot be
    taken back before, but with the secret that signed it.
    """
    principal = load_identity(token_file, name=name)
    if principal.role is Role.NODE or minted.is_minted(principal.secret.reveal()):
        raise InvalidArgumentError("a token is minted with the secret of a client or operator")
    chosen = _scopes(principal, verbs, tenants, keys, scope_text)
    claims = Claims(clock.unix_ms() // 1000 + ttl, chosen)
    signed = minted.mint(principal.secret.reveal(), principal.name, claims)
    tenant_list = ",".join(principal.tenants)
    line = f"{principal.name} {principal.role.name.lower()} {tenant_list} {signed}"
    if out is None:
        click.echo(line)
    else:
        _write(out, f"{line}\n")


def _scopes(
    principal: Principal,
    verbs: str | None,
    tenants: tuple[str, ...],
    keys: str | None,
    text: str | None,
) -> tuple[Scope, ...]:
    if text is not None:
        if verbs or tenants or keys:
            raise InvalidArgumentError("give --scope, or --verbs, --tenant and --keys")
        chosen = scopes.parse(text)
    elif verbs or tenants or keys:
        allowed = scopes.parse(f"verbs={verbs}")[0].verbs if verbs else scopes.EVERY_VERB
        chosen = (Scope(allowed, tenants, keys or ""),)
        chosen = scopes.parse(scopes.written(chosen))  # the same checks as for --scope
    else:
        chosen = ()
    for tenant in {one for scope in chosen for one in scope.tenants}:
        if not principal.may_use(tenant):
            raise InvalidArgumentError(f"{principal.name} may not use the tenant {tenant!r}")
    return chosen


def _write(path: str, text: str) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(file, "w") as out:
            out.write(text)
    except OSError as error:
        raise IoError(f"--out {path}: {error.strerror}") from error


@token.command(epilog="Example: kvstore token show --token-file reader")
@_token_file
@click.option("--name", default="", help="The principal, when the file has several.")
@json_option
@reports_errors
def show(token_file: str, name: str, as_json: bool) -> None:
    """Show what a token file's line says, without its secret; no server is asked."""
    principal = load_identity(token_file, name=name)
    found = minted.parts(principal.secret.reveal())
    limits, left_s = principal.scopes, None
    if found is not None:
        claims = minted.read(found[1], None)
        limits, left_s = claims.scopes, claims.expires_s - clock.unix_ms() // 1000
    told = {
        "name": principal.name,
        "role": principal.role.name.lower(),
        "tenants": list(principal.tenants),
        "scopes": scopes.written(limits),
        "minted": found is not None,
        "expires_in_s": left_s,
    }
    if as_json:
        print_json(told)
        return
    click.echo(f"{told['name']}: {told['role']} of {', '.join(principal.tenants)}")
    click.echo(f"scopes: {told['scopes'] or 'none: everything that the principal may do'}")
    if left_s is not None:
        state = f"expires in {format_duration(left_s * 1000)}" if left_s > 0 else "has expired"
        click.echo(f"minted token: {state}")
