"""StoreOptions: what every integration lets an operator set, and the store that it leads to."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kvstore.client.answers import kept_as
from kvstore.client.connect import Transport, connect
from kvstore.client.store import Store
from kvstore.errors import InvalidArgumentError
from kvstore.options import Addresses

_log = logging.getLogger("kvstore.integrations")


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Options that all engines share; only `master` has no default."""

    master: Addresses
    """Address of the master, or several, tried in order."""
    tenant: str = "default"
    """Whose pages."""
    token_file: str | None = None
    """File with this principal's line; None or empty without authentication."""
    tls_ca: str | None = None
    """File with the authorities of the servers' certificates; None or empty without TLS."""
    tls_cert: str | None = None
    """File with this process's certificate, where servers ask for one."""
    tls_key: str | None = None
    """File with its key."""
    timeout_ms: int = 2000
    """Deadline of each call that moves pages."""
    transport: Transport = "auto"
    """"auto", "shm" or "tcp", as in `kvstore.connect`."""
    stripes: int = 1
    """Number of connections over which a large read from one node is spread."""
    replicas: int = 1
    """Number of nodes that hold each page."""
    prefill_tokens_per_s: float = 0.0
    """How fast this engine computes a prompt; pages that take longer to fetch are computed.
    0: unknown, pages are always fetched."""

    tracing: bool = False
    """Make spans of the store's calls by the engine's global provider of OpenTelemetry."""

    metrics_address: str = ""
    """HOST:PORT at which this process serves the metrics of its stores. Empty: none."""

    def __post_init__(self) -> None:
        """Refuse a number of replicas that no put accepts."""
        kept_as(self.replicas, None, None)

    def open_store(self, namespace: str, timeout_ms: int | None = None) -> Store:
        """Connect to the cluster.

        Args:
            namespace: of the pages.
            timeout_ms: deadline of each call; None: the option's.

        Raises:
            KvstoreError: As `kvstore.connect`.
        """
        store = connect(
            self.master,
            tenant=self.tenant,
            namespace=namespace,
            token_file=self.token_file or None,
            timeout_ms=self.timeout_ms if timeout_ms is None else timeout_ms,
            transport=self.transport,
            stripes=self.stripes,
            tracing=self.tracing,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
        )
        if self.metrics_address:
            _serve_metrics(store, self.metrics_address)
        return store


def _serve_metrics(store: Store, address: str) -> None:
    """Export a store; an engine without metrics is better than one without its store."""
    try:
        from kvstore import store_metrics

        store_metrics.serve(store, address)
    except (ImportError, InvalidArgumentError) as error:
        _log.warning("metrics_address: %s; the store is used without metrics", error)
