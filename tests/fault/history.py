"""Histories of client calls, and a check that a correct store could have produced them.

Every payload names its key and the one put that made it (`payload`), so a reader can tell whose
bytes it got. The rule that `check` applies: a read returns the bytes that one put published under
its key, a put that started before the read finished and was not removed before the read started;
or nothing. A call with an unknown outcome (it failed, or its process died) may or may not have
happened, at any later time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

NOBODY = 0
_UNIT_BYTES = 4093  # prime: no page-sized shift maps a payload onto itself
# Outcomes that say for certain that nothing was published.
REFUSED = frozenset({"NoSpace", "TooLarge", "InvalidArgument"})


def payload(key: str, number: int, size: int) -> bytes:
    """Return the bytes of put `number`; they begin with a line that says so."""
    head = f"{number} {size} {key}\n".encode()
    unit = hashlib.shake_128(head).digest(_UNIT_BYTES)
    return (head + unit * (size // _UNIT_BYTES + 1))[:size]


def number_of(key: str, data: bytes) -> int:
    """Return the number of the put whose bytes these are; NOBODY when they are no put's."""
    head = data[: len(key) + 80].partition(b"\n")[0].split(b" ", 2)
    try:
        number, size, whose = int(head[0]), int(head[1]), head[2].decode()
    except (ValueError, IndexError):
        return NOBODY
    whole = whose == key and size == len(data) and payload(key, number, size) == data
    return number if whole else NOBODY


@dataclass(frozen=True)
class Op:
    """One call: `number` is the put's own, or the one whose bytes a read returned."""

    kind: str  # put, get, remove
    key: str
    number: int  # of a get: -1 for a miss
    start: float
    end: float | None  # None: nobody knows whether it ended
    outcome: str  # a status, "hit", "miss"; "" while it is not known

    @property
    def known_end(self) -> float:
        """End of a call that has an outcome."""
        assert self.end is not None, self
        return self.end


class Recorder:
    """Writes one worker's calls to a file of its own; what was begun is on record if it dies."""

    def __init__(self, folder: Path, worker: int) -> None:
        path = folder / f"worker-{worker}.history"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._next = worker * 1_000_000_000

    def number(self) -> int:
        self._next += 1
        return self._next

    def _write(self, *fields: object) -> None:
        os.write(self._file, json.dumps(fields).encode() + b"\n")

    def begin(self, kind: str, key: str, number: int) -> None:
        self._write("begin", kind, key, number, time.monotonic())

    def end(self, kind: str, key: str, number: int, start: float, outcome: str) -> None:
        self._write("end", kind, key, number, start, time.monotonic(), outcome)

    def close(self) -> None:
        os.close(self._file)


def load(folder: Path) -> list[Op]:
    """Read what the recorders of a folder wrote."""
    ops: list[Op] = []
    for path in sorted(folder.glob("*.history")):
        open_puts: dict[tuple[str, str, int], Op] = {}
        for line in path.read_text().splitlines():
            kind, *fields = json.loads(line)
            if kind == "begin":
                what, key, number, start = fields
                open_puts[what, key, number] = Op(what, key, number, start, None, "")
                continue
            what, key, number, start, end, outcome = fields
            begun = open_puts.pop((what, key, number), None)
            ops.append(Op(what, key, number, begun.start if begun else start, end, outcome))
        ops += open_puts.values()
    return ops


def check(ops: Iterable[Op]) -> list[str]:
    """Return a sentence for every read that no correct store could have answered so."""
    ops = list(ops)
    puts = {op.number: op for op in ops if op.kind == "put"}
    removes: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        if op.kind == "remove" and op.outcome == "Ok":
            removes[op.key].append(op)
    hits = [op for op in ops if op.kind == "get" and op.outcome == "hit"]
    # From then on it was published for certain: it was said so, or somebody had read it.
    published = {op.number: op.known_end for op in puts.values() if op.outcome == "Ok"}
    for read in hits:
        known = published.get(read.number)
        end = read.known_end
        published[read.number] = end if known is None else min(known, end)
    wrong = []
    for read in hits:
        put = puts.get(read.number)
        if put is None:
            wrong.append(f"{read.key}: bytes that no put made: {read}")
        elif put.key != read.key:
            wrong.append(f"{read.key}: the bytes of {put.key}: {read}")
        elif put.outcome in REFUSED:
            wrong.append(f"{read.key}: a put that was refused: {read}, {put}")
        elif read.known_end < put.start:
            wrong.append(f"{read.key}: before it was put: {read}, {put}")
        else:
            known = published[read.number]
            for remove in removes[read.key]:
                if known <= remove.start and remove.known_end < read.start:
                    wrong.append(f"{read.key}: removed before: {read}, {put}, {remove}")
                    break
    return wrong


def late(ops: Iterable[Op], limit_s: float) -> list[str]:
    """Return a sentence for every call that took longer."""
    return [
        f"{op.kind} {op.key} took {op.end - op.start:.2f} s, {op.outcome}"
        for op in ops
        if op.end is not None and op.end - op.start > limit_s
    ]


def longest_outage(ops: Iterable[Op], begin: float, end: float) -> float:
    """Return the longest time between `begin` and `end` in which no get found anything."""
    ends = sorted(op.end for op in ops if op.kind == "get" and op.outcome == "hit" and op.end)
    marks = [begin, *(at for at in ends if begin < at < end), end]
    return max(b - a for a, b in pairwise(marks))
