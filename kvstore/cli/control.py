"""The gRPC control channel of an operator command, found through the master's block port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from kvstore import _native
from kvstore._proto import master_pb2_grpc
from kvstore.cli.target import Target
from kvstore.errors import error_from_rpc
from kvstore.security import Role, bearer, load_identity

if TYPE_CHECKING:
    from kvstore._proto.master_pb2_grpc import MasterStub


@contextmanager
def control(target: Target) -> Iterator[tuple[MasterStub, dict[str, Any]]]:
    """Open the control plane of a cluster.

    Args:
        target: the cluster and the principal.

    Yields:
        The master's stub, and the keyword arguments of every call (deadline, credentials).

    Raises:
        UnavailableError: No master answered.
        UnauthenticatedError: The token is missing or wrong.
    """
    identity = load_identity(target.token_file) if target.token_file else None
    endpoint = _native.probe_master(
        f"tcp://{target.master}",
        role=identity.role if identity else Role.OPERATOR,
        principal=identity.name if identity else "",
        token=identity.secret.reveal() if identity else "",
        timeout_ms=target.timeout_ms,
    )["grpc_endpoint"]
    call: dict[str, Any] = {"timeout": target.timeout_ms / 1000, "metadata": bearer(identity)}
    with grpc.insecure_channel(endpoint) as channel:
        try:
            yield master_pb2_grpc.MasterStub(channel), call
        except grpc.RpcError as error:
            raise error_from_rpc(
                error.code().name, error.details() or "", error.trailing_metadata()
            ) from None
