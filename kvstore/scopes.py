"""Scopes: what a principal may do with which keys, beside its role.

A scope names verbs, tenants and the start of keys; what it leaves out it does not limit. Several
are separated by ``|``, each with what it allows::

    verbs=read,list keys=docs/ | verbs=write keys=docs/drafts/ tenants=chat

The native side parses them (native/src/net/scope.h), for its own checks and for these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag

from kvstore import _native
from kvstore.errors import InvalidArgumentError

_EVERY_TENANT = "*"
_PLAIN = "!\"#$&'()*-./:;<=>?@[]^_`{}~"
"""What stays as it is in prefixes and names, besides letters and digits."""


class Verb(IntFlag):
    """Kinds of access; the numbers are those of Verb in native scope.h."""

    READ = 1
    WRITE = 2
    REMOVE = 4
    LIST = 8
    WATCH = 16
    ADMIN = 32


EVERY_VERB = Verb(63)


@dataclass(frozen=True)
class Scope:
    """What is allowed with keys that start with a prefix."""

    verbs: Verb = EVERY_VERB
    tenants: tuple[str, ...] = ()
    """Empty: every one of the principal."""
    prefix: str = ""

    def covers(self, tenant: str) -> bool:
        """Say whether it is about this tenant."""
        return not self.tenants or tenant in self.tenants or _EVERY_TENANT in self.tenants

    def native(self) -> tuple[int, list[str], str]:
        """Return it as the native side takes it."""
        return int(self.verbs), list(self.tenants), self.prefix

    def words(self) -> list[str]:
        """Return the words that parse() reads."""
        from urllib.parse import quote  # rarely needed, and not cheap to load

        found = []
        if self.verbs != EVERY_VERB:
            names = [str(verb.name).lower() for verb in Verb if verb in self.verbs]
            found.append(f"verbs={','.join(names)}")
        if self.tenants:
            found.append(f"tenants={','.join(quote(one, safe='*') for one in self.tenants)}")
        if self.prefix:
            found.append(f"keys={quote(self.prefix, safe=_PLAIN)}")
        return found or ["verbs=" + ",".join(str(verb.name).lower() for verb in Verb)]


def is_text(text: str) -> bool:
    """Say whether it can be UTF-8: an argument of a command line may hold any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse(text: str, separator: str = " ") -> tuple[Scope, ...]:
    """Read scopes.

    Args:
        text: one or more, separated by ``|``; nothing for none.
        separator: of words.

    Raises:
        InvalidArgumentError: A word is wrong; the message says which kind.
    """
    if not is_text(text):
        raise InvalidArgumentError("a scope is not UTF-8")
    return tuple(
        Scope(Verb(verbs), tuple(tenants), prefix)
        for verbs, tenants, prefix in _native.parse_scopes(text, separator)
    )


def written(scopes: Iterable[Scope], separator: str = " ") -> str:
    """Write scopes as parse() reads them."""
    return separator.join(
        word for n, scope in enumerate(scopes) for word in (*(["|"] if n else []), *scope.words())
    )


@dataclass(frozen=True)
class Need:
    """What a call does, and with which keys."""

    verb: Verb
    keys: Sequence[str] = ()
    """Each of them; none: whether the verb is allowed for any key."""
    prefix: str | None = None
    """Every key that starts with it; "" for all of a tenant's."""


ADMINISTRATION = Need(Verb.ADMIN, prefix="")
LISTING = Need(Verb.LIST, prefix="")


def denial(layers: Iterable[Sequence[Scope]], tenant: str | None, need: Need) -> str:
    """Say why scopes do not allow a call.

    Args:
        layers: of scopes; each that has any has to allow it.
        tenant: whose keys they are; None: of any tenant that the scopes name.
        need: what the call does.

    Returns:
        What follows "may not"; empty when they allow it.
    """
    about = [
        [scope for scope in scopes if tenant is None or scope.covers(tenant)]
        for scopes in layers
        if scopes
    ]
    verb = str(need.verb.name).lower()
    with_verb = [[scope for scope in scopes if need.verb in scope.verbs] for scopes in about]
    if not all(with_verb):
        return f"{verb} here: `verbs` of its scopes lack it"

    def covered(start: str) -> bool:
        return all(any(start.startswith(one.prefix) for one in scopes) for scopes in with_verb)

    for row, key in enumerate(need.keys, 1):
        if not covered(key):
            return (
                f"{verb} key {row} of this request: none of its scopes with this verb has `keys` "
                "that the key starts with"
            )
    if need.prefix is not None and not covered(need.prefix):
        return (
            f"{verb} all these keys: none of its scopes with this verb has `keys` that they all "
            "start with"
        )
    return ""
