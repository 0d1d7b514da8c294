"""Clients that put, read and remove while something else is made to fail, and record it all.

Threads of the test use the shared memory of their host's node, a second process uses sockets.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import kvstore
from kvstore.client.connect import Transport
from tests.fault import history
from tests.fault.history import Op, Recorder, number_of, payload
from tests.support.processes import wait_for

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_MS = 3000
_SLACK_S = 2.0  # of a call's deadline, on a busy machine
_KEYS = 200
_MAX_SIZE = 48 << 10
_PAUSE_S = 0.001
_REMOVE_PAUSE_S = 0.012
_LEASE_MS = 500
_VIEWS = 12


@dataclass
class Counts:
    """What this process's workers have got done so far; a lost count does not matter."""

    hits: int = 0
    puts: int = 0
    errors: list[str] = field(default_factory=list)
    removed: deque[str] = field(default_factory=lambda: deque(["key/0"], maxlen=8))
    """Keys that are worth a look: what comes back comes back soon."""


class Worker:
    """One thread with a store of its own."""

    def __init__(
        self,
        address: str,
        folder: Path,
        number: int,
        role: str,
        transport: Transport,
        counts: Counts,
    ) -> None:
        self._store = kvstore.connect(address, timeout_ms=TIMEOUT_MS, transport=transport)
        self._record = Recorder(folder, number)
        self._random = random.Random(number)
        self._counts = counts
        self._views: deque[tuple[str, kvstore.View, memoryview, int]] = deque()
        self._work: Callable[[], None] = getattr(self, f"_{role}")

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                self._work()
        except BaseException as error:
            self._counts.errors.append(f"{self._work.__name__}: {error!r}")
        finally:
            while self._views:
                self._end_view()
            self._store.close()
            self._record.close()

    def _key(self) -> str:
        return f"key/{self._random.randrange(_KEYS)}"

    def _writer(self) -> None:
        count = self._random.choice((1, 1, 1, 4))
        keys = list({self._key() for _ in range(count)})
        numbers = [self._record.number() for _ in keys]
        sizes = [self._random.randrange(100, _MAX_SIZE) for _ in keys]
        data = [payload(*row) for row in zip(keys, numbers, sizes, strict=True)]
        for key, number in zip(keys, numbers, strict=True):
            self._record.begin("put", key, number)
        replicas = self._random.choice((1, 1, 2))
        start = time.monotonic()
        if count == 1:
            statuses = [self._store.put(keys[0], data[0], replicas=replicas)]
        else:
            statuses = self._store.batch_put(keys, data, replicas=replicas)
        for key, number, status in zip(keys, numbers, statuses, strict=True):
            self._record.end("put", key, number, start, status.name)
            self._counts.puts += status.ok
        time.sleep(_PAUSE_S if all(status.ok for status in statuses) else 10 * _PAUSE_S)

    def _note_read(self, key: str, data: bytes | None, start: float) -> None:
        if data is None:
            self._record.end("get", key, -1, start, "miss")
            return
        self._record.end("get", key, number_of(key, data), start, "hit")
        self._counts.hits += 1

    def _reader(self) -> None:
        way = self._random.randrange(12)
        start = time.monotonic()
        if way == 0:
            keys = list({self._key() for _ in range(4)})
            values = self._store.batch_get(keys)
            for key, value in zip(keys, values, strict=True):
                self._note_read(key, value, start)
        elif way == 1:
            key = self._key()
            view = self._store.view(key)
            held = view.__enter__()
            if held is None:
                self._note_read(key, None, start)
            else:
                data = bytes(held)
                self._note_read(key, data, start)
                self._views.append((key, view, held, number_of(key, data)))
                if len(self._views) > _VIEWS:
                    self._end_view()
        elif way == 2:
            with self._store.lookup([self._key()], lease_ms=_LEASE_MS):
                pass
        else:
            key = self._key() if way < 9 else self._random.choice([*self._counts.removed])
            self._note_read(key, self._store.get(key), start)
        time.sleep(_PAUSE_S)

    def _end_view(self) -> None:
        """Look at a view once more: its block stays as it is, whatever became of the object."""
        key, view, held, number = self._views.popleft()
        start = time.monotonic()
        if number_of(key, bytes(held)) != number:
            self._record.end("get", key, history.NOBODY, start, "hit")
        del held
        view.release()

    def _remover(self) -> None:
        key = self._key()
        self._record.begin("remove", key, 0)
        start = time.monotonic()
        status = self._store.remove(key)
        self._record.end("remove", key, 0, start, status.name)
        self._counts.removed.append(key)
        time.sleep(_REMOVE_PAUSE_S)


def _start(
    address: str, folder: Path, roles: list[str], first: int, transport: Transport, counts: Counts
) -> tuple[list[threading.Thread], threading.Event]:
    stop = threading.Event()
    threads = []
    for number, role in enumerate(roles, first):
        worker = Worker(address, folder, number, role, transport, counts)
        threads.append(threading.Thread(target=worker.run, args=(stop,), name=f"load-{role}"))
    for thread in threads:
        thread.start()
    return threads, stop


def other_process(
    address: str, folder: Path, first: int, roles: list[str], transport: str, fault: str = ""
) -> subprocess.Popen[str]:
    """Start workers in a process of their own, until its input ends or it passes `fault`."""
    arguments = [address, str(folder), str(first), transport, *roles]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fault.load", *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KVSTORE_FAULT_POINT": fault},
    )


_ROLES = ["writer", "reader", "remover"]
_OTHER_FIRST = 11


class Load:
    """Three threads of this process and three of another one; `stop` ends and judges them."""

    def __init__(self, address: str, folder: Path) -> None:
        self.folder = folder / f"history-{time.monotonic_ns()}"
        self.folder.mkdir()
        self.counts = Counts()
        self._begin = time.monotonic()
        self._threads, self._stop = _start(address, self.folder, _ROLES, 1, "auto", self.counts)
        self._other = other_process(address, self.folder, _OTHER_FIRST, _ROLES, "tcp")
        last = self.folder / f"worker-{_OTHER_FIRST + len(_ROLES) - 1}.history"
        wait_for(
            lambda: self._other.poll() is not None or last.exists(), "the other process to connect"
        )

    def wait_progress(self, what: str, timeout_s: float = 20.0, reads: int = 150) -> None:
        """Wait until reads find and puts keep something again."""
        hits, puts = self.counts.hits, self.counts.puts
        wait_for(
            lambda: (
                self.counts.errors
                or (self.counts.hits >= hits + reads and self.counts.puts >= puts + reads // 3)
            ),
            f"the load to go on {what}",
            timeout_s,
        )
        assert not self.counts.errors, self.counts.errors

    def _end(self) -> str:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        try:
            return self._other.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            self._other.kill()
            return self._other.communicate()[1] + "the other process did not end"

    def stop(self) -> Judgement:
        errors = self._end()
        end = time.monotonic()
        assert not self.counts.errors, self.counts.errors
        assert self._other.returncode == 0, errors
        ops = history.load(self.folder)
        return Judgement(
            ops=len(ops),
            wrong=history.check(ops),
            late=history.late(ops, TIMEOUT_MS / 1000 + _SLACK_S),
            outage_s=history.longest_outage(ops, self._begin, end),
            outcomes=_outcomes(ops),
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._stop.is_set():
            self._end()


@dataclass(frozen=True)
class Judgement:
    """What came of one load."""

    ops: int
    wrong: list[str]
    late: list[str]
    outage_s: float
    outcomes: dict[str, int]


def _outcomes(ops: list[Op]) -> dict[str, int]:
    found: dict[str, int] = {}
    for op in ops:
        name = f"{op.kind} {op.outcome or 'unknown'}"
        found[name] = found.get(name, 0) + 1
    return found


def main() -> None:
    """Another process: runs until its input ends."""
    address, folder, first, transport, *roles = sys.argv[1:]
    counts = Counts()
    by = cast(Transport, transport)
    threads, stop = _start(address, Path(folder), roles, int(first), by, counts)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    if counts.errors:
        sys.exit("\n".join(counts.errors))


if __name__ == "__main__":
    main()
