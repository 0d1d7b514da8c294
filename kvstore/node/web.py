"""What a node serves over HTTP: metrics, health, sessions, and objects.

This module alone brings the HTTP server and all that it imports. The node loads it while its memory
is being taken over, which needs no interpreter: a third of what its start costs.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable

from prometheus_client.core import Metric

from kvstore.audit import AuditLog
from kvstore.certificates import Certificates
from kvstore.config import NodeConfig
from kvstore.http import HttpServer, bearer_failures
from kvstore.metrics import renderer
from kvstore.node.core_api import NodeCoreApi
from kvstore.node.rest import Rest
from kvstore.proofs import server_name
from kvstore.security import Principal
from kvstore.sessions import Sessions
from kvstore.tasks import Readiness


def create_rest(
    config: NodeConfig,
    master: str,
    principals: tuple[Principal, ...],
    audit_log: AuditLog,
    certificates: Certificates,
) -> Rest:
    """Create the access to objects over HTTP."""
    return Rest(config, master, principals, audit_log.record, certificates.native)


def create_server(
    listener: socket.socket,
    config: Callable[[], NodeConfig],
    cluster_id: str,
    core: NodeCoreApi,
    objects: Rest,
    audit_log: AuditLog,
    families: list[Callable[[], Iterable[Metric]]],
    readiness: Readiness,
    context: ssl.SSLContext | None,
) -> HttpServer:
    """Create the server.

    Args:
        listener: bound to its port.
        config: returns the node's configuration, as it is at the time.
        cluster_id: of the master.
        core: the native node.
        objects: of create_rest().
        audit_log: of the node.
        families: collect the metrics.
        readiness: answers /readyz.
        context: of TLS; None: plain.
    """
    name = server_name(cluster_id, config().name())
    sessions = Sessions(core, objects.guard, name, audit_log.record)
    return HttpServer(
        listener,
        renderer(*families, bearer_failures(objects.guard)),
        readiness,
        objects.knows,
        [*objects.routes(), *sessions.routes()],
        config().rest_max_body,
        lambda: config().metrics_public,
        context,
    )
