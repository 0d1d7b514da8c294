"""Target: the options that every operator command shares, and the store they lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import click

import kvstore
from kvstore.addresses import masters_of
from kvstore.errors import ProtocolError, UnavailableError, VersionMismatchError
from kvstore.limits import DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS
from kvstore.tls import TlsFiles, tls_files

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_MASTER = "127.0.0.1:50051"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The cluster to work with, and the principal."""

    masters: tuple[str, ...]
    tenant: str
    namespace: str
    token_file: str | None
    timeout_ms: int
    tls: TlsFiles | None = None

    def connect(self, transport: Literal["auto", "tcp", "ucx"] | None = None) -> kvstore.Store:
        """Connect a client to the cluster.

        Args:
            transport: as in kvstore.connect; None: "auto" for a few objects, for which a warning
                about a slower path (kvstore.client.paths) would be noise.

        Raises:
            UnavailableError: No master answered; the message says what was there instead.
            UnauthenticatedError: The token is missing or wrong.
        """
        if transport is None:
            import logging

            logging.getLogger("kvstore.client").addHandler(logging.NullHandler())
        with self.explained():
            return kvstore.connect(
                self.masters,
                tenant=self.tenant,
                namespace=self.namespace,
                token_file=self.token_file,
                timeout_ms=self.timeout_ms,
                transport=transport or "auto",
                tls_ca=self.tls.ca if self.tls else None,
                tls_cert=self.tls.cert if self.tls else None,
                tls_key=self.tls.key if self.tls else None,
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add to a failure to connect what listens at the addresses instead of a master."""
        try:
            yield
        except (UnavailableError, ProtocolError, VersionMismatchError) as error:
            from kvstore.cli.diagnosis import diagnose

            found = "; ".join(diagnose(master, self.timeout_ms) for master in self.masters)
            raise type(error)(found or str(error)) from error


def _tls_options() -> list[Callable[[F], F]]:
    texts = {
        "ca": "File with the authorities of the servers' certificates: TLS and nothing else",
        "cert": "File with this principal's certificate",
        "key": "File with the certificate's key",
    }
    return [
        click.option(
            f"--tls-{name}",
            envvar=f"KVSTORE_TLS_{name.upper()}",
            type=click.Path(dir_okay=False),
            help=f"{text} (also: KVSTORE_TLS_{name.upper()}).",
        )
        for name, text in texts.items()
    ]


def target_options(command: F) -> F:
    """Add --master, --tenant, --namespace, --token-file, --tls-… and --timeout-ms."""
    options = [
        click.option(
            "--master",
            envvar="KVSTORE_MASTER",
            default=DEFAULT_MASTER,
            show_default=True,
            metavar="HOST[:PORT],…",
            help="The master's block port, 50051 by default; several are tried in order "
            "(also: KVSTORE_MASTER).",
        ),
        click.option(
            "--tenant", default="default", show_default=True, help="Owner of the objects."
        ),
        click.option("--namespace", default="", help="Set of compatible objects."),
        click.option(
            "--token-file",
            envvar="KVSTORE_TOKEN_FILE",
            type=click.Path(dir_okay=False),
            help="File with this principal's token (also: KVSTORE_TOKEN_FILE).",
        ),
        *_tls_options(),
        click.option(
            "--timeout-ms",
            type=click.IntRange(1, MAX_TIMEOUT_MS),
            default=DEFAULT_TIMEOUT_MS,
            show_default=True,
            help="Deadline of each call.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def target(options: dict[str, Any]) -> Target:
    """Take the shared options out of a command's keyword arguments.

    Raises:
        InvalidArgumentError: --master is no address.
    """
    return Target(
        masters=tuple(masters_of(options.pop("master"), "--master")),
        tenant=options.pop("tenant"),
        namespace=options.pop("namespace"),
        token_file=options.pop("token_file"),
        timeout_ms=options.pop("timeout_ms"),
        tls=tls_files(options.pop("tls_ca"), options.pop("tls_cert"), options.pop("tls_key")),
    )


def is_given(name: str) -> bool:
    """Say whether the running command's option was given, rather than left at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
