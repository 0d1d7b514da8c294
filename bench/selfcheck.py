"""Proves in every run that verification is on: a flipped byte must be a miss."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from bench.arena import stamp
from bench.processes import BenchError

_SIZE = 64 << 10


class Reader(Protocol):
    """A client: `bench.processes.WorkerProcess`, or a test's own."""

    def ask(self, do: str, **arguments: Any) -> Any: ...


def flip_byte(files: Iterable[Path], key: str, size: int) -> None:
    """Change one byte in the middle of the object that starts with the stamp of `key`."""
    for path in files:
        if path.stat().st_size < size:
            continue
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            at = content.find(stamp(key))
            if at >= 0:
                content[at + size // 2] ^= 0x10
                return
    raise BenchError(f"{key} is in no file of the segment: nothing to flip")


def check_detection(readers: Iterable[Reader], files: Iterable[Path], key: str) -> int:
    """Flip a byte of an object that every reader can read; each must answer with a miss.

    Args:
        readers: clients; the first one puts the object.
        files: of the node's segment.
        key: of the object, used for nothing else.

    Returns:
        How many readers noticed: all of them.

    Raises:
        BenchError: One of them gave the object as if nothing had happened.
    """
    first, *others = readers
    first.ask("put_one", key=key, size=_SIZE)
    for reader in others:
        reader.ask("learn_one", key=key, size=_SIZE)
    for reader in (first, *others):
        _expect(reader.ask("read_one", key=key, size=_SIZE), True, key)
    flip_byte(files, key, _SIZE)
    for reader in (first, *others):
        _expect(reader.ask("read_one", key=key, size=_SIZE), False, key)
    first.ask("drop_one", key=key)
    return 1 + len(others)


def _expect(answer: dict[str, bool], hit: bool, key: str) -> None:
    if answer["hit"] and not answer["right"]:
        raise BenchError(f"{key}: a flipped byte was returned; verification is not on")
    if answer["hit"] != hit:
        raise BenchError(f"{key}: the object was to {'be read' if hit else 'be a miss'}")
