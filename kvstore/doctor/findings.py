"""Findings: what a check says, how bad it is, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    """It works, but slower or less safely than it could."""
    FAIL = "fail"
    """Something does not work."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    message: str
    fix: str = ""
    """What to change; empty only for OK."""
    check: str = ""
    """Name of the check; the runner fills it in."""


def ok(message: str) -> Finding:
    """Say that something is as it should be, or not needed here."""
    return Finding(Level.OK, message)


def warn(message: str, fix: str) -> Finding:
    """Say what is worse than it could be, and what to change."""
    return Finding(Level.WARN, message, fix)


def fail(message: str, fix: str) -> Finding:
    """Say what does not work, and what to change."""
    return Finding(Level.FAIL, message, fix)
