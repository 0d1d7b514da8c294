"""Output of every command: tables for humans, one JSON document for machines, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from enum import IntEnum
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.table import Table

from kvstore.errors import (
    InvalidArgumentError,
    KvstoreError,
    PermissionDeniedError,
    Status,
    UnauthenticatedError,
    UnavailableError,
)
from kvstore.logging import EventLogger, in_json

_log = EventLogger("process")

P = ParamSpec("P")
R = TypeVar("R")


class Exit(IntEnum):
    """Exit codes of every kvstore command."""

    OK = 0
    MISS = 1
    """The requested object, prefix or node does not exist."""
    USAGE = 2
    """The command line, a file or a value is wrong."""
    UNAVAILABLE = 3
    """The cluster cannot be reached or answered too late."""
    REFUSED = 4
    """The token is wrong or missing, or the principal lacks permission."""
    FAILED = 5
    """Anything else: the store answered with an error, or a check failed."""


def _exit_code(error: KvstoreError) -> Exit:
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return Exit.REFUSED
    if isinstance(error, UnavailableError):
        return Exit.UNAVAILABLE
    if isinstance(error, InvalidArgumentError):
        return Exit.USAGE
    return Exit.MISS if error.status is Status.NotFound else Exit.FAILED


def fail(message: str, code: Exit) -> NoReturn:
    """Print `message` on stderr, after the program's name, and exit with `code`."""
    context = click.get_current_context(silent=True)
    program = (context and context.find_root().command.name) or "kvstore"
    if in_json():
        _log.error("failed", program=program, error=message, exit_code=int(code))
    else:
        click.echo(f"{program}: {message}", err=True)
    sys.exit(code)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a KvstoreError into one line on stderr and the exit code of its kind."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KvstoreError as error:
            fail(f"{error.status.name}: {error}", _exit_code(error))

    return run


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their column names; numbers are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row])
    Console(soft_wrap=True).print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one name and value per line."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(f"{name:<{width}}  {value}")


def format_time(unix_ms: int | None) -> str:
    """Return a wall-clock time in UTC, to the second; "-" for an unknown one."""
    if unix_ms is None:
        return "-"
    return datetime.fromtimestamp(unix_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
