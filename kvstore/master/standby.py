"""Opens the master's state. One in etcd is waited for while another master is active on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client.core import GaugeMetricFamily, Metric

from kvstore import environment, folders
from kvstore.config import MasterConfig
from kvstore.errors import ClosedError, NoSpaceError, UnavailableError
from kvstore.logging import EventLogger, Recurring
from kvstore.master.hard_state import HardState, Lost, Where
from kvstore.master.lmdb_state import LmdbState

if TYPE_CHECKING:  # of the extra [etcd]
    from kvstore.master.etcd_client import EtcdClient, Found
    from kvstore.master.leadership import Leadership

_log = EventLogger("master.standby")
_LOOK_MS = 1000
"""The key of the active master is read this often, although nothing is said to have changed."""
_RETRY_S = 0.2

T = TypeVar("T")
Details = Callable[[], Mapping[str, Any]]
Serve = Callable[[Details], Awaitable[Callable[[], Awaitable[None]]]]
"""Starts an HTTP server that says why this master is not ready; returns what stops it."""


async def open_state(
    config: MasterConfig,
    where: Where,
    new_cluster: bool,
    stop: asyncio.Event,
    serve: Serve,
    lost: Lost,
) -> HardState | None:
    """Open the state that the configuration names, once this master is the active one.

    Args:
        config: of the master.
        where: addresses of this master, for standbys to tell.
        new_cluster: as the implementations say.
        stop: ends the waiting.
        serve: called if there is something to wait for.
        lost: called when another master may be active later on; it should end the process.

    Returns:
        The state; None when `stop` came first.

    Raises:
        KvstoreError: The state cannot be used; waiting does not help.
    """
    if config.state:
        return await _Standby(config, where, new_cluster, stop, lost).wait(serve)
    if config.data_dir:
        folders.make("data_dir", config.data_dir)
    path = environment.state_folder(config.data_dir)
    return await asyncio.to_thread(partial(LmdbState, path, new_cluster=new_cluster))


class _Standby:
    def __init__(
        self,
        config: MasterConfig,
        where: Where,
        new_cluster: bool,
        stop: asyncio.Event,
        lost: Lost,
    ) -> None:
        from kvstore.master.etcd_client import EtcdClient
        from kvstore.master.standbys import Presence

        self._client: EtcdClient = EtcdClient(config)
        self._config = config
        self._ttl_s = config.lease_s
        self._where = where
        self._new_cluster = new_cluster
        self._stop = stop
        self._lost = lost
        self._checked = False
        self._active: Mapping[str, Any] = {}
        self._presence = Presence(self._client, where, config.lease_s)
        self._refusal = ""
        self._not_reached = Recurring(_log, "etcd_not_reached")
        self._end_serving: Callable[[], Awaitable[None]] | None = None

    async def wait(self, serve: Serve) -> HardState | None:
        state: HardState | None = None
        try:
            while not self._stop.is_set() and state is None:
                try:
                    state = await self._once()
                    self._refusal = ""
                except ClosedError:
                    if not self._stop.is_set():
                        raise
                except (UnavailableError, NoSpaceError) as error:
                    self._refusal = str(error)
                    self._not_reached.warn(error=error)
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), _RETRY_S)
                else:
                    self._not_reached.end()
                if state is None and self._end_serving is None:
                    self._end_serving = await serve(self._details)
            return state
        finally:
            if state is None:
                self._client.close()
                await asyncio.to_thread(self._leave)
            if self._end_serving is not None:
                await self._end_serving()

    def _leave(self) -> None:
        """Let the active master know that nobody stands by here any more."""
        from kvstore.master.etcd_client import EtcdClient

        client = EtcdClient(self._config)  # stopping has closed the other one
        self._presence.end(client)
        client.close()

    def _details(self) -> Mapping[str, Any]:
        refusal = {"etcd": self._refusal} if self._refusal else {}
        return {"standby": True, "active": dict(self._active), **refusal}

    async def _once(self) -> HardState | None:
        """Look at the active master, and wait some time; the state, if this is the active one."""
        from kvstore.master.etcd_state import examine
        from kvstore.master.leadership import campaign, leader_key

        if not self._checked:  # before anything is written
            await self._do(lambda: examine(self._client, new_cluster=self._new_cluster))
            self._checked = True
        key = leader_key(self._client)
        found = await self._do(lambda: self._client.get(key))
        if found is not None:
            self._see(found)
            if self._end_serving is not None:
                await self._do(self._presence.keep)
                most_ms = min(_LOOK_MS, self._ttl_s * 1000 // 3)
                await self._do(lambda: self._client.wait_deleted(key, found.read_at, most_ms))
            return None
        how = (self._where, self._ttl_s, self._lost, self._presence.key)
        held = await self._do(lambda: campaign(self._client, *how))
        return await self._do(lambda: self._begin(held)) if held else None

    def _begin(self, leadership: Leadership) -> HardState:
        from kvstore.master.etcd_state import EtcdState

        try:
            return EtcdState(self._client, leadership, new_cluster=self._new_cluster)
        except BaseException:
            leadership.resign()
            raise

    def _see(self, found: Found) -> None:
        """Note and log which master is active, as the key says."""
        from kvstore.master.standbys import decode

        active = decode(found.value)
        if active != self._active:
            told = {f"active_{name}": value for name, value in active.items()}
            _log.info("standby", state=self._client.where, **told)
        self._active = active

    async def _do(self, work: Callable[[], T]) -> T:
        """Call etcd in a thread; `stop` ends the call.

        Raises:
            KvstoreError: As `work`.
        """
        call = asyncio.ensure_future(asyncio.to_thread(work))
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((call, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                self._client.close()
            return await call
        finally:
            stopped.cancel()


def families(standbys: Callable[[], list[Where] | None]) -> Iterator[Metric]:
    """Collect the metric.

    Args:
        standbys: HardState.standbys.
    """
    text = "Masters that stand by, as the active one sees them; without etcd none can."
    yield GaugeMetricFamily("kvstore_cluster_standbys", text, value=len(standbys() or ()))
