"""Minted tokens: signed by a principal with its secret, offline, for somebody else and for a while.

A token stands where a secret would: in a token file, or behind ``Bearer name:``. Its claims say
until when it is valid, and scopes (kvstore.scopes) that narrow what its principal may do. The
format is described in native/src/net/minted_token.h, which makes and reads it for both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore import _native, scopes
from kvstore.errors import InvalidArgumentError
from kvstore.scopes import Scope, Verb

MAX_TTL_S = 24 * 3600
"""Servers take no token that is valid for longer."""
_BETWEEN = "+"


@dataclass(frozen=True)
class Claims:
    """What a token says of itself."""

    expires_s: int
    """Since 1970."""
    scopes: tuple[Scope, ...] = ()


def is_minted(secret: str) -> bool:
    """Say whether what stands where a secret would is a minted token."""
    return parts(secret) is not None


def parts(token: str) -> tuple[str, str] | None:
    """Return the key and the claims of a minted token; None for an ordinary secret."""
    # One has no other characters; a header may hold any.
    return _native.parse_minted(token) if token.isascii() else None


def key_of(secret: str, name: str, claims: str) -> str:
    """Compute the key that proves claims of a principal."""
    return _native.minted_key(secret, name, claims)


def mint(secret: str, name: str, claims: Claims) -> str:
    """Sign a token.

    Args:
        secret: of the principal.
        name: of the principal.
        claims: that the token makes.

    Raises:
        InvalidArgumentError: They are longer than a server takes.
    """
    words = [f"exp={claims.expires_s}"]
    if claims.scopes:
        words.append(scopes.written(claims.scopes, _BETWEEN))
    text = _BETWEEN.join(words)
    if len(text) > _native.MAX_CLAIMS_BYTES:
        raise InvalidArgumentError(
            f"the token would have {len(text)} bytes of scopes; a server takes "
            f"{_native.MAX_CLAIMS_BYTES}"
        )
    return f"kvt1:{key_of(secret, name, text)}:{text}"


def read(claims: str, now_s: int | None) -> Claims:
    """Read claims.

    Args:
        claims: of the token.
        now_s: when they have to be valid, in seconds since 1970 by this host's clock; None: they
            may have expired.

    Raises:
        UnauthenticatedError: They have expired, are valid for too long, or are malformed.
    """
    expires_s, found = _native.read_claims(claims, now_s)
    return Claims(expires_s, tuple(Scope(Verb(v), tuple(t), p) for v, t, p in found))
