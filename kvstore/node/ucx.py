"""The node's UCX processes, one for each domain that clients may map: started, watched, restarted.

UCX trusts whoever reaches it: a peer on the fabric can crash a process that speaks UCX, or write
into it. So the node does not. A process of its own maps one domain's segment, which is what a
memory key gives access to anyway.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from contextlib import suppress

from kvstore import clock, ucx
from kvstore.config import NodeConfig
from kvstore.isolation import PRIVATE_DOMAIN
from kvstore.logging import EventLogger
from kvstore.node.core_api import NodeCoreApi
from kvstore.node.domains import Domain
from kvstore.topology import near

_log = EventLogger("node")
_SLICE_BYTES = 256 << 20
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_STEADY_MS = 60_000
"""A process that lived for so long is started again without a longer pause."""
_LOG_LINES = 20
"""Of one process: UCX can be verbose."""


class UcxProcesses:
    """Runs the processes from `run` to `stop`."""

    def __init__(self, config: NodeConfig, domains: tuple[Domain, ...], core: NodeCoreApi) -> None:
        """Prepare them.

        Args:
            config: of the node.
            domains: how its memory is divided.
            core: the native node; outlives the processes.
        """
        self._libraries = ucx.libraries()
        devices = config.rdma_devices or ([] if ucx.names_devices(config.ucx) else near.ports())
        self._settings = ucx.settings(config.ucx, devices)
        self._names = {
            number: domain.name
            for number, domain in enumerate(domains)
            if domain.name != PRIVATE_DOMAIN
        }
        self._core = core
        self._running: dict[int, Process] = {}
        self._problems: dict[int, str] = {}
        self._task: asyncio.Task[None] | None = None

    def problems(self) -> list[str]:
        """Say why a domain cannot be reached by UCX, a sentence each."""
        return [
            f"ucx of domain {self._names[number]}: {why}" for number, why in self._problems.items()
        ]

    async def run(self) -> None:
        """Keep all processes running until `stop`."""
        if not self._libraries:
            self._problems = {number: _NO_LIBRARY for number in self._names}
            _log.warning("ucx_unusable", why=_NO_LIBRARY)
            return
        self._task = asyncio.current_task()
        await asyncio.gather(*(self._keep(number) for number in self._names))

    def restart(self) -> None:
        """End every process; the next ones have other memory keys."""
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.kill()

    async def stop(self) -> None:
        """End every process, and return once none can write into the segments any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._problems.pop(number, None)
            started_ms = clock.monotonic_ms()
            why = await self._run_once(number)
            lasted_ms = clock.monotonic_ms() - started_ms
            pause_s = (
                _FIRST_PAUSE_S if lasted_ms > _STEADY_MS else min(pause_s * 2, _LONGEST_PAUSE_S)
            )
            self._problems[number] = why
            _log.warning("ucx_process_ended", domain=self._names[number], why=why)
            await asyncio.sleep(pause_s)

    async def _run_once(self, number: int) -> str:
        """Run a process to its end; returns why it ended."""
        ours, theirs = socket.socketpair()
        segment = self._core.segment_descriptor(number)
        try:
            arguments = {
                "socket": theirs.fileno(),
                "segment": segment,
                "libraries": self._libraries,
                "settings": self._settings,
                "slice_bytes": _SLICE_BYTES,
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "kvstore.node.ucx_process",
                json.dumps(arguments),
                pass_fds=(theirs.fileno(), segment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
            )
        except OSError as error:
            ours.close()
            return f"cannot be started: {error}"
        finally:
            theirs.close()
            os.close(segment)
        self._running[number] = process
        try:
            self._core.adopt_ucx(number, ours.detach())
            said = await self._read(number, process)
            await process.wait()
            return said or f"exit code {process.returncode}"
        finally:
            await self._end(number, process)

    async def _read(self, number: int, process: Process) -> str:
        """Log what a process prints; returns the last line."""
        assert process.stdout is not None
        said, lines = "", 0
        while line := await _line_of(process.stdout):
            said = line.decode(errors="replace").strip()
            lines += 1
            if lines <= _LOG_LINES:
                _log.warning("ucx", domain=self._names[number], said=said)
        return said

    async def _end(self, number: int, process: Process) -> None:
        """Wait for the end, in spite of a cancellation, and tell the native node."""
        with suppress(ProcessLookupError):
            process.kill()
        ending = asyncio.ensure_future(process.wait())
        while not ending.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(ending)
        self._running.pop(number, None)
        await asyncio.to_thread(self._core.ucx_ended, number)


_NO_LIBRARY = "no UCX on this host: install libucx0 (Debian), or set KVSTORE_UCX_LIB to libucp.so.0"


async def _line_of(output: asyncio.StreamReader) -> bytes:
    """Return the next line, b"" at the end; one that is too long is left out."""
    while True:
        with suppress(ValueError):
            return await output.readline()
