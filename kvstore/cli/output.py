"""Output of every command: tables and fields for reading, one JSON document for programs."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from enum import IntEnum
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from kvstore.errors import (
    TABLE,
    InvalidArgumentError,
    KvstoreError,
    PermissionDeniedError,
    Status,
    UnauthenticatedError,
    UnavailableError,
)
from kvstore.logging import EventLogger, in_json
from kvstore.text import printable

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
    DEPOSED = 6
    """A master lost its lease in etcd: restarted, it stands by."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it."""


def _exit_code(error: KvstoreError) -> Exit:
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return Exit.REFUSED
    if isinstance(error, UnavailableError):
        return Exit.UNAVAILABLE
    if isinstance(error, InvalidArgumentError):
        return Exit.USAGE
    return Exit.MISS if error.status is Status.NotFound else Exit.FAILED


def exit_of(status: Status) -> Exit:
    """Return the exit code for a status that a call returned."""
    if status:
        return Exit.OK
    if status is Status.NotFound:
        return Exit.MISS
    late = issubclass(TABLE[status].error, UnavailableError)
    return Exit.UNAVAILABLE if late else Exit.FAILED


def _program() -> str:
    context = click.get_current_context(silent=True)
    return (context and context.find_root().command.name) or "kvstore"


def warn(message: str) -> None:
    """Print `message` on stderr, after the program's name."""
    click.echo(f"{_program()}: {printable(message)}", err=True)


def fail(message: str, code: Exit) -> NoReturn:
    """Print `message` on stderr, or log it where the log is JSON, and exit with `code`."""
    if in_json():
        _log.error("failed", program=_program(), error=message, exit_code=int(code))
    else:
        warn(message)
    sys.exit(code)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a KvstoreError into one line on stderr and the exit code of its kind."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KvstoreError as error:
            fail(f"{error.status.name}: {error}", _exit_code(error))
        except KeyboardInterrupt:
            sys.exit(Exit.INTERRUPTED)

    return run


def print_json(value: object) -> None:
    """Print one JSON document on stdout; what a terminal would act on stands there escaped."""
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable() or not text.isascii():
        encoding = sys.stdout.encoding or "ascii"
        text = "".join(
            c if c.isprintable() and _fits(c, encoding) else json.dumps(c)[1:-1] for c in text
        )
    click.echo(text)


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else printable(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their column names; numbers are right-aligned, nothing is cut."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(columns))
    ]
    widths = [max(map(_width, column)) for column in zip(columns, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        parts = []
        for text, width, right in zip(row, widths, numeric, strict=True):
            gap = " " * (width - _width(text))
            parts.append(gap + text if right else text + gap)
        return "  ".join(parts).rstrip()

    click.secho(line(columns), bold=True)
    for row in cells:
        click.echo(line(row))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one name and value per line; "-" for none, as in an empty list."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(f"{name:<{width}}  {printable(_in_words(value))}")


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)


def format_time(unix_ms: int | None) -> str:
    """Return a wall-clock time in UTC, to the second; "-" for an unknown one."""
    if unix_ms is None:
        return "-"
    return datetime.fromtimestamp(unix_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(ms: int) -> str:
    """Return a duration in its two largest units, such as "2 h 5 min" or "850 ms"."""
    if ms < 1000:
        return f"{ms} ms"
    seconds = ms // 1000
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        if seconds >= size and len(parts) < 2:
            parts.append(f"{seconds // size} {name}")
            seconds %= size
        elif parts:
            break
    return " ".join(parts)


def is_terminal(*, of: str) -> bool:
    """Say whether "stdin", "stdout" or "stderr" is a terminal."""
    return bool(getattr(sys, of).isatty())
