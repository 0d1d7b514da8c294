"""Policy of the node's NVMe tier: its catalog, its start, and when snapshots are written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstore import clock
from kvstore._proto import types_pb2
from kvstore.config import NodeConfig
from kvstore.errors import KvstoreError
from kvstore.logging import EventLogger
from kvstore.node.core_api import NodeCoreApi

if TYPE_CHECKING:
    from kvstore._native import NodeOptions

_log = EventLogger("node.nvme")
_CATALOG = "catalog"
_PROGRESS_MS = 2000
_LOOK_S = 0.5
# A snapshot may take as long as it needs; the next one continues where it stopped.
_SNAPSHOT_TIMEOUT_MS = 24 * 3600 * 1000


class Tiering:
    """One node's NVMe tier; does nothing in a node without one."""

    def __init__(self, config: NodeConfig) -> None:
        """Keep the node's configuration; nothing is opened yet."""
        self._directories = config.nvme_dirs()
        self._catalogs: list[Any] = []
        self._core: NodeCoreApi | None = None
        self._told_ms = clock.monotonic_ms()
        self._state = "active"
        self._progress = types_pb2.SnapshotProgress()
        """Of the last snapshot that an operator requested."""

    def open(self, options: NodeOptions) -> None:
        """Open the catalogs, and have the native node use them.

        Args:
            options: of the native node, completed here.

        Raises:
            VersionMismatchError: A newer kvstore wrote one of them.
            IoError: A call of the operating system or the database failed.
        """
        if not self._directories:
            return
        # Nodes without an NVMe tier do not load the database.
        from kvstore.node.nvme_catalog import NvmeCatalog

        for directory in self._directories:
            self._catalogs.append(NvmeCatalog(Path(directory) / _CATALOG))
        options.nvme_catalogs = self._catalogs
        options.on_nvme_progress = self._tell

    def _tell(self, done: int, total: int, objects: int) -> None:
        """Log the progress of reading the folder from time to time."""
        if clock.monotonic_ms() - self._told_ms >= _PROGRESS_MS:
            self._told_ms = clock.monotonic_ms()
            _log.info("nvme_reading", segments_done=done, segments=total, objects=objects)

    def begin(self, core: NodeCoreApi) -> None:
        """Attach the native node, and log what was found."""
        self._core = core
        if not self._catalogs:
            return
        for catalog in self._catalogs:
            catalog.read()
        nvme = core.stats()["nvme"]
        found = {key: nvme[key] for key in ("recovered_objects", "scanned_segments", "torn_tails")}
        _log.info(
            "nvme_open", directory=", ".join(self._directories), way=nvme["read_way"], **found
        )
        for damage in ("damaged_segments", "damaged_records", "damaged_removals"):
            if nvme[damage]:
                _log.error("nvme_damaged", what=damage, count=nvme[damage])

    async def snapshots(self, config: Callable[[], NodeConfig], request: Callable[[], int]) -> None:
        """Write snapshots until cancelled, and report failures of the NVMe tier.

        Args:
            config: returns the current configuration.
            request: returns the number of the last snapshot requested in this session.
        """
        assert self._core is not None
        last_ms = clock.monotonic_ms()
        while True:
            interval_ms = config().snapshot_interval_ms
            await asyncio.sleep(min(_LOOK_S, (interval_ms or 1000) / 1000))
            self._watch(await asyncio.to_thread(self._core.stats))
            wanted = request()
            if wanted not in (0, self._progress.request):
                self._progress = types_pb2.SnapshotProgress(request=wanted)
                self._progress = await self._snapshot(_SNAPSHOT_TIMEOUT_MS)
            elif interval_ms and clock.monotonic_ms() - last_ms >= interval_ms:
                await self._snapshot(_SNAPSHOT_TIMEOUT_MS)
                last_ms = clock.monotonic_ms()

    def progress(self, stats: dict[str, Any]) -> types_pb2.SnapshotProgress:
        """Return the progress of the snapshot that an operator requested.

        Args:
            stats: of NodeCoreApi.stats().
        """
        progress = types_pb2.SnapshotProgress()
        progress.CopyFrom(self._progress)
        if progress.request and not progress.done and stats["nvme"] is not None:
            progress.left = stats["nvme"]["snapshot_left"]
        return progress

    def _watch(self, stats: dict[str, Any]) -> None:
        nvme = stats["nvme"]
        if nvme is not None and nvme["state"] != self._state:
            self._state = nvme["state"]
            _log.error("nvme_failed", state=self._state, error=nvme["error"])

    async def last_snapshot(self, grace_ms: int) -> None:
        """Write DRAM-only objects, within the time that the shutdown may take."""
        if self._catalogs:
            await self._snapshot(grace_ms)

    async def _snapshot(self, timeout_ms: int) -> types_pb2.SnapshotProgress:
        assert self._core is not None
        started_ms = clock.monotonic_ms()
        progress = types_pb2.SnapshotProgress(request=self._progress.request, done=True)
        try:
            done = await asyncio.to_thread(self._core.snapshot, timeout_ms)
        except KvstoreError as error:
            if self._catalogs:  # without them only the operator is told
                _log.warning("snapshot_failed", error=error)
            progress.error = str(error)
            return progress
        progress.objects, progress.bytes, progress.left = (
            done["objects"],
            done["bytes"],
            done["left"],
        )
        if done["objects"] or done["left"]:
            took_ms = clock.monotonic_ms() - started_ms
            _log.info("snapshot_written", took_ms=took_ms, **done)
        return progress

    def close(self) -> None:
        """Close the catalogs; the native node must be closed before."""
        self._core = None
        while self._catalogs:
            self._catalogs.pop().close()
