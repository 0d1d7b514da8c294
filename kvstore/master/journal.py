"""Makes removes, flushes and pins durable before the native side acknowledges them.

One thread drains the native queue, and writes what it finds as a batch. It also tells the native
side how many operations the state has room for: more are refused at once, and have no effect. So a
batch can be written even if the disk has become full meanwhile. Where a write fails all the same (a
broken disk, an etcd that does not answer), no further operation is let in, and the batch is
retried; its operations stay unanswered until their callers' deadlines. The refusal is NoSpace, or
Unavailable where etcd does not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kvstore import clock
from kvstore.errors import KvstoreError, Status, UnavailableError
from kvstore.logging import EventLogger, Recurring
from kvstore.master.core_api import MasterCoreApi
from kvstore.master.hard_state import HardState
from kvstore.tasks import Readiness

_log = EventLogger("master.journal")
_WAIT_MS = 200
_RETRY_S = 0.5
_TRIM_INTERVAL_MS = 1000
# Less room than for one operation with the longest names.
_LEAST_ROOM_BYTES = 4096


class Journal:
    """The thread between the native queue and the state."""

    def __init__(self, core: MasterCoreApi, state: HardState) -> None:
        """Prepare the thread, which runs from start to stop."""
        self._core = core
        self._state = state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal")
        self._trimmed_ms = 0
        self._not_written = Recurring(_log, "journal_write_failed", error=True)
        self._not_trimmed = Recurring(_log, "journal_trim_failed", error=True)
        self._no_room = Recurring(_log, "no_room_for_operations")
        self.written = 0
        """Operations written since the start."""
        self.failures = 0
        """Batches that could not be written."""
        self.refusal = ""
        """Why removes are refused; empty: there is room."""

    def start(self) -> None:
        """Start the thread."""
        self._make_room()
        self._thread.start()

    def request_stop(self) -> None:
        """Let the thread exit once the queue is empty; call after the native side has stopped."""
        self._stop.set()

    def stop(self) -> None:
        """Write the queue and stop the thread."""
        self.request_stop()
        self._thread.join()

    def _run(self) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                batch = self._core.wait_journal(0 if stopping else _WAIT_MS)
                if batch:
                    self._write(batch)
                self._trim()
                self._make_room()
            except Exception:
                # A bug; without this thread every remove and flush would hang, so it continues.
                self.failures += 1
                _log.exception("journal_failed")
                batch = []
                self._stop.wait(_RETRY_S)
            if stopping and not batch:
                return

    def _write(self, batch: list[tuple[int, bytes]]) -> None:
        while True:
            try:
                self._state.append_ops(batch)
                break
            except KvstoreError as error:
                self.failures += 1
                self._core.set_journal_room(0, _refusal(error))
                self.refusal = str(error)
                self._not_written.warn(operations=len(batch), error=error)
                if self._stop.wait(_RETRY_S):
                    return
        self._not_written.end()
        self.written += len(batch)
        self._core.journal_done(batch[-1][0])
        _log.debug("journal_written", operations=len(batch), last=batch[-1][0])

    def _trim(self) -> None:
        now_ms = clock.monotonic_ms()
        if now_ms - self._trimmed_ms < _TRIM_INTERVAL_MS:
            return
        self._trimmed_ms = now_ms
        # Namespaces are read after the mark: a flush below it is in them.
        seq, floor = self._core.journal_trimmed()
        if seq <= self._state.trimmed()[0]:
            return
        try:
            self._state.trim(seq, floor, self._core.namespaces())
        except KvstoreError as error:
            self.failures += 1
            self._not_trimmed.warn(seq=seq, error=error)
        else:
            self._not_trimmed.end()

    def _make_room(self) -> None:
        """Say how many bytes of operations may be waiting."""
        try:
            self._state.reserve()
            room, why, refusal = self._state.room_bytes(), "", Status.NoSpace
        except KvstoreError as error:
            room, why, refusal = 0, str(error), _refusal(error)
        self._core.set_journal_room(room, refusal)
        if room < _LEAST_ROOM_BYTES:
            self.refusal = why or "the disk of data_dir is full: removes are refused"
            self._no_room.warn(error=self.refusal)
        else:
            self.refusal = ""
            self._no_room.end()

    def readiness(self, ready: Readiness) -> Readiness:
        """Add the refusal to /readyz; readiness itself does not change: gets and puts go on."""

        def with_journal() -> tuple[bool, Mapping[str, Any]]:
            is_ready, details = ready()
            return is_ready, {**details, "journal_full": self.refusal} if self.refusal else details

        return with_journal


def _refusal(error: KvstoreError) -> Status:
    """What removes are answered while the state fails like this."""
    return Status.Unavailable if isinstance(error, UnavailableError) else Status.NoSpace
