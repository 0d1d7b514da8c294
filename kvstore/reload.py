"""Applies a changed configuration while the process serves: compare, watch, apply, report.

The fields of kvstore.config state which keys may change at run time. A file that would prevent a
start is refused with the same message, and the running configuration stays in effect.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvstore import config
from kvstore.config import CommonConfig
from kvstore.errors import InvalidArgumentError, KvstoreError
from kvstore.limits import MAX_CONFIG_BYTES
from kvstore.logging import EventLogger, set_level
from kvstore.metrics import by_label
from kvstore.tasks import Readiness

_log = EventLogger("config")
# A change is applied once two looks in a row have found the same content: writing has finished.
_LOOK_S = 0.5
_CONTENTS = ("", "auth_token_file", "", "tls")
"""Keys whose files make the parts of a Fingerprint."""

T = TypeVar("T", bound=CommonConfig)
Apply = Callable[[], None]
Fingerprint = tuple[str, str, str, str]
"""Of the configuration, of the token file, of what is discovered, and of the files of `tls`."""


class Discoverer(Protocol):
    """``kvstore.discovery.source.Discovery``."""

    found: dict[str, Any]

    def complete(self, settings: T) -> T:
        """Fill in what is discovered; raises InvalidArgumentError."""

    def fingerprint(self) -> str:
        """Identify what is there to be discovered now."""


@dataclass(frozen=True)
class Comparison(Generic[T]):
    """Effect of a configuration that was read again."""

    effective: T
    """The running configuration with every change that needs no restart."""
    applied: tuple[str, ...]
    """Keys that change now."""
    restart_needed: tuple[str, ...]
    """Keys whose new value waits for a restart."""


def compare(running: T, wanted: T) -> Comparison[T]:
    """Decide which changes of a configuration apply to a running process.

    Args:
        running: the configuration in effect.
        wanted: the configuration that was read, with the flags of the command line applied.

    Raises:
        InvalidArgumentError: The changes are inconsistent with keys that only change on restart.
    """
    changes = {
        name: getattr(wanted, name)
        for name in running.__struct_fields__
        if getattr(wanted, name) != getattr(running, name)
    }
    live = {n: value for n, value in changes.items() if config.reloads(type(running), n, value)}
    waiting = tuple(name for name in changes if name not in live)
    try:
        effective = msgspec.convert(msgspec.structs.asdict(running) | live, type(running))
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidArgumentError(
            f"{error} (while {', '.join(waiting)} cannot change without a restart)"
        ) from None
    return Comparison(effective, tuple(live), waiting)


class Reloads:
    """Counts reloads and remembers the keys that wait for a restart."""

    def __init__(self) -> None:
        """Start with all counters at 0."""
        self.results = dict.fromkeys(("applied", "unchanged", "refused", "failed"), 0)
        self.restart_needed: tuple[str, ...] = ()
        self.discovered: Callable[[], dict[str, Any]] = dict
        """What was found beside the configuration; empty when nothing is discovered."""
        self.refusal = ""
        """Why the file on disk is not in effect; empty when it is."""

    def families(self) -> Iterator[Metric]:
        """Collect the metrics."""
        reloads = CounterMetricFamily(
            "kvstore_config_reloads", "Configuration reloads, by result.", labels=["result"]
        )
        yield by_label(reloads, self.results)
        yield GaugeMetricFamily(
            "kvstore_config_restart_needed",
            "Number of changed keys that wait for a restart; /readyz lists them.",
            len(self.restart_needed),
        )
        yield GaugeMetricFamily(
            "kvstore_config_refused",
            "1 while the file on disk is refused and an older configuration is in effect.",
            bool(self.refusal),
        )

    def readiness(self, ready: Readiness) -> Readiness:
        """Add pending restarts and refused files to /readyz; readiness itself does not change."""

        def with_config() -> tuple[bool, Mapping[str, Any]]:
            is_ready, details = ready()
            said = dict(details)
            if self.restart_needed:
                said["restart_needed"] = list(self.restart_needed)
            if self.refusal:
                said["config_refused"] = self.refusal
            if discovered := self.discovered():
                said["discovery"] = discovered
            return is_ready, said

        return with_config


class Reloader(Generic[T]):
    """Keeps the configuration of a process up to date with its files."""

    def __init__(
        self,
        kind: type[T],
        path: str | os.PathLike[str] | None,
        flags: Mapping[str, Any],
        discoverer: Discoverer | None = None,
    ) -> None:
        """Read the configuration for the start.

        Args:
            kind: MasterConfig or NodeConfig.
            path: as in config.load.
            flags: of the command line; they stay over the file in every reload.
            discoverer: fills in what neither of them sets; None for nobody.

        Raises:
            InvalidArgumentError: As config.load, or what was discovered is wrong.
        """
        self._kind = kind
        self._path = path
        self._flags = flags
        self._prepare: Callable[[T], Apply] | None = None
        self._discoverer = discoverer
        self.reloads = Reloads()
        if discoverer is not None:
            self.reloads.discovered = lambda: discoverer.found
        before = _fingerprint(path)
        self.config: T = self._load()
        self._token_file = self.config.auth_token_file
        self._certificates = self.config.tls.files() if self.config.tls else ()
        # Taken before these files are read, as `before` was: see reload().
        self._taken: Fingerprint = (before, *self._fingerprints()[1:])
        self._in_effect = self._taken

    def on_change(self, prepare: Callable[[T], Apply]) -> None:
        """Register the function that applies changes.

        Args:
            prepare: checks a configuration and reads the files it names (KvstoreError: refused);
                returns a function that puts it in effect, which must not fail.
        """
        self._prepare = prepare

    def reload(self, reason: str) -> None:
        """Read the files again; a wrong one changes nothing.

        Args:
            reason: for the log: "sighup" or "file".
        """
        reloads = self.reloads
        # Taken before the files are read, so that a change in between is noticed.
        self._taken = self._fingerprints()
        try:
            wanted = self._load()
            outcome = compare(self.config, wanted)
            # Watched even if it is refused: correcting it is a change, too.
            self._token_file = outcome.effective.auth_token_file
            self._taken = (self._taken[0], _fingerprint(self._token_file), *self._taken[2:])
            apply = self._prepare(outcome.effective) if self._prepare else lambda: None
        except KvstoreError as error:
            self._refuse(reason, error)
            return
        except Exception as error:
            # A bug; without this task no later change would be noticed, so it continues.
            _log.exception("config_not_read", reason=reason)
            self._refuse(reason, error)
            return
        try:
            apply()
        except Exception:
            # A bug, or the process is stopping; the next reload applies everything again.
            _log.exception("config_not_applied", reason=reason)
            reloads.results["failed"] += 1
            return
        set_level(outcome.effective.log_level)
        self.config = outcome.effective
        applied = outcome.applied
        for name, now, before in zip(_CONTENTS, self._taken, self._in_effect, strict=True):
            if name and now != before and name not in applied:
                applied += (name,)  # the content of its files
        self._in_effect = self._taken
        self._report(reason, applied, outcome.restart_needed)

    def _refuse(self, reason: str, error: Exception) -> None:
        self.reloads.results["refused"] += 1
        self.reloads.refusal = str(error)
        _log.warning("config_refused", reason=reason, error=error)

    def _report(
        self, reason: str, applied: tuple[str, ...], restart_needed: tuple[str, ...]
    ) -> None:
        reloads = self.reloads
        reloads.refusal = ""
        reloads.results["applied" if applied else "unchanged"] += 1
        news = restart_needed and restart_needed != reloads.restart_needed
        reloads.restart_needed = restart_needed
        (_log.warning if news else _log.info)(
            "config_reloaded",
            reason=reason,
            applied=",".join(applied),
            restart_needed=",".join(restart_needed),
        )

    async def watch(self) -> None:
        """Reload whenever a file has changed, until cancelled."""
        seen = self._taken
        while True:
            await asyncio.sleep(_LOOK_S)
            now = await asyncio.to_thread(self._fingerprints)
            if now == seen != self._taken:
                self.reload("file")
            seen = now

    def _fingerprints(self) -> Fingerprint:
        certificates = ";".join(map(_fingerprint, self._certificates))
        found = _fingerprint(self._path), _fingerprint(self._token_file), self._discovered()
        return (*found, certificates)

    def _load(self) -> T:
        loaded = config.load(self._kind, self._path, self._flags)
        return loaded if self._discoverer is None else self._discoverer.complete(loaded)

    def _discovered(self) -> str:
        return "" if self._discoverer is None else self._discoverer.fingerprint()


def _fingerprint(path: str | os.PathLike[str] | None) -> str:
    """Identify the content of a file, however it is replaced.

    Symbolic links are followed: a ConfigMap is updated by replacing one, an editor renames files.
    """
    if not path:
        return ""
    try:
        # A pipe can be read only once, by the start.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "no regular file"
        with Path(path).open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)  # it matters for a token file
            return f"{mode:o} {hashlib.sha256(stream.read(MAX_CONFIG_BYTES + 1)).hexdigest()}"
    except OSError as error:
        return f"unreadable: {error.strerror}"
