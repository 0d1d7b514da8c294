"""The gRPC control channel of an operator command, found through the master's block port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvstore import _native
from kvstore.cli.target import Target
from kvstore.errors import UnavailableError, error_from_rpc
from kvstore.security import Principal, Role, bearer, load_identity

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
    import grpc  # takes longer to load than most commands run

    from kvstore._proto import master_pb2_grpc

    identity = load_identity(target.token_file) if target.token_file else None
    endpoint = _endpoint(target, identity)
    call: dict[str, Any] = {"timeout": target.timeout_ms / 1000, "metadata": bearer(identity)}
    with (
        grpc.secure_channel(endpoint, target.tls.channel_credentials())
        if target.tls
        else grpc.insecure_channel(endpoint)
    ) as channel:
        try:
            yield master_pb2_grpc.MasterStub(channel), call
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                details = f"the master's control plane at {endpoint}: {details or code}"
            raise error_from_rpc(code, details, error.trailing_metadata()) from None


def _endpoint(target: Target, identity: Principal | None) -> str:
    """Ask the masters in their order where the control plane is."""
    last: UnavailableError | None = None
    with target.explained():
        for master in target.masters:
            try:
                found = _native.probe_master(
                    master if master.startswith("unix:") else f"tcp://{master}",
                    role=identity.role if identity else Role.OPERATOR,
                    principal=identity.name if identity else "",
                    token=identity.secret.reveal() if identity else "",
                    timeout_ms=target.timeout_ms,
                    tls=target.tls.native() if target.tls else None,
                )
            except UnavailableError as error:
                last = error
            else:
                return str(found["grpc_endpoint"])
        assert last is not None  # masters_of gives at least one
        raise last
