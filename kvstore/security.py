"""Authentication and permissions: principals of the token file, bearer tokens, hidden secrets.

A token file has one line per principal: name, role, tenants, secret, separated by blanks; ``#``
starts a comment line. Tenants are separated by commas; ``*`` stands for every tenant. Behind the
secret may stand scopes (kvstore.scopes), which limit clients and operators further::

    engine-1   client    default,research  8f0e...
    docs       client    default           a91c...   verbs=read,list keys=docs/
    node       node      *                 51ab...
    ops        operator  *                 e77c...

A name may have a second line with another secret, so that one can replace the other
(deploy/README.md, Tokens). The files of master and nodes list every principal that may connect. A
node uses the line with the role node (named like its node id, if there are several). A client's
file has only its own line.

On the block protocol the secret answers an HMAC challenge (handshake.h); over gRPC and HTTP it is
sent as ``authorization: Bearer name:secret``, which requires TLS or a trusted network.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeAlias

from kvstore import _native, clock, limits, minted, scopes
from kvstore.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from kvstore.options import one_of, read_file
from kvstore.scopes import Need, Scope, Verb

EVERY_TENANT = "*"
_BEARER = "bearer "
_MAX_SECRETS = 2
_FIELDS = 4
_BY_CERTIFICATE = "-"
"""In place of the secret: who comes with a certificate of that name needs none (block port)."""

NativeScope: TypeAlias = tuple[int, list[str], str]
NativePrincipal: TypeAlias = tuple[str, int, list[str], str, list[NativeScope]]
"""As the native servers take it."""


class Secret:
    """A string that no log line, traceback or repr shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Wrap `value`."""
        self._value = value

    def reveal(self) -> str:
        """Return the string itself."""
        return self._value

    def matches(self, other: str) -> bool:
        """Compare in constant time."""
        import hmac  # a server's: `import kvstore` stays fast

        # A header may hold any bytes; they arrive as lone surrogates.
        return hmac.compare_digest(self._value.encode(), other.encode(errors="surrogatepass"))

    def __eq__(self, other: object) -> bool:
        """Compare two secrets; never equal to anything else."""
        return isinstance(other, Secret) and self.matches(other._value)

    def __hash__(self) -> int:
        """Hash the string."""
        return hash(self._value)

    def __repr__(self) -> str:
        """Hide the string."""
        return "***"

    __str__ = __repr__

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError("a secret is not pickled")


class Role(IntEnum):
    """Role of a principal; the numbers are those of Role in native types.h."""

    CLIENT = 0
    NODE = 1
    OPERATOR = 2


@dataclass(frozen=True)
class Minted:
    """A minted token that somebody came with."""

    issuer: Principal
    """Whose secret signed it, as the token file has it."""
    claims: minted.Claims


@dataclass(frozen=True)
class Principal:
    """An identity that may connect."""

    name: str
    role: Role
    tenants: tuple[str, ...]
    secret: Secret
    scopes: tuple[Scope, ...] = ()
    """None: everything that the role may do."""
    minted: Minted | None = None
    """The token that it came with, where that is not its secret."""

    def may_use(self, tenant: str) -> bool:
        """Say whether the principal's tenants, and some scope, include this one."""
        listed = EVERY_TENANT in self.tenants or tenant in self.tenants
        return listed and all(any(one.covers(tenant) for one in layer) for layer in self._layers())

    def is_limited(self) -> bool:
        """Say whether any scopes limit it."""
        return bool(self._layers())

    def _layers(self) -> list[tuple[Scope, ...]]:
        claimed = self.minted.claims.scopes if self.minted is not None else ()
        return [layer for layer in (self.scopes, claimed) if layer]

    def denial(self, tenant: str | None, need: Need) -> str:
        """Say why its scopes do not allow a call; empty when they do (kvstore.scopes.denial)."""
        layers = self._layers()
        return scopes.denial(layers, tenant, need) if layers else ""

    def may(self, tenant: str, need: Need) -> bool:
        """Say whether it may do this with a tenant's keys."""
        return self.may_use(tenant) and not self.denial(tenant, need)

    def expires_ms(self) -> int | None:
        """Return when the token that it came with ends, in ms since 1970; None: never."""
        return None if self.minted is None else self.minted.claims.expires_s * 1000

    def signed(self, key: str, claims: str) -> bool:
        """Say whether this is the key of claims that it has signed."""
        return Secret(minted.key_of(self.secret.reveal(), self.name, claims)).matches(key)

    def may_be_node(self, node_id: str) -> bool:
        """Say whether a principal with the role node may register this node id.

        Its name is that id. A ``*`` in it stands for any characters: one token for many nodes.
        """
        pattern = ".*".join(map(re.escape, self.name.split("*")))
        return re.fullmatch(pattern, node_id, re.DOTALL) is not None

    def native(self) -> NativePrincipal:
        """Name, role number, tenants, bare secret and scopes, as the native side takes them."""
        limits_of = [one.native() for one in self.scopes]
        return self.name, int(self.role), list(self.tenants), self.secret.reveal(), limits_of


def as_minted(issuer: Principal, token: str, claims: str) -> Principal:
    """Return the principal as a token that it has signed lets it come.

    Raises:
        UnauthenticatedError: The token has expired, is valid for too long, or is malformed.
        PermissionDeniedError: It is a node, whose secret mints no tokens.
    """
    if issuer.role is Role.NODE:
        raise PermissionDeniedError("a node's secret mints no tokens")
    read = minted.read(claims, clock.unix_ms() // 1000)
    return replace(issuer, secret=Secret(token), minted=Minted(issuer, read))


# Identity of every caller while no token file is configured.
ANYBODY = Principal("anybody", Role.OPERATOR, (EVERY_TENANT,), Secret(""))


def load_principals(
    path: str | os.PathLike[str], *, may_be_minted: bool = False
) -> tuple[Principal, ...]:
    """Read a token file.

    Args:
        may_be_minted: whether a secret may be a minted token, as in a client's own file.
        path: a file that only its owner may read (mode 0600 or stricter), or root's with
            group-read permission; see too_open.

    Returns:
        Its principals, at least one. Two may have the same name, role, tenants and scopes: then
        each has its own secret.

    Raises:
        InvalidArgumentError: The file cannot be read, others may read it, or a line is wrong; the
            message names the file and the line, never a secret.
    """
    file = os.fspath(path)
    found = _parse(file, read_secrets(file, "token file").splitlines())
    for principal in () if may_be_minted else found:
        if minted.is_minted(principal.secret.reveal()):
            raise InvalidArgumentError(
                f"token file {file}: the secret of {principal.name!r} is a minted token; servers "
                "need the secret that signed it"
            )
    return found


def read_secrets(file: str, what: str) -> str:
    """Read a file of secrets, which nobody else may read or change.

    Args:
        file: its path.
        what: it is, for messages.

    Raises:
        InvalidArgumentError: It cannot be read, others may read it (see too_open), or it is not
            UTF-8; the message never shows what is in it.
    """
    try:
        found, raw = read_file(file, limits.MAX_TOKEN_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgumentError(f"{what} {file}: {error.strerror}") from error
    mode = stat.S_IMODE(found.st_mode)
    if too_open(mode, found.st_uid):
        raise InvalidArgumentError(
            f"{what} {file}: mode {mode:04o} lets others read or change it; run: chmod 600 {file}"
        )
    if len(raw) > limits.MAX_TOKEN_FILE_BYTES:
        raise InvalidArgumentError(f"{what} {file}: larger than 1 MiB")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{what} {file}: not UTF-8") from error


def too_open(mode: int, owner: int) -> bool:
    """Say whether others may read or change a file of secrets.

    Args:
        mode: its permission bits.
        owner: its user id.

    Returns:
        True when anyone but the owner has any permission; except that the group may read a file
        owned by root: an unprivileged process gets a Kubernetes secret this way (fsGroup), and root
        reads the same file.

    Source: PostgreSQL's rule for the server's private key (ssl_key_file).
    """
    return bool(mode & (0o037 if owner == 0 else 0o077))


def _parse(file: str, lines: Iterable[str]) -> tuple[Principal, ...]:
    principals: dict[str, list[Principal]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            principal = _parse_line(line.split())
            _check_beside(principal, principals.setdefault(principal.name, []))
        except (ValueError, InvalidArgumentError) as error:
            raise InvalidArgumentError(f"token file {file}, line {number}: {error}") from None
        principals[principal.name].append(principal)
    if not principals:
        raise InvalidArgumentError(f"token file {file}: it has no principal")
    return tuple(one for of_name in principals.values() for one in of_name)


def _check_beside(principal: Principal, others: list[Principal]) -> None:
    """Refuse a further line of a name unless it only introduces another secret."""
    name = repr(principal.name)
    if len(others) >= _MAX_SECRETS:
        raise ValueError(f"a name has at most {_MAX_SECRETS} lines, and {name} has more")
    for other in others:
        if replace(other, secret=principal.secret) != principal:
            raise ValueError(
                f"second line for the name {name}, with another role, tenants or scope"
            )
        if other.secret == principal.secret:
            raise ValueError(f"second line for the name {name}, with the same secret")


def _parse_line(fields: list[str]) -> Principal:
    if len(fields) < _FIELDS:
        raise ValueError(f"{len(fields)} fields; need name, role, tenants, secret")
    name, role, tenants, secret = fields[:_FIELDS]
    one_of("role", role.lower(), [known.name.lower() for known in Role])
    if not limits.is_valid_name(name) or ":" in name:
        raise ValueError("the name is too long or has a colon or control characters")
    by_certificate = secret == _BY_CERTIFICATE
    if by_certificate and role.lower() != "client":
        raise ValueError(f"only a client comes with its certificate (the secret {secret!r})")
    if not by_certificate and len(secret.encode()) < limits.MIN_SECRET_BYTES:
        raise ValueError(f"the secret is shorter than {limits.MIN_SECRET_BYTES} bytes")
    names = tuple(tenant for tenant in tenants.split(",") if tenant)
    if not names or not all(limits.is_valid_name(tenant) for tenant in names):
        raise ValueError("no tenants, or one that is too long")
    limited = scopes.parse(" ".join(fields[_FIELDS:]))
    kept = Secret("" if by_certificate else secret)
    principal = Principal(name, Role[role.upper()], names, kept, limited)
    _check_scopes(principal)
    return principal


def _check_scopes(principal: Principal) -> None:
    """Refuse scopes that promise what the role or the tenants of the line do not allow."""
    if principal.scopes and principal.role is Role.NODE:
        raise ValueError("a node is trusted with what it holds: its line has no scopes")
    for scope in principal.scopes:
        named = Verb.ADMIN in scope.verbs and scope.verbs != scopes.EVERY_VERB
        if named and principal.role is not Role.OPERATOR:
            raise ValueError("the verb admin needs the role operator")
        if EVERY_TENANT in principal.tenants:
            continue
        if unlisted := [one for one in scope.tenants if one not in principal.tenants]:
            raise ValueError(f"tenants={unlisted[0]} is not among the tenants of the line")


def load_identity(
    path: str | os.PathLike[str],
    roles: Iterable[Role] = (Role.CLIENT, Role.OPERATOR),
    name: str = "",
) -> Principal:
    """Find this process's principal in a token file.

    Args:
        path: as in load_principals.
        roles: accepted roles; lines with other roles are ignored.
        name: of the principal, when several have an accepted role.

    Returns:
        The first of its lines, if it has two.

    Raises:
        InvalidArgumentError: As load_principals, or no line or several lines match.
    """
    wanted = set(roles)
    known = load_principals(path, may_be_minted=True)
    fitting = _first_of_each(p for p in known if p.role in wanted)
    chosen = fitting if len(fitting) == 1 else [p for p in fitting if p.name == name]
    if len(chosen) != 1:
        names = " or ".join(role.name.lower() for role in sorted(wanted))
        raise InvalidArgumentError(
            f"token file {path}: {len(fitting)} principals with the role {names}; need one"
            + (f" named {name!r}" if name else "")
        )
    return chosen[0]


def load_node_identity(path: str | os.PathLike[str], node_id: str) -> Principal:
    """Find a node's principal in a token file.

    Args:
        path: as in load_principals.
        node_id: of the node. A principal of this name comes before one whose name matches it.

    Returns:
        The first of its lines, if it has two.

    Raises:
        InvalidArgumentError: As load_principals, or none or several may be this node.
    """
    nodes = _first_of_each(p for p in load_principals(path) if p.role is Role.NODE)
    fitting = [p for p in nodes if p.name == node_id] or [
        p for p in nodes if p.may_be_node(node_id)
    ]
    if len(fitting) != 1:
        names = ", ".join(repr(p.name) for p in fitting or nodes) or "none"
        raise InvalidArgumentError(
            f"token file {path}: {len(fitting)} principals with the role node may be node "
            f"{node_id!r}; need one with that name, or with a * for what differs between nodes "
            f"(found: {names})"
        )
    return fitting[0]


def _first_of_each(principals: Iterable[Principal]) -> list[Principal]:
    found: dict[str, Principal] = {}
    for principal in principals:
        found.setdefault(principal.name, principal)
    return list(found.values())


def bearer(principal: Principal | None) -> tuple[tuple[str, str], ...]:
    """Make the gRPC metadata that authenticates a principal; empty without one."""
    if principal is None:
        return ()
    return (("authorization", f"Bearer {principal.name}:{principal.secret.reveal()}"),)


class WrongTokenError(UnauthenticatedError):
    """The principal is unknown, or its secret is another one."""


def network_of(peer: str) -> str:
    """Return what addresses share that one host may have: a host, of IPv6 its /64.

    Args:
        peer: an address, with or without a port.
    """
    host = peer if peer.count(":") > 1 and not peer.startswith("[") else peer.partition(":")[0]
    if peer.startswith("["):
        host = peer[1:].partition("]")[0]
    if ":" not in host:
        return host
    import ipaddress  # rarely needed, and not cheap to load

    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


class Guard:
    """Identifies who sends a request; thread-safe, principals are replaceable at run time."""

    def __init__(self, principals: Iterable[Principal] | None) -> None:
        """Take the principals of the token file; None turns authentication off."""
        self._by_name: dict[str, list[Principal]] | None = None
        self.failed = _native.FailedProofs()
        """Wrong tokens, by principal and network."""
        self.on_pause: Callable[[str, str, int], None] = lambda name, peer, pause_ms: None
        """Told who has to wait from now on, where, and for how long."""
        self.replace(principals)

    def replace(self, principals: Iterable[Principal] | None) -> None:
        """Use other principals from now on."""
        by_name: dict[str, list[Principal]] | None = None
        if principals is not None:
            by_name = {}
            for principal in principals:
                named = by_name.setdefault(principal.name, [])
                if principal.secret.reveal():  # else it has no token that could be shown
                    named.append(principal)
        self._by_name = by_name
        self.failed.clear()

    @property
    def required(self) -> bool:
        """Whether every request needs a valid token."""
        return self._by_name is not None

    def still_admits(self, principal: Principal) -> bool:
        """Say whether a principal that was identified before is one still, and unchanged."""
        known = self._by_name
        listed = principal.minted.issuer if principal.minted is not None else principal
        return known is None or listed in known.get(listed.name, ())

    def claimed(self, authorization: str | None) -> str:
        """Return the name that an authorization header claims, for logs; empty for none."""
        if self._by_name is None or authorization is None:
            return ""
        name = authorization.partition(" ")[2].strip().partition(":")[0]
        return name[: limits.MAX_NAME_BYTES]

    def named(self, name: str) -> tuple[Principal, ...]:
        """Return the principals of a name: two while their secret changes, or none."""
        return tuple((self._by_name or {}).get(name, ()))

    def knows(self, authorization: str | None, peer: str) -> bool:
        """Say whether `identify` accepts a header."""
        try:
            self.identify(authorization, peer)
        except UnauthenticatedError:
            return False
        return True

    def identify(self, authorization: str | None, peer: str) -> Principal:
        """Find the principal of an ``authorization`` header.

        Args:
            authorization: ``Bearer name:secret``, or None when the header is missing.
            peer: the address that it comes from; after wrong tokens it has to wait.

        Raises:
            UnauthenticatedError: The header is missing, not a bearer token, or wrong, or comes too
                soon after wrong ones. The message is the same for an unknown name and a wrong
                secret.
        """
        known = self._by_name
        if known is None:
            return ANYBODY
        if authorization is None:
            raise UnauthenticatedError("no token: send authorization: Bearer <name>:<secret>")
        if not authorization.lower().startswith(_BEARER):
            raise UnauthenticatedError("not a bearer token")
        name, _, secret = authorization[len(_BEARER) :].strip().partition(":")
        with self.attempt(name, peer):
            return self._with_secret(known, name, secret)

    def _with_secret(self, known: dict[str, list[Principal]], name: str, secret: str) -> Principal:
        # Compared even for an unknown name, so that timing does not reveal which names exist.
        token = minted.parts(secret)
        for principal in known.get(name, (ANYBODY,)):
            if token is not None:
                if principal.signed(*token) and principal is not ANYBODY:
                    return as_minted(principal, secret, token[1])
            elif principal.secret.matches(secret) and principal is not ANYBODY:
                return principal
        raise WrongTokenError("unknown principal or wrong token")

    @contextmanager
    def attempt(self, name: str, peer: str) -> Iterator[None]:
        """Count an attempt to authenticate: a WrongTokenError of the block, or a right token.

        Args:
            name: that it claims.
            peer: the address that it comes from.

        Raises:
            UnauthenticatedError: It comes too soon after wrong ones.
        """
        # It may hold any bytes; they arrive as lone surrogates.
        name = name[: limits.MAX_NAME_BYTES].encode(errors="replace").decode()
        network = network_of(peer)
        wait_ms = self.failed.refuse_ms(name, network)
        if wait_ms:
            raise UnauthenticatedError(
                "too many wrong tokens for this principal from this address: try again in "
                f"{wait_ms // 1000 + 1} s"
            )
        try:
            yield
        except WrongTokenError:
            pause_ms = self.failed.failed(name, network)
            if pause_ms:
                self.on_pause(name, peer, pause_ms)
            raise
        self.failed.passed(name, network)

    def admit(
        self,
        authorization: str | None,
        peer: str,
        roles: Iterable[Role],
        tenant: str | None = None,
        node_id: str | None = None,
        need: Need | None = None,
    ) -> Principal:
        """Identify the sender of a request, and check that it may make the call.

        Args:
            authorization: as in `identify`.
            peer: as in `identify`.
            roles: as in `require`.
            tenant: as in `require`.
            node_id: as in `require`.
            need: as in `require`.

        Raises:
            UnauthenticatedError: As `identify`.
            PermissionDeniedError: As `require`.
        """
        principal = self.identify(authorization, peer)
        require(principal, roles, tenant, node_id, need)
        return principal


def require(
    principal: Principal,
    roles: Iterable[Role],
    tenant: str | None = None,
    node_id: str | None = None,
    need: Need | None = None,
) -> None:
    """Check that a principal may make a call.

    Args:
        principal: who calls.
        roles: who may; an operator may also do what a client may.
        tenant: whose objects the call touches, EVERY_TENANT for all; None when it touches none.
        node_id: for which node a node speaks; None when it speaks for none.
        need: what the call does with keys; None when it tells and changes nothing of any.

    Raises:
        PermissionDeniedError: The principal may not.
    """
    if principal is ANYBODY:
        return
    allowed = set(roles)
    if Role.CLIENT in allowed:
        allowed.add(Role.OPERATOR)
    if principal.role not in allowed:
        wanted = " or ".join(sorted(role.name.lower() for role in allowed))
        raise PermissionDeniedError(f"{principal.name} does not have the role {wanted}")
    if tenant is not None and not principal.may_use(tenant):
        which = "every tenant (*)" if tenant == EVERY_TENANT else f"the tenant {tenant!r}"
        raise PermissionDeniedError(f"{principal.name} may not use {which}")
    if need is not None and (why := principal.denial(tenant, need)):
        where = "its line of the token file, or its minted token"
        raise PermissionDeniedError(f"{principal.name} may not {why} ({where})")
    if node_id is not None and not principal.may_be_node(node_id):
        raise PermissionDeniedError(
            f"{principal.name} may not be node {node_id!r}: its line of the token file needs that "
            "name, or one with a * for what differs between nodes"
        )
