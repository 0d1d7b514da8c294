"""How a worker calls each store: the same few operations, bound before the clock starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

Call = Callable[[], Any]


@dataclass(frozen=True)
class Blocks:
    """The objects of one call, and where the bytes of each lie or must go."""

    keys: list[str]
    views: list[memoryview]
    pointers: list[int]
    sizes: list[int]


class WrongAnswer(Exception):
    """A store did not do what the round asked for; the run ends."""


class Driver(Protocol):
    """A connected store as a worker sees it."""

    def register(self, address: int, size_bytes: int) -> None:
        """Register memory that transfers will use, where the store requires it."""

    def bind(self, operation: str, blocks: Blocks) -> Call | None:
        """Prepare one timed call of put_from, put, get or exists; None: it has no such call."""

    def check(self, operation: str, blocks: Blocks, result: Any) -> None:
        """Raise WrongAnswer unless `result` says that every key succeeded (exists: is present)."""

    def absent(self, result: Any) -> bool:
        """Whether the answer of an exists call says that no key is there."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects, whether or not they are there."""

    def counters(self) -> dict[str, int]:
        """What the store counted; empty where it counts nothing for its clients."""

    def close(self) -> None: ...


def open_driver(kind: str, options: dict[str, Any]) -> Driver:
    """Connect the store `kind` (a module of this package); only its packages are imported."""
    driver: Driver = import_module(f"bench.drivers.{kind}").connect(**options)
    return driver
