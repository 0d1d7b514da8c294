"""Options given by name: unknown, missing and wrong ones are refused with the same sentences.

For everything that reads names and values from somewhere else: config.json, an engine's extra
config, Mooncake's setup, the arguments of the public API.
"""

from __future__ import annotations

import errno
import math
import operator
import os
import select
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from kvstore.errors import InvalidArgumentError
from kvstore.limits import MAX_CONFIG_BYTES

Addresses = str | tuple[str, ...]
"""One HOST:PORT, or several, tried in order."""

T = TypeVar("T")

_PIPE_S = 5


def refuse_unknown(names: Iterable[str], known: Collection[str], where: str = "") -> None:
    """Check that every name is one of the known names.

    Args:
        names: as given.
        known: all valid names, in the order in which to list them.
        where: the start of the message, such as "config file a.json: ".

    Raises:
        InvalidArgumentError: One is not; the message names the nearest valid one, or all of them
            when none is near.
    """
    for name in names:
        if name not in known:
            import difflib  # only for this sentence: `import kvstore` stays fast

            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise InvalidArgumentError(f"{where}unknown key {name!r}; {hint}")


def require(names: Iterable[str], given: Collection[str], where: str = "") -> None:
    """Check that every name was given.

    Raises:
        InvalidArgumentError: One was not.
    """
    for name in names:
        if name not in given:
            raise InvalidArgumentError(f"{where}{name!r} is missing")


def whole_number(
    name: str, value: int | None, least: int, most: int, *, optional: bool = False
) -> int:
    """Check a whole number against its range.

    Args:
        name: of the option, for the message.
        value: as given.
        least: the smallest valid value.
        most: the largest valid value.
        optional: None is valid, too, and counts as 0.

    Returns:
        The value.

    Raises:
        InvalidArgumentError: It is no whole number, or out of range.
    """
    if value is None and optional:
        return 0
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # NumPy's integers, too
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        none_or = "None or " if optional else ""
        raise InvalidArgumentError(f"{name} must be {none_or}{least} to {most}, not {value!r}")
    return number


def text(name: str, value: str) -> str:
    """Check a string.

    Args:
        name: of the option, for the message.
        value: as given.

    Returns:
        The value.

    Raises:
        InvalidArgumentError: It is no string, or one that UTF-8 cannot hold.
    """
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a string, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{name} is not valid UTF-8 (a lone surrogate)") from None
    return value


def path(name: str, value: str | os.PathLike[str]) -> str:
    """Check a path.

    Args:
        name: of the option, for the message.
        value: as given.

    Returns:
        The path as a string.

    Raises:
        InvalidArgumentError: It is no path.
    """
    try:
        found: str | bytes | None = os.fspath(value)
    except TypeError:
        found = None
    if not isinstance(found, str) or "\0" in found:
        raise InvalidArgumentError(f"{name} must be a path, not {value!r}")
    return found


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check a value against the valid ones.

    Raises:
        InvalidArgumentError: It is none of them.
    """
    choices = list(allowed)
    if value not in choices:
        *first, last = (one if one is None else f'"{one}"' for one in choices)
        listed = f"{', '.join(map(str, first))} or {last}"
        raise InvalidArgumentError(f"{name} must be {listed}, not {value!r}")


def read(kind: type[T], given: Mapping[str, Any], where: str, ignored: Collection[str] = ()) -> T:
    """Make a dataclass of options from names and values.

    Args:
        kind: a dataclass; its fields are the known names, those without a default are required.
            Their types are str, int, float, bool, Addresses, a Literal, or one of these or None.
        given: names and values, as parsed from JSON or YAML.
        where: the start of every message, such as "extra_config: ".
        ignored: further valid names, which belong to the engine itself.

    Returns:
        The options, each value of its field's type.

    Raises:
        InvalidArgumentError: A name is unknown or missing, or a value has the wrong type.
    """
    hints = get_type_hints(kind)
    declared: tuple[Any, ...] = fields(kind)  # type: ignore[arg-type]
    refuse_unknown(given, [*hints, *ignored], where)
    require((one.name for one in declared if one.default is MISSING), given, where)
    values = {}
    for name in hints.keys() & given.keys():
        try:
            values[name] = _typed(given[name], hints[name])
        except ValueError as error:
            raise InvalidArgumentError(
                f"{where}{name!r} must be {error}, not {given[name]!r}"
            ) from None
    return kind(**values)


def _typed(value: Any, hint: Any) -> Any:
    """Return a value as the type of its field; raises ValueError with the expected type."""
    if hint == Addresses:
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list | tuple) or not several or not all(map(_is_name, several)):
            raise ValueError('a string "HOST:PORT" or a list of them')
        return value if isinstance(value, str) else tuple(value)
    if get_origin(hint) is UnionType:
        inner = next(one for one in get_args(hint) if one is not NoneType)
        return None if value is None else _typed(value, inner)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"one of {', '.join(get_args(hint))}")
        return value
    is_valid, wanted = _SCALARS[hint]
    if not is_valid(value):
        raise ValueError(wanted)
    return hint(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and value >= 0


_SCALARS: dict[type, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str), "a string"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: isinstance(value, int) and _is_number(value), "a whole number, 0 or more"),
    float: (_is_number, "a number, 0 or more"),
}


def read_small(path: str | os.PathLike[str], where: str) -> bytes:
    """Read a file of a configuration's size.

    Args:
        path: of the file.
        where: the start of every message, such as "config file a.json: ".

    Raises:
        InvalidArgumentError: The file cannot be read or is too large.
    """
    try:
        _, raw = read_file(path, MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidArgumentError(f"{where}{error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidArgumentError(f"{where}larger than 1 MiB")
    return raw


def read_object(path: str | os.PathLike[str], where: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: of the file; a pipe is read until its writer closes it.
        where: the start of every message, such as "config file a.json: ".

    Returns:
        Names and values.

    Raises:
        InvalidArgumentError: The file cannot be read, is too large, or holds something else; also
            when a name stands in it twice, a number is not finite, or a string has a control
            character.
    """
    import json  # `import kvstore` stays fast

    raw = read_small(path, where)
    try:
        content = json.loads(raw, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidArgumentError(f"{where}nested too deeply") from None
    except _Refused as error:
        raise InvalidArgumentError(f"{where}{error}") from None
    except ValueError as error:
        raise InvalidArgumentError(f"{where}not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"{where}not a JSON object")
    return content


def read_file(path: str | os.PathLike[str], most: int) -> tuple[os.stat_result, bytes]:
    """Read the beginning of a file, without waiting forever at a FIFO that nobody writes to.

    Args:
        path: of a file or a pipe.
        most: bytes to read at most.

    Returns:
        The status of the file that was read, and its bytes.

    Raises:
        OSError: It cannot be read; `strerror` says why.
    """
    if "\0" in os.fsdecode(path):
        raise OSError(errno.EINVAL, "a path has no NUL")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            if not select.select([descriptor], [], [], _PIPE_S)[0]:
                raise TimeoutError(errno.ETIMEDOUT, f"nothing to read within {_PIPE_S} s")
            os.set_blocking(descriptor, True)
        raw = b""
        while len(raw) < most and (more := os.read(descriptor, most - len(raw))):
            raw += more
        return status, raw
    finally:
        os.close(descriptor)


class _Refused(ValueError):
    """JSON, but not accepted."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON; refuses what would be lost, and strings that no path or name has."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Refused(f"{name!r} stands there twice")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and not one.isprintable():
                raise _Refused(f"{name!r} has a character that cannot be printed: {one!r}")
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise _Refused(f"{name} is no number of JSON")
