"""Standby masters in etcd: each keeps a key, bound to a lease, that says where it will serve."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from kvstore import clock
from kvstore.errors import KvstoreError, NoSpaceError
from kvstore.logging import EventLogger, Recurring
from kvstore.master.etcd_client import EtcdClient
from kvstore.master.hard_state import Where
from kvstore.text import printable

_log = EventLogger("master.standby")
_SHOWN = ("host", "pid", "block", "grpc", "http")
_MOST_SHOWN = 256
_MOST_STANDBYS = 64


def prefix(client: EtcdClient) -> bytes:
    """Return what the keys of standbys begin with."""
    return client.prefix + b"standbys/"


def decode(value: bytes) -> Where:
    """Read what a master wrote of itself, whoever has changed it since: shortened, printable."""
    try:
        told = msgspec.json.decode(value, type=dict[str, str | int])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: _shown(told[name]) for name in _SHOWN if name in told}


def _shown(value: str | int) -> str | int:
    return printable(value)[:_MOST_SHOWN] if isinstance(value, str) else value


def look(client: EtcdClient, timeout_ms: int) -> list[Where]:
    """Read which masters stand by.

    Raises:
        KvstoreError: etcd did not answer in time.
    """
    rows = client.rows(prefix(client), timeout_ms)
    return [decode(value) for _, value in rows[:_MOST_STANDBYS]]


class Presence:
    """The key of this standby. It goes when this process is gone, or becomes the active master."""

    def __init__(self, client: EtcdClient, where: Where, ttl_s: int) -> None:
        """Write nothing yet.

        Args:
            client: of etcd.
            where: this master's addresses.
            ttl_s: for how long the key stays when this process has gone.
        """
        self._client = client
        self._value = msgspec.json.encode(where)
        self._ttl_s = ttl_s
        self._lease = 0
        self._due_ms = 0
        self.key = b""
        """Empty before it was written."""
        self._not_told = Recurring(_log, "standby_not_told")

    def keep(self) -> None:
        """Write the key, or renew its lease, when that is due; to be called again and again.

        Raises:
            KvstoreError: etcd cannot be reached.
        """
        now_ms = clock.monotonic_ms()
        if now_ms < self._due_ms:
            return
        try:
            if self._lease and not self._client.keep_alive(self._lease, self._ttl_s * 1000):
                self._lease = 0
            if not self._lease:
                self._lease, self._ttl_s = self._client.grant(self._ttl_s)
                self.key = prefix(self._client) + b"%x" % self._lease
                self._client.create(self.key, self._value, self._lease)
        except NoSpaceError as error:  # it stands by all the same, though nobody can tell
            self._not_told.warn(error=error)
            self._lease = 0
        else:
            self._not_told.end()
        self._due_ms = now_ms + self._ttl_s * 1000 // 3

    def end(self, client: EtcdClient) -> None:
        """Delete the key by a client that is open; if etcd does not answer, it goes by itself."""
        if self._lease:
            with suppress(KvstoreError):
                client.revoke(self._lease)
