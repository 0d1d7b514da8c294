"""The lease in etcd that makes one master the active one, and fences what it does.

What holds, and why:

* What is durable. Every write is one transaction that compares the revision of the key ``leader``.
  A master that has been replaced makes nothing durable, whatever it believes. So it acknowledges no
  remove, flush, pin or registration, because these are answered after they are durable.
* What is answered from memory (claims, lookups). The process is dead before etcd can let the lease
  expire: a timer of the kernel kills it at nine tenths of the lease, counted by CLOCK_BOOTTIME from
  before the last renewal was sent; etcd counts from when it arrived. SIGSTOP, a busy machine and a
  suspended one do not delay that. The next master begins after the lease has expired, so that at no
  time two of them answer, and it begins with a higher epoch, above all versions of the last one.
* What does not hold: a virtual machine that its host pauses, without its clock going on, may answer
  for a moment after it goes on, until the timer fires or etcd answers. The rule for what is durable
  holds all the same.

A write whose answer was lost may still be carried out later, after other writes. So the next write
changes the revision of ``leader`` first, upon which the lost one compares unequal.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from kvstore import clock
from kvstore.errors import KvstoreError, NoSpaceError, UnavailableError
from kvstore.logging import EventLogger, Recurring
from kvstore.master import standbys
from kvstore.master.etcd_client import EtcdClient, Operation, delete, put
from kvstore.master.hard_state import Lost, Where
from kvstore.master.kill_timer import KillTimer

_log = EventLogger("master.leadership")
_RETRY_MS = 50
_MOST_TTL_S = 3600
_TRIES = 3


def leader_key(client: EtcdClient) -> bytes:
    """Return the key that says which master is active."""
    return client.prefix + b"leader"


def campaign(
    client: EtcdClient, where: Where, ttl_s: int, lost: Lost, standby_key: bytes = b""
) -> Leadership | None:
    """Become the active master, unless another one is.

    Args:
        client: of etcd.
        where: this master's addresses, for standbys to tell.
        ttl_s: wanted life of the lease without renewal.
        lost: called when another master may be active; it should end the process.
        standby_key: of this master as a standby, deleted with it.

    Raises:
        KvstoreError: etcd cannot be reached, or is full.
    """
    sent_ms = clock.monotonic_ms()
    lease, granted_s = client.grant(ttl_s)
    try:
        ended = [delete(standby_key)] if standby_key else []
        revision = client.create(leader_key(client), msgspec.json.encode(where), lease, ended)
    except KvstoreError:
        _revoke(client, lease)
        raise
    late = clock.monotonic_ms() >= sent_ms + granted_s * 500
    if not revision or late:
        _revoke(client, lease)  # and with it a key whose first answer was lost
        if late:
            raise UnavailableError(f"{client.where} is too slow for a lease of {granted_s} s")
        return None
    return Leadership(client, where, (lease, revision), (sent_ms, granted_s), lost)


def _revoke(client: EtcdClient, lease: int) -> None:
    with suppress(KvstoreError):  # else it expires
        client.revoke(lease)


class Leadership:
    """A held lease, renewed by a thread; thread-safe."""

    def __init__(
        self,
        client: EtcdClient,
        where: Where,
        held: tuple[int, int],
        granted: tuple[int, int],
        lost: Lost,
    ) -> None:
        """Begin to renew; see `campaign`, which makes these.

        Args:
            client: of etcd.
            where: as in the key ``leader``.
            held: the lease, and the key's revision.
            granted: when the lease was asked for, and its seconds.
            lost: called when another master may be active.
        """
        self._client = client
        self._where = where
        self._lease, self._revision = held
        self._lost = lost
        self._mutex = threading.Lock()
        self._unsure = False
        """Whether a write without an answer may still be carried out."""
        self._over = ""
        """Why nothing may be written any more; empty: it may."""
        self._resigned = False
        self.trouble: KvstoreError | None = None
        """Why nothing can be written at the moment."""
        self.standbys: list[Where] = []
        """Masters that stood by when the lease was renewed last."""
        self._not_renewed = Recurring(_log, "lease_not_renewed")
        self._stop = threading.Event()
        self._timer = KillTimer()
        self._ttl_ms = 0
        self._give_up_ms = 0
        self._extend(*granted)
        self._thread = threading.Thread(target=self._renew, name="leadership", daemon=True)
        self._thread.start()

    def _extend(self, sent_ms: int, ttl_s: int) -> None:
        """Go on until shortly before etcd can let the lease expire.

        Args:
            sent_ms: when the request for it was sent; etcd begins to count later.
            ttl_s: as etcd said.
        """
        self._ttl_ms = min(ttl_s, _MOST_TTL_S) * 1000
        kill_ms = sent_ms + self._ttl_ms * 9 // 10
        self._timer.set(kill_ms)
        # In most cases there is time to say why.
        self._give_up_ms = kill_ms - self._ttl_ms // 20

    def _renew(self) -> None:
        due_ms = clock.monotonic_ms() + self._ttl_ms // 3
        while not self._stop.wait(max(0, due_ms - clock.monotonic_ms()) / 1000):
            try:
                sent_ms = clock.monotonic_ms()
                most_ms = min(self._ttl_ms // 3, max(1, self._give_up_ms - sent_ms))
                ttl_s = self._client.keep_alive(self._lease, most_ms)
                if ttl_s <= 0:
                    self._lose("etcd has let the lease expire")
                    return
                self._extend(sent_ms, ttl_s)
                due_ms = sent_ms + self._ttl_ms // 3
                self._not_renewed.end()
                self.trouble = self._look()
            except KvstoreError as error:
                self.trouble = error
                self._not_renewed.warn(error=error)
                if clock.monotonic_ms() >= self._give_up_ms:
                    self._lose(f"the lease was not renewed in time: {error}")
                    return
                due_ms = clock.monotonic_ms() + _RETRY_MS
            except Exception as error:  # a bug: without this thread the process would be killed
                self._lose(f"{type(error).__name__}: {error}")
                return

    def _look(self) -> KvstoreError | None:
        """Look for standbys; say why etcd takes no writes, if so.

        Notices, too, that the key was deleted by hand.
        """
        most_ms = self._ttl_ms // 10
        try:
            self._client.check_room(most_ms)
            self.standbys = standbys.look(self._client, most_ms)
            if self._mutex.acquire(blocking=False):  # a write in progress finds out itself
                try:
                    self._commit((), most_ms)
                finally:
                    self._mutex.release()
        except KvstoreError as error:
            return error
        return None

    def commit(self, operations: Sequence[Operation]) -> None:
        """Carry out operations in one transaction, as the active master.

        Args:
            operations: at most MOST_TXN_WRITES and MOST_TXN_BYTES.

        Raises:
            KvstoreError: They were not carried out, or it is not known.
        """
        with self._mutex:
            try:
                self._commit(operations, self._ttl_ms)
            except KvstoreError as error:
                self.trouble = error
                raise
            self.trouble = None

    def _commit(self, operations: Sequence[Operation], timeout_ms: int) -> None:
        for _ in range(_TRIES):
            if self._unsure:
                self._rewrite()
            if self._over:
                raise UnavailableError(f"this master is not the active one: {self._over}")
            self._unsure = True  # until the answer is there
            key = leader_key(self._client)
            try:
                done = self._client.write(key, self._revision, operations, timeout_ms)
            except NoSpaceError:
                self._unsure = False
                raise
            if done:
                self._unsure = False
                return
        raise UnavailableError(f"{self._client.where}: the key `leader` changes all the time")

    def _rewrite(self) -> None:
        """Give the key ``leader`` another revision, so that no write from before matches it."""
        key = leader_key(self._client)
        found = self._client.get(key)
        if found is None or found.lease != self._lease:
            self._lose("another master has taken over" if found else "the key `leader` is gone")
            return
        again = [put(key, msgspec.json.encode(self._where), self._lease)]
        revision = self._client.write(key, found.revision, again)
        if revision:
            self._revision, self._unsure = revision, False

    def serves_at(self, where: Where) -> None:
        """Change what the key ``leader`` says; written before the next write, or renewal."""
        with self._mutex:
            self._where, self._unsure = where, True

    def _lose(self, why: str) -> None:
        if not self._over:
            self._over = why
            self._lost(why)

    def resign(self) -> None:
        """Let a standby take over at once; this master must have stopped answering.

        Nothing is written afterwards. It may be called again.
        """
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with self._mutex:
            if not self._resigned:
                self._timer.close()
            self._resigned = True
            if not self._over:
                _revoke(self._client, self._lease)
            self._over = self._over or "it has stopped"

    def check(self) -> None:
        """Find out whether etcd takes writes again, if it did not; raises as `commit`."""
        if self.trouble is not None:
            self._client.check_room(self._ttl_ms)
            self.commit(())
