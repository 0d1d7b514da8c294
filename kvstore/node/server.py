"""The node process: registers, creates the native node, serves until it is stopped."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from kvstore import folders, refusals
from kvstore._proto import node_pb2, types_pb2
from kvstore.audit import AuditLog
from kvstore.certificates import Certificates
from kvstore.config import NodeConfig
from kvstore.errors import KvstoreError, VersionMismatchError
from kvstore.logging import EventLogger
from kvstore.node import activity, health, http, kept_cluster, socket_path
from kvstore.node.agent import Agent, Identity, Load, Session
from kvstore.node.core_api import NodeCoreApi, NodeCoreFactory, Probe, SegmentFilesFactory
from kvstore.node.core_options import core_options, tunables
from kvstore.node.domains import plan, remarks
from kvstore.node.labels import labels_of
from kvstore.node.prefixes import PrefixReports
from kvstore.node.rebuild import Rebuilds, SegmentDamagedError
from kvstore.node.spans import SpanExport
from kvstore.node.tiering import Tiering
from kvstore.node.ucx import UcxProcesses
from kvstore.ports import bind, public_host, wait_for_port
from kvstore.reload import Apply, Reloads
from kvstore.security import Principal, load_node_identity, load_principals
from kvstore.tasks import BackgroundTasks

if TYPE_CHECKING:
    from kvstore.http import HttpServer
    from kvstore.node.rest import Rest

_log = EventLogger("node")
_SEGMENT = "segment"
_NVME = "nvme"
_READY_POLL_S = 0.02
_DAMAGE_POLL_S = 0.2

T = TypeVar("T")


def segment_id(directory: str) -> int:
    """Return the identity of a segment's folder: the same for every process that may lock it.

    Memory does not outlive a boot of its host, so the boot is part of it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = socket.gethostname()
    found = os.stat(directory)
    text = f"{boot}:{found.st_dev}:{found.st_ino}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def advertised(endpoint: str, config: NodeConfig) -> str:
    """Replace the host of a bound ``tcp://host:port`` by the announced one."""
    if not endpoint:
        return ""
    host = public_host(config.host, config.advertise_host)
    return f"tcp://{host}:{urlsplit(endpoint).port}"


def _make_folders(segment_dir: str, nvme_dirs: Iterable[str]) -> None:
    folders.make("segment_dir", segment_dir)
    folders.check_safe("segment_dir", segment_dir)
    kind = folders.file_system(segment_dir)
    if not folders.in_memory(kind):
        _log.warning(
            "segment_on_disk",
            segment_dir=segment_dir,
            file_system=kind,
            hint="segment_dir should be on tmpfs or hugetlbfs",
        )
    for nvme_dir in nvme_dirs:
        folders.make("nvme_dir", nvme_dir)


class NodeServer:
    """One node, from registration to shutdown."""

    def __init__(
        self,
        config: NodeConfig,
        probe: Probe,
        open_files: SegmentFilesFactory,
        factory: NodeCoreFactory,
        reloads: Reloads,
        tasks: BackgroundTasks,
        rebuilds: Rebuilds,
        take_over: bool = False,
        certificates: Certificates | None = None,
    ) -> None:
        """Read the token file, lock the folder and prepare the agent.

        Args:
            config: of the node.
            probe: asks a block address for its control plane.
            open_files: locks the segment's folder, before the node registers: a second process on
                the same memory must not displace the first one from the cluster.
            factory: creates the native node.
            reloads: reported in the metrics and in /readyz.
            tasks: reported in /readyz.
            rebuilds: reported in the metrics.
            take_over: replace a living process that runs as this node with another segment.
            certificates: of all ports but the Unix socket; None: plain.

        Raises:
            InvalidArgumentError: The token file or `socket_group` is wrong, the audit log cannot be
                opened, or `otlp_endpoint` needs packages that are missing.
            UnavailableError: Another process uses the folder.
            VersionMismatchError: The folder has another format.
            IoError: A folder cannot be created.
        """
        self._config = config
        self._factory = factory
        self._reloads = reloads
        self._tasks = tasks
        self._rebuilds = rebuilds
        self._certificates = certificates or Certificates(None)
        self._principals, self._principal = _read_tokens(config)
        self._audit_log = AuditLog(config.name())
        self._audit_log.prepare(config.audit_log)()
        self._core: NodeCoreApi | None = None
        self._rest: Rest | None = None
        self._ucx: UcxProcesses | None = None
        self._at = ("", "", 0)
        """Bound TCP endpoint, Unix endpoint and HTTP port."""
        self._reported: set[str] = set()
        self._prefixes = PrefixReports()
        """Shortages of memory that were logged."""
        self._damage = ""
        """What another process has done to the shared memory."""
        self._tiering = Tiering(config)
        self._spans = SpanExport(config.otlp_endpoint, config.name())
        directory = config.directory()
        _make_folders(directory, config.nvme_dirs())
        self._domains = plan(config, self._principals)
        self._files = open_files(
            directory,
            [domain.file_suffix for domain in self._domains],
            discard_foreign=config.discard_foreign_segment,
        )
        # Under its lock: another process may serve in that folder.
        self._access = socket_path.prepare(config)
        kept = kept_cluster.folders(config, kept_segment=self._files.kept_epoch != 0)
        cluster_id, self._kept_by = kept_cluster.read(kept)
        self._agent = self._create_agent(probe, cluster_id, take_over)

    def _create_agent(self, probe: Probe, cluster_id: str, take_over: bool) -> Agent:
        config = self._config
        identity = Identity(
            node_id=config.name(),
            labels=labels_of(config),
            segments=_segments(config),
            endpoints=types_pb2.Endpoints(),
            segment_id=segment_id(config.directory()),
            take_over=take_over,
        )
        return Agent(
            config.addresses(),
            identity,
            self._principal,
            probe,
            self._files.kept_epoch,
            cluster_id,
            self._certificates.channel_credentials if self._certificates.on else None,
        )

    def prepare(self, config: NodeConfig) -> Apply:
        """Check another configuration; return a function that puts it in effect.

        Raises:
            InvalidArgumentError: A token or TLS file is wrong, or the audit log cannot be opened.
        """
        principals, principal = _read_tokens(config)
        take_certificates = self._certificates.prepare()
        reopen_audit = self._audit_log.prepare(config.audit_log)

        def apply() -> None:
            revoked = set(self._config.shm_write) - set(config.shm_write)
            self._config = config
            take_certificates()
            reopen_audit()
            self._principals, self._principal = principals, principal
            self._agent.reconfigure(config.addresses(), labels_of(config), principal)
            for remark in remarks(self._domains, config, principals):
                _log.warning("restart_needed", why=remark)
            if self._core is not None:
                self._configure(self._core)
                if self._ucx is not None and revoked:
                    self._ucx.restart()  # their memory keys end with the processes
                self._agent.serve_at(self._endpoints())

        return apply

    def _lacks(self) -> list[str]:
        return self._ucx.problems() if self._ucx is not None else []

    def _configure(self, core: NodeCoreApi) -> None:
        """Apply everything that may change while the node serves."""
        core.set_principals([principal.native() for principal in self._principals])
        if self._rest is not None:
            self._rest.replace(self._principals)
        if self._principal is not None:
            core.set_credentials(self._principal.name, self._principal.secret.reveal())
        core.set_tunables(tunables(self._config))

    def _endpoints(self) -> types_pb2.Endpoints:
        config, (tcp, unix, http_port) = self._config, self._at
        if not http_port:
            return types_pb2.Endpoints()  # it does not serve yet
        scheme = "https" if self._certificates.required else "http"
        return types_pb2.Endpoints(
            tcp=advertised(tcp, config),
            unix=unix,
            http=f"{scheme}://{public_host(config.host, config.advertise_host)}:{http_port}",
        )

    async def serve(self, stop: asyncio.Event, announce: Callable[[dict[str, Any]], None]) -> None:
        """Join the cluster and serve until `stop` is set.

        Args:
            stop: stops the node.
            announce: called with the addresses once it serves.

        Raises:
            KvstoreError: It cannot join or get its memory, or was superseded.
            SegmentDamagedError: Another process damaged its memory, which is released.
        """
        config = self._config
        free = _unless_stopped(wait_for_port("http", config.host, config.http_port), stop)
        if await free is None:
            return
        listener = bind(config.host, config.http_port)
        try:
            prepared = await _unless_stopped(self._prepare(), stop)
            if prepared is None:
                return
            await self._serve_as(prepared, listener, stop, announce)
        finally:
            listener.close()
            await self._agent.leave()
            await asyncio.to_thread(self._audit_log.close)

    async def _prepare(self) -> Session:
        """Ask the master for epoch and secret; says which folder belongs to another cluster."""
        try:
            return await self._agent.prepare()
        except VersionMismatchError as error:
            if not self._kept_by:
                raise
            raise VersionMismatchError(
                f"{error}. {self._kept_by} says so: set discard_foreign_segment or "
                "discard_foreign_nvme to give up the objects there"
            ) from None

    async def _serve_as(
        self,
        prepared: Session,
        listener: socket.socket,
        stop: asyncio.Event,
        announce: Callable[[dict[str, Any]], None],
    ) -> None:
        """Take memory and ports, register, serve.

        Every step adds its own end: they run in reverse order.
        """
        async with AsyncExitStack() as ends:
            loading = asyncio.create_task(asyncio.to_thread(_load_web))
            core = await self._create_core(prepared, ends)
            server = self._create_server(prepared, listener, core, await loading, ends)
            # Leaving comes before all ends above: no further requests are sent to this node.
            ends.push_async_callback(self._leave)
            config = self._config
            if "tcp" in config.transports:
                free = _unless_stopped(wait_for_port("block port", config.host, config.port), stop)
                if await free is None:
                    return
            tcp, unix = await asyncio.to_thread(core.start)
            await server.start()
            self._at = (tcp, unix, server.port)
            self._agent.serve_at(self._endpoints())
            session = await _unless_stopped(self._agent.join(), stop)
            if session is None:
                return
            await self._renew(session)
            ends.push_async_callback(self._end_spans, core)
            ends.push_async_callback(self._save)
            if "ucx" in config.transports:
                self._ucx = UcxProcesses(config, self._domains, core)
                self._tasks.start("ucx", self._ucx.run())
                ends.push_async_callback(self._ucx.stop)
            where = self._where(session)
            for name, work in {
                "ready": self._announce_when_ready(lambda: announce(where)),
                "refusals": refusals.report(core, _log, self._audit_log.record),
                "spans": self._spans.run(core),
                "snapshots": self._tiering.snapshots(
                    lambda: self._config, lambda: self._agent.snapshot_request
                ),
            }.items():
                ends.callback(self._tasks.start(name, work).cancel)
            beats = self._agent.heartbeats(self._load, self._renew, self._linked)
            serving = self._until_damaged(beats, core)
            await _unless_stopped(serving, stop)

    async def _until_damaged(self, work: Coroutine[Any, Any, None], core: NodeCoreApi) -> None:
        """Await `work`; cancel it and raise SegmentDamagedError once the memory is damaged."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_DAMAGE_POLL_S)
                for client in core.take_lost_clients():
                    _log.warning("client_slot_lost", client=client)
                self._damage = core.damage()
                if self._damage:
                    raise SegmentDamagedError(self._damage)
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _create_core(self, session: Session, ends: AsyncExitStack) -> NodeCoreApi:
        """Create the native node, which takes over the memory of the process before."""
        options = core_options(
            self._config, session, self._principal, self._domains, self._certificates.native
        )
        options.unix_mode, options.unix_gid = self._access
        options.principals = [principal.native() for principal in self._principals]
        ends.callback(self._tiering.close)
        await asyncio.to_thread(self._tiering.open, options)
        core = await asyncio.to_thread(lambda: self._factory(options, files=self._files))
        self._core = core
        self._agent.use_link(core.heartbeat)
        ends.push_async_callback(self._close_core, core)
        kept_cluster.write(self._config, session.cluster_id)
        self._configure(core)  # a reload may have come while it was being created
        self._report_beginning(core.beginning())
        self._tiering.begin(core)
        await asyncio.to_thread(self._audit)
        return core

    async def _close_core(self, core: NodeCoreApi) -> None:
        """Stop the native node and release its memory."""
        await asyncio.to_thread(core.stop)
        await asyncio.to_thread(self._audit)
        self._core = None  # no reload reaches it any more
        # In a thread: its threads call the catalog, which takes the interpreter's lock.
        keep = self._config.keep_segment and not self._damage
        if not keep:
            kept_cluster.remove(self._config.directory())
        await asyncio.to_thread(core.close, remove_files=not keep)
        socket_path.remove_folder(self._config)
        if not (self._config.keep_segment or self._config.segment_dir):
            with suppress(OSError):  # the folder is the node's own, too
                Path(self._config.directory()).rmdir()

    def _create_server(
        self,
        session: Session,
        listener: socket.socket,
        core: NodeCoreApi,
        web: ModuleType,
        ends: AsyncExitStack,
    ) -> HttpServer:
        """Create the HTTP server of metrics, health and objects."""
        if self._config.rest_api == "all" and not self._principals:
            _log.warning("rest_without_authentication", hint="set auth_token_file")
        log = self._audit_log
        self._rest = web.create_rest(
            self._config, session.master, self._principals, log, self._certificates
        )
        ends.push_async_callback(asyncio.to_thread, self._rest.close)
        ready = http.readiness(core, lambda: self._agent.problem, self._lacks)
        server: HttpServer = web.create_server(
            listener,
            lambda: self._config,
            session.cluster_id,
            core,
            self._rest,
            log,
            [
                http.collector(core),
                self._reloads.families,
                self._rebuilds.families,
                log.families,
                self._certificates.families,
                partial(self._spans.families, core),
            ],
            self._tasks.readiness(self._reloads.readiness(ready)),
            self._certificates.http_context(),
        )
        ends.push_async_callback(server.stop)
        return server

    async def _leave(self) -> None:
        """Tell the master that the node stops, and whether another process is to follow it."""
        keeps = self._config.keep_segment and not self._damage
        drains = self._agent.state == types_pb2.NODE_STATE_DRAINING
        await self._agent.leave(self._config.restart_ms if keeps and not drains else 0)

    async def _end_spans(self, core: NodeCoreApi) -> None:
        await self._spans.flush(core)
        await self._spans.close()

    def _where(self, session: Session) -> dict[str, Any]:
        """Describe where the node serves, for the ready line."""
        tcp, unix, http_port = self._at
        endpoints = self._endpoints()
        return {
            "node_id": self._config.name(),
            "port": urlsplit(tcp).port if tcp else None,
            "http_port": http_port,
            "tcp": endpoints.tcp,
            "unix": unix,
            "http": endpoints.http,
            "node_epoch": session.node_epoch,
            "segment_dir": self._config.directory(),
        }

    async def _save(self) -> None:
        """Write the last snapshot; meanwhile the node stays in the cluster and serves."""
        if self._damage:
            return
        alive = asyncio.create_task(self._agent.heartbeats(self._load, self._renew))
        try:
            await self._tiering.last_snapshot(self._config.shutdown_grace_ms)
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)

    async def _announce_when_ready(self, announce: Callable[[], None]) -> None:
        """Wait until the node serves reads and writes, then announce it."""
        assert self._core is not None
        serving = (types_pb2.NODE_STATE_ALIVE, types_pb2.NODE_STATE_DRAINING)
        while self._agent.state not in serving or self._core.link_state() != "up":
            await asyncio.sleep(_READY_POLL_S)
        announce()

    def _linked(self) -> bool:
        return self._core is not None and self._core.link_state() != "down"

    def _load(self) -> Load:
        """Collect the contents of a heartbeat; also passes a requested drain to the native side."""
        assert self._core is not None
        draining = self._agent.state == types_pb2.NODE_STATE_DRAINING
        self._core.set_draining(draining)
        stats = self._core.stats()
        self._report("prefault_stopped", stats["prefault_error"])
        self._report("index_growth_failed", stats["index_error"])
        return Load(
            capacity_bytes=stats["ready_bytes"],
            used_bytes=stats["used_bytes"],
            index_entries=stats["index_used"],
            index_limit=stats["index_limit"],
            refuses_writes=draining and not stats["reservations"] and not stats["puts_under_way"],
            activity=activity.of(stats, self._core.client_counters()),
            snapshot=self._tiering.progress(stats),
            uses=self._uses(),
            prefixes=self._prefixes.take(self._core),
            health=health.of(
                stats,
                self._core.beginning()["restart_loses"],
                self._lacks(),
                self._reloads.refusal,
            ),
        )

    def _uses(self) -> node_pb2.UseSample:
        assert self._core is not None
        taken = self._core.take_uses(self._agent.sample_level)
        return node_pb2.UseSample(
            level=taken["level"],
            records=taken["records"],
            hits=taken["hits"],
            puts=taken["puts"],
            lost_hits=taken["lost"],
        )

    def _report_beginning(self, begun: dict[str, Any]) -> None:
        """Log what was taken over, or why existing memory was not."""
        told = {k: v for k, v in begun.items() if k not in ("why_cold", "restart_loses")}
        if begun["restart_loses"]:
            _log.warning("restart_will_lose_objects", why=begun["restart_loses"])
        if begun["why_cold"]:
            _log.warning("segment_not_kept", why=begun["why_cold"])
        elif begun["warm"]:
            _log.info("segment_kept", **told)

    def _audit(self) -> None:
        """With log_level debug: audit every block of the store, at start and shutdown."""
        if self._config.log_level != "debug" or self._damage:
            return
        assert self._core is not None
        try:
            self._core.audit()
        except KvstoreError as error:
            _log.error("audit_failed", error=error)

    def _report(self, event: str, error: str) -> None:
        """Log a shortage of memory once, and again after it has been absent."""
        if not error:
            self._reported.discard(event)
        elif event not in self._reported:
            self._reported.add(event)
            _log.warning(event, error=error)

    async def _renew(self, session: Session) -> None:
        assert self._core is not None
        await asyncio.to_thread(self._core.set_session, session.session_id, [session.master])
        # What was sampled for the master of before would hold the new one to its level.
        await asyncio.to_thread(self._core.take_uses, self._agent.sample_level)


def _load_web() -> ModuleType:
    """Import kvstore.node.web, which nothing else here imports."""
    return importlib.import_module("kvstore.node.web")


def _segments(config: NodeConfig) -> tuple[types_pb2.Segment, ...]:
    """Describe the node's memory, and its NVMe tier if it has one."""
    dram = types_pb2.Segment(
        name=_SEGMENT, tier=types_pb2.TIER_DRAM, capacity_bytes=config.segment_size
    )
    if not config.nvme_dirs():
        return (dram,)
    nvme = types_pb2.Segment(name=_NVME, tier=types_pb2.TIER_NVME, capacity_bytes=config.nvme_size)
    return (dram, nvme)


def _read_tokens(config: NodeConfig) -> tuple[tuple[Principal, ...], Principal | None]:
    """Read the principals and this node's own; none without a token file."""
    path = config.auth_token_file
    if not path:
        return (), None
    return load_principals(path), load_node_identity(path, config.name())


async def _unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Await `work`, or cancel it and return None when `stop` is set first."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finished = task.done()
    task.cancel()
    stopped.cancel()
    await asyncio.gather(task, stopped, return_exceptions=True)
    return task.result() if finished else None
