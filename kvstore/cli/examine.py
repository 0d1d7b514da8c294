"""Asks a cluster for everything that `kvstore doctor` judges; what fails is a fact, too."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

import kvstore
from kvstore import _native
from kvstore.cli.control import control
from kvstore.cli.target import Target
from kvstore.clock import unix_ms
from kvstore.doctor.cluster import Cluster, HttpAnswer, MasterFacts, NodeFacts
from kvstore.doctor.transfers import NAMESPACE
from kvstore.errors import InvalidArgumentError, KvstoreError, PermissionDeniedError, Status
from kvstore.security import Principal, Role, load_identity
from kvstore.tls import TlsFiles

if TYPE_CHECKING:
    import ssl

    from kvstore._proto.types_pb2 import NodeInfo

_THREADS = 16
_MAX_TIMEOUT_MS = 5000
_MAX_BODY_BYTES = 1 << 20
_REFUSALS = (Status.Unauthenticated, Status.PermissionDenied)
_CERTIFICATE = re.compile(
    r"^kvstore_tls_certificate_expiry_seconds (-?[0-9.e+]{1,32})$", re.MULTILINE
)
_VERSION = re.compile(r'^kvstore_build_info\{[^}\n]*version="([^"\n]{1,64})"', re.MULTILINE)


def examine(target: Target, is_named: bool) -> Cluster:
    """Ask master and nodes.

    Args:
        target: the cluster and the principal.
        is_named: whether the user named the master.

    Returns:
        What they said; never raises a KvstoreError.
    """
    target = replace(
        target, namespace=NAMESPACE, timeout_ms=min(target.timeout_ms, _MAX_TIMEOUT_MS)
    )
    master = MasterFacts(addresses=target.masters, is_named=is_named, token_file=target.token_file)
    try:
        identity = load_identity(target.token_file) if target.token_file else None
    except InvalidArgumentError as error:
        return _without_cluster(master, token_problem=str(error), status=Status.InvalidArgument)
    try:
        with target.connect() as store:
            peers = store.peers()
    except KvstoreError as error:
        return _without_cluster(master, status=error.status, error=str(error))
    return _with_master(target, master, identity, peers)


def _without_cluster(master: MasterFacts, **facts: Any) -> Cluster:
    return Cluster(version=kvstore.__version__, master=replace(master, **facts))


def _with_master(
    target: Target, master: MasterFacts, identity: Principal | None, peers: list[dict[str, Any]]
) -> Cluster:
    from kvstore._proto import master_pb2

    try:
        with control(target) as (plane, call):
            status = plane.Status(master_pb2.StatusRequest(), **call)
            infos = plane.ListNodes(master_pb2.ListNodesRequest(), **call).nodes
    except PermissionDeniedError as error:
        return _of_peers(target, replace(master, refused=str(error)), peers)
    except KvstoreError as error:
        endpoint = _grpc_endpoint(target, identity)
        return _without_cluster(master, grpc_error=str(error), grpc_endpoint=endpoint)
    by_id = {peer["node_id"]: peer for peer in peers}

    def ask(info: NodeInfo) -> NodeFacts:
        return _node(info, status.cluster_id, identity, target, by_id.get(info.node_id))

    with ThreadPoolExecutor(_THREADS) as threads:
        http_of_master = threads.submit(
            ask_http, status.http_endpoint, target.timeout_ms, target.tls
        )
        nodes = tuple(threads.map(ask, infos))
    facts = replace(
        master,
        grpc_endpoint=status.grpc_endpoint,
        version=status.software_version,
        awaited=tuple(status.awaited_nodes) if status.rebuilding else (),
        http=http_of_master.result(),
    )
    return Cluster(
        version=kvstore.__version__, master=facts, nodes=nodes, connect=_connector(target)
    )


def _of_peers(target: Target, master: MasterFacts, peers: list[dict[str, Any]]) -> Cluster:
    """What a client learns of the nodes by itself: not their ports, health and versions."""
    nodes = tuple(
        NodeFacts(node_id=peer["node_id"], state=peer["state"], peer=peer) for peer in peers
    )
    return Cluster(
        version=kvstore.__version__, master=master, nodes=nodes, connect=_connector(target)
    )


def _connector(target: Target) -> Callable[[str], kvstore.Store]:
    def connect(transport: str) -> kvstore.Store:
        return target.connect(cast(Literal["auto", "tcp", "ucx"], transport))

    return connect


def _grpc_endpoint(target: Target, identity: Principal | None) -> str:
    try:
        found = _native.probe_master(
            f"tcp://{target.masters[0]}",
            role=identity.role if identity else Role.OPERATOR,
            principal=identity.name if identity else "",
            token=identity.secret.reveal() if identity else "",
            timeout_ms=target.timeout_ms,
            tls=target.tls.native() if target.tls else None,
        )
    except KvstoreError:
        return "an unknown endpoint"
    return str(found["grpc_endpoint"])


def _node(
    info: NodeInfo,
    cluster_id: str,
    identity: Principal | None,
    target: Target,
    peer: dict[str, Any] | None,
) -> NodeFacts:
    from kvstore.cli.overview import state_name

    timeout_ms = target.timeout_ms

    facts = NodeFacts(
        node_id=info.node_id,
        state=state_name(info),
        endpoint=info.endpoints.tcp,
        problem=info.endpoint_problem,
        peer=peer,
    )
    if facts.state in ("dead", "restarting"):
        return facts
    answers, error = True, ""
    if facts.endpoint:
        try:
            _native.probe_node(
                facts.endpoint,
                cluster_id=cluster_id,
                node_id=info.node_id,
                principal=identity.name if identity else "",
                token=identity.secret.reveal() if identity else "",
                timeout_ms=timeout_ms,
                tls=target.tls.native() if target.tls else None,
            )
        except KvstoreError as refusal:
            # Whoever refuses a token answers.
            answers, error = refusal.status in _REFUSALS, str(refusal)
            if refusal.status is Status.DeadlineExceeded:
                error = f"it accepts the connection, but says nothing within {timeout_ms:,} ms"
    http_at = info.endpoints.http
    http_answer = ask_http(http_at, timeout_ms, target.tls) if http_at else HttpAnswer()
    return replace(facts, answers=answers, error=error, http=http_answer)


def ask_http(endpoint: str, timeout_ms: int, tls: TlsFiles | None = None) -> HttpAnswer:
    """Ask an HTTP port for health, version and time, all of them public; it may say anything."""
    context = tls.http_context() if tls and endpoint.startswith("https:") else None
    try:
        parts = urlsplit(endpoint)
        known = parts.scheme in ("http", "https")
        host, port = (parts.hostname, parts.port) if known else (None, None)
    except ValueError:
        host, port = None, None
    if not host or not port:
        return HttpAnswer(endpoint=endpoint, error="this is not http://HOST:PORT")
    if parts.scheme == "https" and context is None:
        return HttpAnswer(endpoint=endpoint, error="it speaks TLS: --tls-ca names its authorities")
    try:
        code, headers, body = _get(host, port, "/readyz", timeout_ms, context)
        _, _, metrics = _get(host, port, "/metrics", timeout_ms, context)
    except TimeoutError:
        return HttpAnswer(endpoint=endpoint, error=f"no answer within {timeout_ms:,} ms")
    except OSError as error:
        return HttpAnswer(endpoint=endpoint, error=str(error.strerror or error))
    except http.client.HTTPException as error:
        why = f"what answers speaks no HTTP ({type(error).__name__})"
        return HttpAnswer(endpoint=endpoint, error=why)
    version = _VERSION.search(metrics.decode(errors="replace"))
    return HttpAnswer(
        endpoint=endpoint,
        ready=code == http.client.OK,
        details=_object(body),
        version=version[1] if version else "",
        ahead_s=_ahead_s(headers.get("Date", "")),
        certificate_s=_certificate_s(metrics.decode(errors="replace")),
    )


def _get(
    host: str, port: int, path: str, timeout_ms: int, context: ssl.SSLContext | None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Make a request that ends within the time, however slowly its answer comes.

    Raises:
        OSError, http.client.HTTPException: There is no answer.
    """
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_ms / 1000)
    else:
        connection = http.client.HTTPSConnection(
            host, port, timeout=timeout_ms / 1000, context=context
        )
    late = threading.Event()

    def end() -> None:
        late.set()
        with suppress(OSError, AttributeError):  # not connected, or closed meanwhile
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_ms / 1000, end)
    timer.start()
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = b""
        while len(body) < _MAX_BODY_BYTES and (part := response.read1(_MAX_BODY_BYTES)):
            body += part
        if late.is_set():  # the end of the stream may look like the end of an answer
            raise TimeoutError
        if response.length and len(body) < _MAX_BODY_BYTES:
            raise http.client.IncompleteRead(body)
        return response.status, response.headers, body
    except (OSError, http.client.HTTPException):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        connection.close()


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _certificate_s(metrics: str) -> float | None:
    found = _CERTIFICATE.search(metrics)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None


def _ahead_s(date: str) -> float | None:
    """How far a clock is ahead of ours, by the header Date, whose unit is a second."""
    try:
        theirs_s = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return theirs_s + 0.5 - unix_ms() / 1000
