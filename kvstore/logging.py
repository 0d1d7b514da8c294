"""One line per event on standard error: time, level, component, event name, then its fields."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Final

from kvstore import clock

TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
"""W3C's header: version, trace id, span id, flags."""
_trace: ContextVar[Mapping[str, str]] = ContextVar("kvstore_trace", default=MappingProxyType({}))
_REPEAT_MS = 60_000
_MAX_KEYS = 256
FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
_ROOT = "kvstore"
_FIELDS = "kvstore_fields"


@contextmanager
def within_trace(traceparent: str) -> Iterator[None]:
    """Add ``trace_id`` and ``span_id`` to every event that is logged in a block.

    Args:
        traceparent: the header of a request; one that is empty or malformed adds nothing.
    """
    found = TRACEPARENT.fullmatch(traceparent)
    ids = {"trace_id": found[1], "span_id": found[2]} if found else {}
    token = _trace.set(ids)
    try:
        yield
    finally:
        _trace.reset(token)


class EventLogger:
    """Writes events with fields. Secrets hide themselves (security.Secret)."""

    def __init__(self, component: str) -> None:
        """Log as ``kvstore.<component>``."""
        self._logger = logging.getLogger(f"{_ROOT}.{component}")

    def debug(self, event: str, **fields: object) -> None:
        """Log details for developers."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log a change of state."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log a condition that the store tolerates and an operator should look at."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log a condition that should not occur: a bug or a failing machine."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log an error with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(
        self, level: int, event: str, fields: dict[str, object], exc_info: bool = False
    ) -> None:
        self._logger.log(level, event, extra={_FIELDS: fields}, exc_info=exc_info)


class Recurring:
    """A warning or an error that would repeat for as long as its cause lasts.

    It is logged at once, then at most once a minute with the count; the end is an event, too.
    """

    def __init__(self, log: EventLogger, event: str, *, error: bool = False) -> None:
        """Log `event` to `log`, as a warning or as an error."""
        self._log = log
        self._write = log.error if error else log.warning
        self._event = event
        self._times = 0
        self._first_ms = 0
        self._logged_ms = 0

    def warn(self, **fields: object) -> None:
        """Note one occurrence, and log it unless one was logged less than a minute ago."""
        now_ms = clock.monotonic_ms()
        self._times += 1
        if self._times == 1:
            self._first_ms = now_ms
        elif now_ms - self._logged_ms < _REPEAT_MS:
            self._log.debug(self._event, **fields)
            return
        else:
            fields |= {"times": self._times, "for_s": (now_ms - self._first_ms) // 1000}
        self._logged_ms = now_ms
        self._write(self._event, **fields)

    def end(self) -> None:
        """Note that the cause has gone; the next occurrence is logged at once."""
        if self._times:
            lasted_s = (clock.monotonic_ms() - self._first_ms) // 1000
            self._log.info("recovered", what=self._event, times=self._times, after_s=lasted_s)
            self._times = 0


class RecurringByKey:
    """A Recurring for each of many causes, such as the peers of a server."""

    def __init__(self, log: EventLogger, event: str) -> None:
        """Log `event` to `log`, as a warning."""
        self._log = log
        self._event = event
        self._known: dict[Hashable, Recurring] = {}

    def of(self, key: Hashable) -> Recurring:
        """Return that of a cause. All are forgotten when there are too many."""
        if key not in self._known and len(self._known) >= _MAX_KEYS:
            self._known.clear()
        return self._known.setdefault(key, Recurring(self._log, self._event))


def _quote(value: object) -> str:
    text = str(value)
    plain = text and all(c.isprintable() and c not in ' "=' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _take_apart(record: logging.LogRecord) -> tuple[dict[str, str], Mapping[str, object]]:
    """Return what every line has, and the event's own fields."""
    time = datetime.fromtimestamp(record.created, timezone.utc)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"
    fields = getattr(record, _FIELDS, None)
    common = {
        "time": stamp,
        "level": record.levelname,
        "component": record.name.removeprefix(f"{_ROOT}."),
        "event": "message" if fields is None else record.getMessage(),
    }
    # A message of another library.
    own = {"text": record.getMessage()} if fields is None else fields
    return common, {**_trace.get(), **own}


class EventFormatter(logging.Formatter):
    """Formats a record as one line (and its traceback, if any, on the lines after it)."""

    def format(self, record: logging.LogRecord) -> str:
        """Format an event, or a message of another library as the event ``message``."""
        common, fields = _take_apart(record)
        parts = [*common.values(), *(f"{name}={_quote(value)}" for name, value in fields.items())]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """Formats a record as one line with one JSON object, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Format an event; numbers and booleans stay what they are."""
        common, fields = _take_apart(record)
        line: dict[str, object] = dict(common)
        for name, value in fields.items():
            plain = isinstance(value, int | float) or value is None
            line[f"{name}_" if name in common else name] = value if plain else str(value)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def setup(level: str, log_format: str = "text") -> None:
    """Send every event of this process to standard error.

    Args:
        level: one of LEVELS; other libraries are kept at warning or above.
        log_format: one of FORMATS.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else EventFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)


def in_json() -> bool:
    """Whether this process logs JSON: then nothing else belongs on its standard error."""
    return any(isinstance(h.formatter, JsonFormatter) for h in logging.getLogger().handlers)


def set_level(level: str) -> None:
    """Log events of this level and above from now on.

    Args:
        level: one of LEVELS.
    """
    logging.getLogger(_ROOT).setLevel(level.upper())
