"""Target: the options that every operator command shares, and the store they lead to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import click

import kvstore
from kvstore.limits import DEFAULT_TIMEOUT_MS

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_MASTER = "127.0.0.1:50051"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The cluster to work with, and the principal."""

    master: str
    tenant: str
    namespace: str
    token_file: str | None
    timeout_ms: int

    def connect(self, transport: Literal["auto", "tcp"] = "auto") -> kvstore.Store:
        """Connect a client to the cluster.

        Raises:
            UnavailableError: No master answered.
            UnauthenticatedError: The token is missing or wrong.
        """
        return kvstore.connect(
            self.master,
            tenant=self.tenant,
            namespace=self.namespace,
            token_file=self.token_file,
            timeout_ms=self.timeout_ms,
            transport=transport,
        )


def target_options(command: F) -> F:
    """Add --master, --tenant, --namespace, --token-file and --timeout-ms."""
    options = [
        click.option(
            "--master",
            envvar="KVSTORE_MASTER",
            default=DEFAULT_MASTER,
            show_default=True,
            help="Address of the master (also: KVSTORE_MASTER).",
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
        click.option(
            "--timeout-ms",
            default=DEFAULT_TIMEOUT_MS,
            show_default=True,
            help="Deadline of each call.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def target(options: dict[str, Any]) -> Target:
    """Take the shared options out of a command's keyword arguments."""
    return Target(
        master=options.pop("master"),
        tenant=options.pop("tenant"),
        namespace=options.pop("namespace"),
        token_file=options.pop("token_file"),
        timeout_ms=options.pop("timeout_ms"),
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
