"""Sizes in human-readable form: 4294967296, "4gb", "256mb" (binary units)."""

from __future__ import annotations

import re

_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_PATTERN = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]?)(?:i?b)?\s*$", re.IGNORECASE)


def parse_size(value: int | str) -> int:
    """Read a size in bytes.

    Args:
        value: a non-negative integer, or digits with an optional unit: b, kb, mb, gb, tb
            (all binary: "4gb" is 4 * 2**30), also written "4g", "4gib", "1.5gb", any case.

    Returns:
        The number of bytes.

    Raises:
        ValueError: not a size, or not a whole number of bytes.

    Units are binary as in Linux's memory and cgroup settings.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"size must not be negative: {value}")
        return value
    match = _PATTERN.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'not a size: {str(value)[:40]!r} (write 4294967296 or "4gb")')
    number, unit = match.groups()
    shift = _UNITS[unit.lower()]
    if "." not in number:
        return int(number) << shift
    size = float(number) * (1 << shift)
    if size != int(size):
        raise ValueError(f"not a whole number of bytes: {value!r}")
    return int(size)


def format_size(size_bytes: int) -> str:
    """Format a size in the largest binary unit that keeps it at 1 or above.

    Args:
        size_bytes: a number of bytes.

    Returns:
        For example "1.5 GiB", "512 B".
    """
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the loop returns at TiB")
