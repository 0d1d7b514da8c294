"""Requests of commands to the HTTP ports of master and nodes."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from kvstore.cli.target import Target
from kvstore.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ProtocolError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from kvstore.security import bearer, load_identity
from kvstore.tls import TlsFiles

_REFUSED = {
    400: InvalidArgumentError,
    401: UnauthenticatedError,
    403: PermissionDeniedError,
    404: UnsupportedError,
}
_MAX_ERROR_BYTES = 4096


def opener_of(tls: TlsFiles | None) -> urllib.request.OpenerDirector:
    """Make what opens URLs without the environment's proxies: https:// alone, with TLS."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if tls is not None:
        handlers += [urllib.request.HTTPSHandler(context=tls.http_context()), _NoPlainHandler()]
    return urllib.request.build_opener(*handlers)


class _NoPlainHandler(urllib.request.HTTPHandler):
    """Refuses http://."""

    def http_open(self, request: urllib.request.Request) -> Any:
        raise urllib.error.URLError(
            "this server's HTTP port does without TLS (tls.required is false there), and a client "
            "with tls_ca does not"
        )


def ask(
    name: str,
    url: str,
    *,
    method: str = "GET",
    authorization: str = "",
    timeout_ms: int,
    tls: TlsFiles | None = None,
) -> Any:
    """Make a request whose answer is JSON. Proxies of the environment are not used.

    Args:
        name: of the server, for messages.
        url: with path and query.
        method: of HTTP.
        authorization: the header; empty for none.
        timeout_ms: of the request.
        tls: with it, nothing goes over a plain connection.

    Raises:
        InvalidArgumentError, UnauthenticatedError, PermissionDeniedError: The server refused.
        UnsupportedError: It has no such path: an older version.
        ProtocolError: It answered with another error, or not in JSON.
        UnavailableError: It did not answer.
    """
    request = urllib.request.Request(url, method=method)
    if authorization:
        request.add_header("Authorization", authorization)
    opener = opener_of(tls)
    where = f"{name} at {urllib.parse.urlsplit(url).netloc}"
    try:
        with opener.open(request, timeout=timeout_ms / 1000) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(_MAX_ERROR_BYTES).decode(errors="replace")
        kind = _REFUSED.get(error.code, ProtocolError)
        raise kind(f"{where}: {_sentence(text) or error}") from None
    except OSError as error:
        raise UnavailableError(f"{where}: {error}") from None
    except ValueError as error:
        raise ProtocolError(f"{where}: {error}") from None


def _sentence(text: str) -> str:
    """Take the error out of an answer in JSON."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):
        return text.strip()


def ask_console(where: Target, endpoint: str, path: str, **query: str | int) -> Any:
    """Ask a master what its console shows.

    Args:
        where: gives the credentials and the deadline.
        endpoint: of the master's HTTP port.
        path: below /console/api/.
        query: of the request.

    Raises:
        KvstoreError: As ask().
    """
    identity = load_identity(where.token_file) if where.token_file else None
    text = urllib.parse.urlencode(query)
    return ask(
        "master",
        f"{endpoint}/console/api/{path}{'?' if text else ''}{text}",
        authorization=dict(bearer(identity)).get("authorization", ""),
        timeout_ms=where.timeout_ms,
        tls=where.tls,
    )
