"""What the native node is created with, and what may change while it serves."""

from __future__ import annotations

from kvstore import _native
from kvstore.config import NodeConfig
from kvstore.node import socket_path
from kvstore.node.agent import Session
from kvstore.node.domains import Domain
from kvstore.polling import poll_us
from kvstore.ports import bracketed
from kvstore.security import Principal


def core_options(
    config: NodeConfig,
    session: Session,
    principal: Principal | None,
    domains: tuple[Domain, ...],
    tls: _native.Tls | None = None,
) -> _native.NodeOptions:
    """Options of the native node for a configuration and a registration."""
    tcp = f"tcp://{bracketed(config.host)}:{config.port}" if "tcp" in config.transports else ""
    options = _native.NodeOptions()
    options.cluster_id = session.cluster_id
    options.node_id = config.name()
    options.node_epoch = session.node_epoch
    options.session_id = session.session_id
    options.hash_secret = session.hash_secret
    options.tcp_endpoint = tcp
    if "shm" in config.transports:
        options.unix_endpoint = socket_path.endpoint(config)
    options.master_endpoints = [session.master]
    if principal is not None:
        options.principal = principal.name
        options.token = principal.secret.reveal()
    options.tls = tls
    options.segment_bytes = config.segment_size
    options.domains = [domain.native() for domain in domains]
    options.ucx = "ucx" in config.transports
    options.tracing = bool(config.otlp_endpoint)
    options.server_threads = config.event_loops
    options.poll_us = poll_us(config.poll_us)
    options.nvme_dirs = config.nvme_dirs()
    options.nvme_bytes = config.nvme_size
    options.discard_foreign_nvme = config.discard_foreign_nvme
    options.nvme_keep_free = config.nvme_keep_free
    options.allow_cold_restart = config.allow_cold_restart
    options.tunables = tunables(config)
    return options


def tunables(config: NodeConfig) -> _native.NodeTunables:
    """Options of the native node that may change while it serves."""
    tunables = _native.NodeTunables()
    tunables.client_cap_bytes = config.client_cap_bytes
    tunables.reservation_ms = config.reservation_ms
    tunables.shm_read = list(config.shm_read)
    tunables.shm_write = list(config.shm_write)
    tunables.pin_cap_bytes = config.pin_cap_bytes
    tunables.principal_share = config.principal_share
    tunables.hot_reads_per_s = config.hot_reads_per_s
    tunables.hot_replicas = config.hot_replicas
    tunables.demote_ahead = config.demote_ahead
    tunables.promote_reads = config.promote_reads
    tunables.readmit_share = config.readmit_share
    tunables.prefetch_depth = config.prefetch_depth
    tunables.prefetch_bytes_per_s = config.prefetch_rate
    return tunables
