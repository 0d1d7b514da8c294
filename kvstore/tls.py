"""TLS of a client: the authorities it trusts, and the certificate it shows.

With it, TCP is used with TLS and no other way: block protocol, gRPC and HTTP. Files that change are
read again before the next connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.errors import InvalidArgumentError
from kvstore.options import path, read_small

if TYPE_CHECKING:
    import ssl

    import grpc

    from kvstore import _native


@dataclass(frozen=True)
class TlsFiles:
    """Files in PEM."""

    ca: str
    """The authorities that servers' certificates are from."""
    cert: str = ""
    """This process's certificate and those between it and the authority's; empty: none."""
    key: str = ""
    """Of the certificate, without a password."""

    def native(self) -> _native.Tls:
        """Load them for the block protocol.

        Raises:
            InvalidArgumentError: A file is wrong.
            UnsupportedError: There is no OpenSSL.
        """
        from kvstore import _native

        return _native.Tls(cert=self.cert, key=self.key, ca=self.ca, follow=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Read them for gRPC.

        Raises:
            InvalidArgumentError: A file cannot be read.
        """
        import grpc

        return grpc.ssl_channel_credentials(
            root_certificates=read_small(self.ca, f"tls ca {self.ca}: "),
            private_key=read_small(self.key, f"tls key {self.key}: ") if self.key else None,
            certificate_chain=read_small(self.cert, f"tls cert {self.cert}: ")
            if self.cert
            else None,
        )

    def http_context(self) -> ssl.SSLContext:
        """Read them for HTTP.

        Raises:
            InvalidArgumentError: A file is wrong.
        """
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if self.cert:
                context.load_cert_chain(self.cert, self.key, password=no_password)
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(f"tls: {self.ca} {self.cert} {self.key}: {error}") from None
        return context


def no_password() -> str:
    """Keep OpenSSL from asking on the terminal for a key's password; its error says the rest."""
    return ""


def tls_files(
    ca: str | os.PathLike[str] | None,
    cert: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> TlsFiles | None:
    """Check which files of TLS were given.

    Args:
        ca: as in TlsFiles; None or empty: no TLS.
        cert: as in TlsFiles; None or empty: none.
        key: as in TlsFiles; None or empty: none.

    Raises:
        InvalidArgumentError: One is missing, or is no path.
    """
    found = TlsFiles(
        path("tls_ca", ca or ""), path("tls_cert", cert or ""), path("tls_key", key or "")
    )
    if bool(found.cert) != bool(found.key):
        raise InvalidArgumentError("tls_cert and tls_key are needed together")
    if found.cert and not found.ca:
        raise InvalidArgumentError("tls_cert needs tls_ca: whom to trust")
    return found if found.ca else None
