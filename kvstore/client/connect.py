"""connect(): from an address to a Store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

from kvstore import _native, polling, ucx
from kvstore.addresses import masters_of
from kvstore.client.locality import Locality, of_process
from kvstore.client.store import Store
from kvstore.errors import InvalidArgumentError
from kvstore.limits import DEFAULT_TIMEOUT_MS
from kvstore.options import one_of, path, text, whole_number
from kvstore.security import load_identity
from kvstore.tls import TlsFiles, tls_files

Transport = Literal["auto", "shm", "tcp", "ucx"]
_TRANSPORTS: dict[str, int] = {"auto": 0, "shm": 1, "tcp": 2, "ucx": 3}
_MAX_STRIPES = 16


class TracerProvider(Protocol):
    """A provider of OpenTelemetry's API, whose package need not be there."""

    def get_tracer(self, instrumenting_module_name: str, /) -> object:
        """Return a tracer of this name."""


def connect(
    address: str | Sequence[str],
    *,
    tenant: str = "default",
    namespace: str = "",
    token_file: str | os.PathLike[str] | None = None,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    transport: Transport = "auto",
    stripes: int = 1,
    poll_us: int = polling.AUTO,
    ucx_settings: Mapping[str, str] | None = None,
    tracing: bool | TracerProvider = False,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
) -> Store:
    """Connect to a cluster.

    Args:
        address: of the master, "host" or "host:port" (also "unix:///path", "unix:@name"), or
            several, in a list or separated by commas, tried in order. The port is 50051 by default.
        tenant: owner of the objects.
        namespace: set of compatible objects; a digest of everything that makes pages
            compatible (weights, dtype, layout, page size, ranks, hash).
        token_file: file with this principal's line, mode 0600; None without authentication.
        timeout_ms: deadline of each call, 1 to 600,000.
        transport: "auto" uses shared memory on the same host; elsewhere UCX where this host has an
            RDMA device and the node offers it, else TCP. "tcp" does neither; "shm" never moves
            bytes over a network (objects on other hosts are misses); "ucx" prefers UCX to
            everything, and falls back to TCP.
        stripes: number of connections over which a large read from one node is spread, 1 to 16.
            More than 1 helps where one TCP stream does not fill the network, and costs on one host.
        poll_us: how long a call polls for its answer before it sleeps, while that pays; 0 to 1,000.
            By default 20 where this process may use eight CPUs, else 0.
        ucx_settings: of UCX, by name: {"NET_DEVICES": "mlx5_0:1"}; they win over UCX_… in the
            environment, and but for TLS and NET_DEVICES change it.
        tracing: make a span of OpenTelemetry of each call, by the process's global provider (True)
            or by one of yours; sampled ones go on at the nodes that export spans. False costs
            nothing. Needs the package opentelemetry-api.
        tls_ca: file with the authorities of the servers' certificates (PEM): TCP is used with TLS
            alone, and UCX is not used. Changed files are read before a new connection.
        tls_cert: file with this process's certificate, for servers that ask for one.
        tls_key: file with its key.

    Returns:
        An open store; close it, or use it as a context manager.

    Raises:
        InvalidArgumentError: An argument, the token file or KVSTORE_LABELS is wrong.
        UnavailableError: No master answered in time.
        UnauthenticatedError: The token is missing or wrong.
        PermissionDeniedError: The principal may not use this tenant.
        VersionMismatchError: The master supports no protocol version of this client.
    """
    masters = masters_of(address)
    one_of("transport", transport, _TRANSPORTS)
    wrap = _tracing(tracing, tenant, namespace)
    client = _native.Client(
        masters=masters,
        tenant=text("tenant", tenant),
        namespace=text("namespace", namespace),
        client_name=f"python pid {os.getpid()}",
        timeout_ms=whole_number("timeout_ms", timeout_ms, 1, _native.MAX_TIMEOUT_MS),
        stripes=whole_number("stripes", stripes, 1, _MAX_STRIPES),
        poll_us=_polling(poll_us),
        **_credentials(token_file),
        **_ways(transport, ucx_settings or {}, tls_files(tls_ca, tls_cert, tls_key)),
    )
    return Store(wrap(client), address=",".join(masters), tenant=tenant, namespace=namespace)


def _tracing(
    tracing: bool | TracerProvider, tenant: str, namespace: str
) -> Callable[[_native.Client], _native.Client]:
    """Return what puts the calls of a client into spans, or leaves it as it is."""
    if tracing is False:
        return lambda client: client
    from kvstore.client.tracing import TracedClient, tracer_of

    tracer = tracer_of(tracing)
    return lambda client: cast(
        _native.Client, TracedClient(client, tracer, tenant=tenant, namespace=namespace)
    )


def _credentials(token_file: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return name and secret of the principal, both empty without authentication."""
    if token_file is None:
        return {"principal": "", "token": ""}
    principal = load_identity(path("token_file", token_file))
    return {"principal": principal.name, "token": principal.secret.reveal()}


def _ways(
    transport: Transport, ucx_settings: Mapping[str, str], tls: TlsFiles | None
) -> dict[str, Any]:
    """Return how the native client reaches servers."""
    libraries, settings = _ucx(transport, ucx_settings, tls)
    return {
        "transport": _TRANSPORTS[transport],
        "ucx_libraries": libraries,
        "ucx_settings": settings,
        "locality": _locality(transport, libraries, settings),
        "tls": tls.native() if tls else None,
    }


def _polling(poll_us: int) -> int:
    return polling.poll_us(whole_number("poll_us", poll_us, polling.AUTO, polling.MAX_US))


def _locality(transport: Transport, libraries: list[str], settings: ucx.Settings) -> Locality:
    # Chosen devices may reach less than the host's do: what they reach is not known here.
    chosen = ucx.names_devices(name for name, _ in settings)
    return of_process(
        maps_memory=transport in ("auto", "shm"), uses_rdma=bool(libraries) and not chosen
    )


def _ucx(
    transport: Transport, given: Mapping[str, str], tls: TlsFiles | None
) -> tuple[list[str], ucx.Settings]:
    """Return what to load, which is nothing where UCX is not wanted, and its settings."""
    settings = ucx.settings(given)
    if tls is not None:
        if transport == "ucx":
            raise InvalidArgumentError('transport "ucx" does not encrypt: not with tls_ca')
        return [], settings
    wanted = transport == "auto" and (bool(settings) or ucx.has_device())
    return ucx.libraries() if transport == "ucx" or wanted else [], settings
