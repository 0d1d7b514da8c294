"""Requests over HTTP that prove who sends them and do not tell the secret.

A bearer token is for a server that one trusts with it. An operator's tool also asks nodes, which
are not to learn an operator's secret: it sends a MAC over the request, the server that it is for,
the time and a nonce. Who hears it can use it nowhere else, and not again.
"""

from __future__ import annotations

from collections import OrderedDict
from secrets import token_hex

from kvstore import clock, minted
from kvstore.errors import UnauthenticatedError
from kvstore.security import Guard, Principal, Secret, WrongTokenError, as_minted

SCHEME = "Kvstore-Proof"
_WINDOW_MS = 300_000
_MAX_REMEMBERED = 4096
_MAX_NONCE = 64
_FIELDS = 4


def server_name(cluster_id: str, node_id: str = "") -> str:
    """Name a server in a proof; without a node id it is the master."""
    return f"{cluster_id}/{node_id}"


def prove(principal: Principal, server: str, method: str, target: str) -> str:
    """Make the ``authorization`` header of one request.

    Args:
        principal: who asks.
        server: as in server_name().
        method: of HTTP.
        target: path and query, as they are sent.
    """
    unix_ms, nonce = clock.unix_ms(), token_hex(16)
    token = minted.parts(principal.secret.reveal())
    secret = principal.secret if token is None else Secret(token[0])
    mac = _mac(secret, server, method, target, str(unix_ms), nonce)
    proof = f"{SCHEME} {principal.name}:{unix_ms}:{nonce}:{mac.reveal()}"
    return proof if token is None else f"{proof}:{token[1]}"


def _mac(secret: Secret, *parts: str) -> Secret:
    """Compute a MAC over parts, none of which has a line break; as a secret, for its comparison."""
    import hmac

    message = "\n".join(("kvstore 1 http proof", *parts))
    raw = message.encode(errors="surrogatepass")
    return Secret(hmac.new(secret.reveal().encode(), raw, "sha256").hexdigest())


class Proofs:
    """Checks the proofs of one server. Used from its event loop only."""

    def __init__(self, guard: Guard, server: str) -> None:
        """Start without any.

        Args:
            guard: knows the principals.
            server: as in server_name().
        """
        self._guard = guard
        self._server = server
        self._used: OrderedDict[str, int] = OrderedDict()
        """Nonces of valid proofs, and when they were used."""

    def identify(self, authorization: str | None, peer: str, method: str, target: str) -> Principal:
        """Find the principal of a request, by its proof or its bearer token.

        Args:
            authorization: of the request.
            peer: as in Guard.identify.
            method: of HTTP.
            target: path and query, as they were sent.

        Raises:
            UnauthenticatedError: There is neither, or it is wrong, too old or was used before.
        """
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != SCHEME.lower() or not self._guard.required:
            return self._guard.identify(authorization, peer)
        fields = text.strip().split(":", _FIELDS)
        if len(fields) < _FIELDS or len(fields[2]) > _MAX_NONCE:
            raise UnauthenticatedError(f"not a proof: {SCHEME} name:time:nonce:mac")
        name, time, nonce, mac = fields[:_FIELDS]
        claims = fields[_FIELDS] if len(fields) > _FIELDS else ""
        if not claims.isascii():
            raise UnauthenticatedError("not the claims of a minted token")
        with self._guard.attempt(name, peer):
            principal = self._signer(name, (method, target, time, nonce), mac, claims)
        self._use_once(time, f"{name}:{nonce}")
        return as_minted(principal, "", claims) if claims else principal

    def _signer(
        self, name: str, signed: tuple[str, str, str, str], mac: str, claims: str
    ) -> Principal:
        for principal in self._guard.named(name):
            secret = principal.secret
            if claims:
                secret = Secret(minted.key_of(secret.reveal(), name, claims))
            if _mac(secret, self._server, *signed).matches(mac):
                return principal
        raise WrongTokenError("unknown principal or wrong proof")

    def _use_once(self, time: str, nonce: str) -> None:
        now_ms = clock.unix_ms()
        # It was signed, so it is the number that prove() wrote.
        if not time.isdecimal() or abs(now_ms - int(time)) > _WINDOW_MS:
            raise UnauthenticatedError("this proof is too old, or the clocks of the hosts differ")
        while self._used and next(iter(self._used.values())) < now_ms - 2 * _WINDOW_MS:
            self._used.popitem(last=False)
        if nonce in self._used or len(self._used) >= _MAX_REMEMBERED:
            raise UnauthenticatedError("this proof was used before, or too many were")
        self._used[nonce] = now_ms
