"""The audit log: a JSON line per call that neither reads nor writes objects.

It tells who did what from where, and with which outcome: administration, removes, flushes, pins,
lists and watches, who was refused, and who has to wait after wrong tokens.

A thread of its own writes: a slow disk delays no call. What cannot be written is counted and warned
about. Each line is one write to a file opened for appending, which is opened anew when it has been
moved away (logrotate) and with every reload.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Protocol, TypedDict

from prometheus_client.core import CounterMetricFamily, Metric

from kvstore import clock
from kvstore.errors import InvalidArgumentError, Status
from kvstore.logging import EventLogger, Recurring
from kvstore.metrics import by_label

_log = EventLogger("audit")
STDERR = "stderr"
_MAX_WAITING = 4096
_MAX_REPEATS = 1024
_MAX_CHARACTERS = 1024
_REPEAT_MS = 60_000
_PATIENCE_S = 2.0
_POLL_S = 0.1


class Deed(TypedDict):
    """A request over the block protocol, as MasterCoreApi.take_deeds() tells it."""

    call: str
    principal: str
    address: str
    client: str
    tenant: str
    namespace: str
    keys: int
    """That it names."""
    prefix: str
    """Of those that it asks for."""
    status: int


class DeedCore(Protocol):
    """The native master."""

    def take_deeds(self) -> tuple[list[Deed], int]:
        """Return the deeds since the last call, and how many there was no room for."""


class Record(Protocol):
    """``AuditLog.record``."""

    def __call__(
        self,
        call: str,
        *,
        principal: str,
        peer: str,
        via: str,
        outcome: Status,
        arguments: Mapping[str, object],
        repeats: bool = False,
    ) -> None:
        """Note a deed."""


def opened(path: str) -> int | None:
    """Open the file of an audit log.

    Args:
        path: as in the configuration.

    Returns:
        A descriptor; None for standard error, and for no log.

    Raises:
        InvalidArgumentError: It cannot be opened, or is no regular file.
    """
    if path in ("", STDERR):
        return None
    try:
        # Without waiting for the reader of a pipe, which is refused below.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        file = os.open(path, flags, 0o600)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"`audit_log` {path}: {_reason(error)}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidArgumentError(f"`audit_log` {path}: not a regular file")
    return file


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class AuditLog:
    """The audit log of one process; does nothing until it has a file."""

    def __init__(self, process: str) -> None:
        """Write nothing yet.

        Args:
            process: who writes: "master", or a node's id.
        """
        self._process = process
        self._lock = threading.Lock()
        self._path = ""
        self._file: int | None = None
        self._torn = False
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._said: dict[tuple[object, ...], int] = {}
        self._counting = threading.Lock()
        self._failing = Recurring(_log, "audit_not_written")
        self.counts = {"written": 0, "lost": 0}

    def prepare(self, path: str) -> Callable[[], None]:
        """Open a file; return a function that makes it the log from now on.

        Args:
            path: of the file, "stderr", or empty for no log.

        Raises:
            InvalidArgumentError: As `opened`.
        """
        file = opened(path)

        def apply() -> None:
            with self._lock:
                before, self._file, self._path = self._file, file, path
            if before is not None:
                os.close(before)
            if path and self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
                self._thread.start()

        return apply

    def record(
        self,
        call: str,
        *,
        principal: str,
        peer: str,
        via: str,
        outcome: Status,
        arguments: Mapping[str, object],
        repeats: bool = False,
    ) -> None:
        """Write a line. Never raises, never waits. From one thread at a time.

        Args:
            call: what was asked: the name of a gRPC method, message or HTTP path.
            principal: who asked; of a refused caller the name it gave, empty for none.
            peer: its address.
            via: "grpc", "block" or "http".
            outcome: of the call.
            arguments: those that matter. Never secrets or contents of objects.
            repeats: the same may come many times, from somebody who polls or guesses: then one
                line a minute.
        """
        if not self._path:
            return
        now_ms = clock.unix_ms()
        arguments = {name: _shortened(value) for name, value in arguments.items()}
        if repeats and self._is_repeated((call, principal, host_of(peer), outcome), arguments):
            return
        time = datetime.fromtimestamp(now_ms / 1000, timezone.utc)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now_ms % 1000:03d}Z",
            "process": self._process,
            "principal": principal,
            "peer": peer,
            "via": via,
            "call": call,
            "arguments": arguments,
            "outcome": outcome.name,
        }
        self._add((json.dumps(line) + "\n").encode())

    def note_lost(self, count: int) -> None:
        """Count deeds of which nothing is known but that there was no room for them."""
        if count and self._path:
            self._note("lost", count, error="too many at once")

    def _is_repeated(self, key: tuple[object, ...], arguments: Mapping[str, object]) -> bool:
        key = (*key, *sorted((name, str(value)) for name, value in arguments.items()))
        now_ms = clock.monotonic_ms()
        said_ms = self._said.get(key)
        if said_ms is not None and now_ms - said_ms < _REPEAT_MS:
            return True
        if len(self._said) >= _MAX_REPEATS:
            self._said.clear()
        self._said[key] = now_ms
        return False

    def _add(self, line: bytes) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._note("lost", error="the file is too slow")

    def _note(self, result: str, count: int = 1, **why: object) -> None:
        """Count lines; the event loop and the thread do."""
        with self._counting:
            self.counts[result] += count
            if result == "lost":
                self._failing.warn(lost=count, **why)
            else:
                self._failing.end()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                with self._lock:
                    self._write(line)
            except (OSError, ValueError, InvalidArgumentError) as error:
                self._note("lost", path=self._path, error=_reason(error))
            else:
                self._note("written")

    def _write(self, line: bytes) -> None:
        if self._path == STDERR:
            sys.stderr.write(line.decode())
            sys.stderr.flush()
            return
        if not self._path:
            return  # switched off meanwhile
        if self._file is None or _is_moved(self._path, self._file):
            fresh = opened(self._path)
            if self._file is not None:
                os.close(self._file)
            self._file, self._torn = fresh, False
        assert self._file is not None
        wanted = b"\n" + line if self._torn else line  # apart from half of another one
        written = os.write(self._file, wanted)
        self._torn = written < len(wanted)
        if self._torn:
            raise OSError("only a part of a line was written: no space left?")

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._thread is not None:
            try:
                self._lines.put(None, timeout=_PATIENCE_S)
                self._thread.join(_PATIENCE_S)
            except queue.Full:
                _log.warning("audit_not_written", error="the file is too slow")
            self._thread = None
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file, self._path = None, ""

    def families(self) -> Iterator[Metric]:
        """Collect the metrics."""
        lines = CounterMetricFamily(
            "kvstore_audit_lines",
            "Lines of the audit log, by whether they were written; alert on lost ones.",
            labels=["result"],
        )
        yield by_label(lines, self.counts)


def pauses(record: Record) -> Callable[[str, str, int], None]:
    """Return what notes that a principal has to wait after wrong tokens (Guard.on_pause)."""

    def note(name: str, peer: str, pause_ms: int) -> None:
        record(
            "Authenticate",
            principal=name,
            peer=peer,
            via="control",
            outcome=Status.Unauthenticated,
            arguments={"pause_ms": pause_ms},
        )

    return note


def _is_moved(path: str, file: int) -> bool:
    ours = os.fstat(file)
    try:
        found = os.stat(path)
    except OSError:
        return True
    return (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino)


def _shortened(value: object) -> object:
    """Cut what a caller without any right may have made as long as a message."""
    if isinstance(value, str) and len(value) > _MAX_CHARACTERS:
        return f"{value[:_MAX_CHARACTERS]}… ({len(value)} characters)"
    return value


def host_of(peer: str) -> str:
    """Return an address without its port."""
    return peer.rpartition(":")[0] or peer


async def report(core: DeedCore, log: AuditLog) -> None:
    """Write what was done over the block protocol, until cancelled."""
    while True:
        write_deeds(core, log)
        await asyncio.sleep(_POLL_S)


def write_deeds(core: DeedCore, log: AuditLog) -> None:
    """Write what was done over the block protocol since the last call."""
    deeds, lost = core.take_deeds()
    for deed in deeds:
        arguments: dict[str, object] = {
            "tenant": deed["tenant"],
            "namespace": deed["namespace"],
            "client": deed["client"],
        }
        lists = deed["call"] == "List"
        if lists:
            arguments["prefix"] = deed["prefix"]
        elif deed["keys"]:
            arguments["keys"] = deed["keys"]
        log.record(
            deed["call"],
            principal=deed["principal"],
            peer=deed["address"],
            via="block",
            outcome=Status(deed["status"]),
            arguments=arguments,
            repeats=lists,  # page by page
        )
    log.note_lost(lost)
