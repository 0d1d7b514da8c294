"""The certificates of a server: of its block port, its control plane and its HTTP port.

They are read again with the configuration (kvstore.reload). New handshakes take the new ones;
sessions that are open go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from kvstore.errors import InvalidArgumentError
from kvstore.options import read_small
from kvstore.security import read_secrets
from kvstore.tls import no_password

if TYPE_CHECKING:
    import ssl

    import grpc
    from prometheus_client.core import Metric

    from kvstore import _native

_CLIENT_AUTH = ("none", "optional", "required")
"""In the order of ClientAuth of native/src/net/tls.h."""


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key `tls` of a configuration. Files in PEM."""

    cert: str
    key: str
    ca: str
    client_auth: Annotated[str, Meta(pattern="^(none|optional|required)$")] = "none"
    required: bool = True

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if not (self.cert and self.key and self.ca):
            raise ValueError('`tls` needs "cert", "key" and "ca"')

    def files(self) -> tuple[str, ...]:
        """The files, whose changes are noticed."""
        return self.cert, self.key, self.ca


@dataclass(frozen=True)
class _Read:
    """What the files hold."""

    native: _native.Tls
    cert: bytes
    key: bytes
    ca: bytes
    http: ssl.SSLContext


def _read(config: TlsConfig) -> _Read:
    import ssl

    from kvstore import _native

    key = read_secrets(config.key, "tls key").encode()
    native = _native.Tls(
        cert=config.cert,
        key=config.key,
        ca=config.ca,
        client_auth=_CLIENT_AUTH.index(config.client_auth),
        required=config.required,
    )
    http = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    http.minimum_version = ssl.TLSVersion.TLSv1_3
    http.num_tickets = 0
    try:
        http.load_cert_chain(config.cert, config.key, password=no_password)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"tls: {error}") from None
    return _Read(
        native,
        read_small(config.cert, f"tls cert {config.cert}: "),
        key,
        read_small(config.ca, f"tls ca {config.ca}: "),
        http,
    )


class Certificates:
    """Those of this process; none without `tls` in its configuration."""

    def __init__(self, config: TlsConfig | None) -> None:
        """Read the files.

        Raises:
            InvalidArgumentError: One of them is wrong, or others may read the key.
            UnsupportedError: There is no OpenSSL.
        """
        self._config = config
        self._read = _read(config) if config else None
        self.native = self._read.native if self._read else None
        """For block ports; None: plain."""

    @property
    def on(self) -> bool:
        """Whether there are any."""
        return self._config is not None

    @property
    def required(self) -> bool:
        """Whether plain connections are refused."""
        return self._config is not None and self._config.required

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Make the credentials with which this process calls a control plane."""
        import grpc

        assert self._read is not None
        return grpc.ssl_channel_credentials(self._read.ca, self._read.key, self._read.cert)

    def prepare(self) -> Callable[[], None]:
        """Read the files again; return a function that puts them in effect.

        Raises:
            InvalidArgumentError: As the constructor.
        """
        if self._config is None:
            return lambda: None
        fresh = _read(self._config)

        def apply() -> None:
            assert self.native is not None
            self.native.replace(fresh.native)
            self._read = fresh

        return apply

    def expires_in_s(self) -> int:
        """Seconds until the certificate expires; negative when it has."""
        assert self.native is not None
        return self.native.expires_in_s()

    def families(self) -> Iterator[Metric]:
        """Collect the metrics."""
        from prometheus_client.core import GaugeMetricFamily

        left = GaugeMetricFamily(
            "kvstore_tls_certificate_expiry_seconds",
            "Seconds until the certificate in use expires; +Inf without `tls`.",
        )
        left.add_metric([], self.expires_in_s() if self.on else float("inf"))
        yield left

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Make the credentials of a control plane; each handshake takes the newest certificate."""
        import grpc

        def newest() -> grpc.ServerCertificateConfiguration:
            assert self._read is not None
            return grpc.ssl_server_certificate_configuration(
                [(self._read.key, self._read.cert)], self._read.ca
            )

        assert self._config is not None
        return grpc.dynamic_ssl_server_credentials(
            newest(), newest, self._config.client_auth == "required"
        )

    def http_context(self) -> ssl.SSLContext | None:
        """Make the context of an HTTP port; None where plain connections are served.

        Each session begins with the newest certificate. Peers are asked for none: probes and
        Prometheus have none, and whatever matters needs a token.
        """
        if not self.required:
            return None
        import ssl

        def newest() -> ssl.SSLContext:
            assert self._read is not None
            return self._read.http

        class Newest(ssl.SSLContext):
            def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
                return newest().wrap_bio(*args, **options)

        return Newest(ssl.PROTOCOL_TLS_SERVER)
