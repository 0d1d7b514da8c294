"""Runs checks one after the other; one that breaks is a finding, not the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from kvstore.doctor.findings import Finding, fail

C = TypeVar("C")


@dataclass(frozen=True)
class Check(Generic[C]):
    """A check and its name in the report."""

    name: str
    about: str
    """What it looks at, for the help."""
    look: Callable[[C], Iterable[Finding]]


def run(
    checks: Sequence[Check[C]], facts: C, begins: Callable[[str], None] = lambda name: None
) -> Iterator[Finding]:
    """Run checks in their order.

    Args:
        checks: to run.
        facts: what they look at.
        begins: called with the name of each check before it runs.

    Yields:
        Their findings.
    """
    for check in checks:
        begins(check.name)
        try:
            for finding in check.look(facts):
                yield replace(finding, check=check.name)
        except Exception as error:  # a doctor that dies says nothing about the remainder
            broken = fail(
                f"the check itself failed: {type(error).__name__}: {error}",
                "report it with this line; the other checks are not affected",
            )
            yield replace(broken, check=check.name)
