"""The master process: opens its state, starts the native side, serves until stopped."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client.core import Metric

from kvstore import audit, refusals
from kvstore._proto import master_pb2, master_pb2_grpc, node_pb2, node_pb2_grpc
from kvstore.audit import AuditLog
from kvstore.certificates import Certificates
from kvstore.config import MasterConfig
from kvstore.errors import ChecksumMismatchError, InvalidArgumentError, UnavailableError
from kvstore.http import HttpServer, bearer_failures
from kvstore.limits import MAX_GRPC_MESSAGE_BYTES
from kvstore.logging import EventLogger
from kvstore.master import http, standby
from kvstore.master.console.routes import Console
from kvstore.master.console.views import Views
from kvstore.master.core_api import MasterCoreApi
from kvstore.master.handlers import Bound, MasterHandlers, NodeHandlers
from kvstore.master.hard_state import HardState, Lost
from kvstore.master.heartbeats import Heartbeats
from kvstore.master.journal import Journal
from kvstore.master.model import Settings
from kvstore.master.new_cluster import NewCluster
from kvstore.master.prefixes import HotPrefixes
from kvstore.master.queries import Queries
from kvstore.master.recorder import Recorder
from kvstore.master.registry import Registry
from kvstore.master.reuse import Reuse
from kvstore.master.savings import Rates
from kvstore.master.service import Calls, MasterService, NodeRegistryService
from kvstore.master.standby import Details, open_state
from kvstore.master.verifier import ProbeNode, Verifier
from kvstore.master.watches import Watches
from kvstore.metrics import renderer
from kvstore.polling import poll_us
from kvstore.ports import bare, bind, bracketed, public_host, wait_for_port
from kvstore.proofs import server_name
from kvstore.reload import Apply, Reloads
from kvstore.security import Guard, Principal, load_principals
from kvstore.sessions import Sessions
from kvstore.tasks import BackgroundTasks, Readiness

_log = EventLogger("master")
_TICK_S = 0.1
# Writes wait for the end of the rebuild.
_REBUILDING_TICK_S = 0.01
# A tick looks at every node: of a thousand, twice a second.
_TICK_OF_A_NODE_S = 0.0005
_GRACE_S = 0.5
_PORTS = ("block port", "grpc", "http")
_SERVICES = (
    master_pb2.DESCRIPTOR.services_by_name["Master"].full_name,
    node_pb2.DESCRIPTOR.services_by_name["NodeRegistry"].full_name,
)
_GRPC_OPTIONS = (
    # A second master on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
)


class MasterCoreFactory(Protocol):
    """``kvstore._native.MasterCore``."""

    def __call__(self, **options: Any) -> MasterCoreApi:
        """Create directory and block port; nothing listens yet."""


def settings_of(config: MasterConfig) -> Settings:
    """Parameters of the policy from a configuration."""
    return Settings(
        heartbeat_ms=config.heartbeat_ms,
        node_ttl_ms=config.node_ttl_ms,
        retention_ms=config.known_node_retention_ms,
        slow_start_ms=config.slow_start_ms,
        repair_copies=config.repair_copies,
        verify_endpoints=config.verify_endpoints,
    )


class MasterServer:
    """The one active master of a state, or one that stands by."""

    def __init__(
        self,
        config: MasterConfig,
        factory: MasterCoreFactory,
        probe: ProbeNode,
        reloads: Reloads,
        tasks: BackgroundTasks,
        deposed: Lost,
        new_cluster: bool = False,
        certificates: Certificates | None = None,
    ) -> None:
        """Read the token file.

        Args:
            config: of the master.
            factory: creates the native side.
            probe: says hello to a node.
            reloads: reported in the metrics and in /readyz.
            tasks: reported in /readyz.
            deposed: ends the process; called when another master may be active.
            new_cluster: begin another cluster where the state is missing, lost or damaged.
            certificates: of all ports; None: plain.

        Raises:
            InvalidArgumentError: The token file is wrong, or the audit log cannot be opened.
        """
        self._new_cluster = new_cluster
        self._deposed = deposed
        self._config = config
        self._factory = factory
        self._probe = probe
        self._reloads = reloads
        self._tasks = tasks
        principals = _read_principals(config)
        self._guard = Guard(principals)
        self._principals = principals or ()
        self._certificates = certificates or Certificates(None)
        self._ports = (0, 0, 0)
        self._tls_grpc_port = 0
        """Beside the plain one, while both are served; 0: none."""
        self._bound = Bound()
        self._state: HardState | None = None
        self._listener: socket.socket | None = None
        """The HTTP port of a standby, kept by the active master."""
        self._core: MasterCoreApi | None = None
        self._registry: Registry | None = None
        self._audit = AuditLog("master")
        self._audit.prepare(config.audit_log)()
        self._bearers = bearer_failures(self._guard)
        self._guard.on_pause = audit.pauses(self._audit.record)
        self._calls = Calls(self._guard, self._audit.record)

    def prepare(self, config: MasterConfig) -> Apply:
        """Check another configuration; return a function that puts it in effect.

        Raises:
            InvalidArgumentError: A token or TLS file is wrong, or the audit log cannot be opened.
        """
        principals = _read_principals(config)
        take_certificates = self._certificates.prepare()
        reopen_audit = self._audit.prepare(config.audit_log)

        def apply() -> None:
            self._config = config
            take_certificates()
            reopen_audit()
            self._principals = principals or ()
            self._guard.replace(principals)
            self._calls.end_revoked()
            if self._registry is not None:
                self._registry.reconfigure(settings_of(config))
            if self._core is not None:
                self._core.set_principals([principal.native() for principal in self._principals])
                _set_limits(self._core, config)
                self._tell_where()

        return apply

    async def serve(self, stop: asyncio.Event, announce: Callable[[dict[str, Any]], None]) -> None:
        """Serve until `stop` is set.

        Args:
            stop: stops the master.
            announce: called with the addresses once it serves.

        Raises:
            KvstoreError: A port is in use, or the state is in use or unusable.
        """
        self._ports = (self._config.port, self._config.grpc_port, self._config.http_port)
        self._bound = self._find_bound()
        state = await open_state(
            self._config, self._told(), self._new_cluster, stop, self._stand_by, self._deposed
        )
        if state is None:
            return
        self._state = state
        try:
            await self._serve_with(state, stop, announce)
        finally:
            self._state = None
            await asyncio.to_thread(state.close)

    async def _stand_by(self, details: Details) -> Callable[[], Awaitable[None]]:
        """Serve /healthz and /readyz while another master is active; return what stops that."""
        await wait_for_port("http", self._config.host, self._config.http_port)
        self._listener = bind(self._config.host, self._config.http_port)
        site = HttpServer(
            self._listener.dup(),
            renderer(
                self._reloads.families,
                self._audit.families,
                self._bearers,
                self._certificates.families,
            ),
            self._tasks.readiness(self._reloads.readiness(lambda: (False, details()))),
            self._guard.knows,
            open_metrics=lambda: self._config.metrics_public,
            context=self._certificates.http_context(),
        )
        await site.start()
        _log.info("standing_by", http_port=site.port)
        return site.stop

    def _create_core(self, state: HardState) -> MasterCoreApi:
        bound = self._find_bound()
        trimmed_seq, version_floor = state.trimmed()
        core = self._factory(
            listen=[f"tcp://{bracketed(self._config.host)}:{self._config.port}"],
            cluster_id=state.cluster_id,
            secret=state.hash_secret,
            epoch=state.epoch,
            principals=[principal.native() for principal in self._principals],
            rebuilding=any(not record.left for record in state.nodes()),
            trimmed_seq=trimmed_seq,
            version_floor=version_floor,
            loops=self._config.event_loops,
            poll_us=poll_us(self._config.poll_us),
            grpc_endpoint=bound.grpc,
            http_endpoint=bound.http,
            tls=self._certificates.native,
        )
        _set_limits(core, self._config)
        for tenant, name, epoch in state.namespaces():
            core.set_namespace_epoch(tenant, name, epoch)
        try:
            core.load_ops(state.ops())
        except InvalidArgumentError as error:
            raise ChecksumMismatchError(f"master's state: table ops, {error}") from error
        return core

    async def _serve_with(
        self, state: HardState, stop: asyncio.Event, announce: Callable[[dict[str, Any]], None]
    ) -> None:
        config = self._config
        await _wait_for_ports(config, ("block port", "grpc") if self._listener else _PORTS)
        listener = self._listener or bind(config.host, config.http_port)
        rpc = grpc.aio.server(options=_GRPC_OPTIONS)
        grpc_port, self._tls_grpc_port = _add_ports(rpc, config, listener, self._certificates)
        self._ports = (config.port, grpc_port, listener.getsockname()[1])
        core = self._core = self._create_core(state)
        registry = self._registry = Registry(settings_of(config), core, state)
        journal = Journal(core, state)
        verifier = Verifier(registry, self._probe, state.cluster_id)
        watches = Watches(core, lambda: self._config.principal_share)
        new_cluster = NewCluster(state)
        reuse, prefixes = Reuse(), HotPrefixes()
        nodes = NodeHandlers(registry, state, new_cluster, reuse, prefixes, verifier.registered)
        heartbeats = Heartbeats(core, nodes.heartbeat)
        ready = journal.readiness(new_cluster.readiness(http.readiness(registry)))
        collect = http.collector(
            core, registry, journal, self._calls.counts, lambda: self._config.metric_namespaces
        )
        recorder = Recorder(core, registry, lambda: self._reloads.refusal, state.epoch)
        routes = [
            *Queries(core, registry, self._guard, self._audit.record).routes(),
            *self._sessions(core, state),
            *self._console(core, registry, recorder, prefixes, state),
        ]
        site = self._create_web(listener, state, (collect, heartbeats.families), ready, routes)
        journal.start()
        heartbeats.start()
        try:
            block = urlsplit((await asyncio.to_thread(core.start))[0])
            self._ports = (int(block.port or 0), *self._ports[1:])
            self._tell_where()
            calls, bound = self._calls, lambda: self._bound
            master = MasterHandlers(registry, core, state, reuse, bound, _setter(stop))
            healthy = await _add_services(
                rpc,
                MasterService(calls, master, core, watches, state.epoch),
                NodeRegistryService(calls, nodes),
            )
            await rpc.start()
            await site.start()
            self._warn_if_open()
            announce(self._where(state))
            with (
                self._tasks.running("refusals", refusals.report(core, _log, self._audit.record)),
                self._tasks.running("audit", audit.report(core, self._audit)),
                self._tasks.running("history", recorder.record()),
            ):
                await _tick_until(stop, registry, verifier)
            await healthy.enter_graceful_shutdown()
        finally:
            self._core = None  # no reload reaches it any more
            watches.close()
            heartbeats.request_stop()
            # The native side first: that ends the waits of the control plane's calls.
            await asyncio.to_thread(core.stop)
            for end in (journal.stop, heartbeats.stop):
                await asyncio.to_thread(end)
            # Nothing is answered any more that a standby could contradict.
            await asyncio.to_thread(state.hand_over)
            await rpc.stop(_GRACE_S)
            await site.stop()
            await asyncio.to_thread(verifier.close)
            self._calls.close()
            audit.write_deeds(core, self._audit)
            await asyncio.to_thread(self._audit.close)

    def _sessions(self, core: MasterCoreApi, state: HardState) -> list[web.RouteDef]:
        name = server_name(state.cluster_id)
        return Sessions(core, self._guard, name, self._audit.record, self._calls.open).routes()

    def _console(
        self,
        core: MasterCoreApi,
        registry: Registry,
        recorder: Recorder,
        prefixes: HotPrefixes,
        state: HardState,
    ) -> list[web.RouteDef]:
        def rates() -> Rates:
            return Rates(self._config.bytes_per_token, self._config.prefill_tokens_per_s)

        views = Views(core, registry, recorder, prefixes, rates, state.cluster_id, state.epoch)
        return Console(views, self._guard).routes()

    def _create_web(
        self,
        listener: socket.socket,
        state: HardState,
        collect: Sequence[Callable[[], Iterable[Metric]]],
        ready: Readiness,
        routes: list[web.RouteDef],
    ) -> HttpServer:
        return HttpServer(
            listener,
            renderer(
                *collect,
                partial(standby.families, state.standbys),
                self._reloads.families,
                self._audit.families,
                self._bearers,
                self._certificates.families,
            ),
            self._tasks.readiness(self._reloads.readiness(ready)),
            self._guard.knows,
            routes,
            open_metrics=lambda: self._config.metrics_public,
            context=self._certificates.http_context(),
        )

    def _find_bound(self) -> Bound:
        public = public_host(self._config.host, self._config.advertise_host)
        block, grpc_port, http_port = self._ports
        scheme = "https" if self._certificates.required else "http"
        http_at = f"{scheme}://{public}:{http_port}"
        return Bound(f"{public}:{block}", f"{public}:{grpc_port}", http_at)

    def _tell_where(self) -> None:
        """Announce this master's addresses in the hello and the status, and to standbys."""
        assert self._core is not None and self._state is not None
        self._bound = self._find_bound()
        self._state.serves_at(self._told())
        host = public_host(self._config.host, self._config.advertise_host)
        by_tls = f"{host}:{self._tls_grpc_port}" if self._tls_grpc_port else ""
        self._core.set_endpoints(self._bound.grpc, self._bound.http, by_tls)

    def _told(self) -> Mapping[str, Any]:
        """What standbys are told of this master."""
        return {"host": socket.gethostname(), "pid": os.getpid(), **asdict(self._bound)}

    def _where(self, state: HardState) -> dict[str, Any]:
        port, grpc_port, http_port = self._ports
        return {
            "port": port,
            "grpc_port": grpc_port,
            "http_port": http_port,
            "block": self._bound.block,
            "grpc": self._bound.grpc,
            "http": self._bound.http,
            "cluster_id": state.cluster_id,
            "master_epoch": state.epoch,
        }

    def _warn_if_open(self) -> None:
        local = bare(self._config.host) in ("127.0.0.1", "::1", "localhost")
        if not local and not self._guard.required:
            _log.warning("no_authentication", host=self._config.host, hint="set auth_token_file")


def _set_limits(core: MasterCoreApi, config: MasterConfig) -> None:
    core.set_principal_share(config.principal_share)
    core.set_tenant_namespaces(config.tenant_namespaces)
    core.keep_deeds(bool(config.audit_log))


def _add_ports(
    rpc: grpc.aio.Server,
    config: MasterConfig,
    listener: socket.socket,
    certificates: Certificates,
) -> tuple[int, int]:
    """Bind the control plane's port, and one for TLS beside a plain one; return both.

    The listener is closed if the port is in use.
    """
    where = f"{bracketed(config.host)}:{config.grpc_port}"
    try:
        if certificates.required:
            return rpc.add_secure_port(where, certificates.grpc_credentials()), 0
        port = rpc.add_insecure_port(where)
        if not certificates.on:
            return port, 0
        by_tls = f"{bracketed(config.host)}:0"
        return port, rpc.add_secure_port(by_tls, certificates.grpc_credentials())
    except RuntimeError as error:
        listener.close()
        raise UnavailableError(f"grpc {where}: {error}") from None


async def _wait_for_ports(config: MasterConfig, names: Iterable[str]) -> None:
    ports = dict(zip(_PORTS, (config.port, config.grpc_port, config.http_port), strict=True))
    await asyncio.gather(*(wait_for_port(name, config.host, ports[name]) for name in names))


def _read_principals(config: MasterConfig) -> tuple[Principal, ...] | None:
    return load_principals(config.auth_token_file) if config.auth_token_file else None


async def _add_services(
    rpc: grpc.aio.Server, master: MasterService, nodes: NodeRegistryService
) -> Any:
    """Add the services, health and reflection; all of them are healthy from the start."""
    master_pb2_grpc.add_MasterServicer_to_server(master, rpc)
    node_pb2_grpc.add_NodeRegistryServicer_to_server(nodes, rpc)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, rpc)
    for name in ("", *_SERVICES):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, rpc)
    return servicer


def _setter(stop: asyncio.Event) -> Callable[[], None]:
    """Make a function that sets the event from any thread."""
    loop = asyncio.get_running_loop()

    def set_it() -> None:
        loop.call_soon_threadsafe(stop.set)

    return set_it


async def _tick_until(stop: asyncio.Event, registry: Registry, verifier: Verifier) -> None:
    while not stop.is_set():
        await asyncio.to_thread(registry.tick)
        await asyncio.to_thread(verifier.look)
        try:
            least_s = _REBUILDING_TICK_S if registry.cluster.rebuilding else _TICK_S
            pause_s = max(least_s, len(registry.cluster.nodes) * _TICK_OF_A_NODE_S)
            await asyncio.wait_for(stop.wait(), pause_s)
        except asyncio.TimeoutError:
            continue
