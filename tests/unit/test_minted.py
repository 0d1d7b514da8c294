"""Minted tokens on the servers' Python side, and who has to wait after wrong ones."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from kvstore import clock, minted, scopes, security
from kvstore.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from kvstore.minted import Claims
from kvstore.proofs import Proofs, prove
from kvstore.scopes import LISTING, Need, Verb
from kvstore.security import Guard, Principal, Role, Secret

SECRET = "a-long-random-secret"
ENGINE = Principal("engine", Role.CLIENT, ("default", "chat"), Secret(SECRET))
OPS = Principal("ops", Role.OPERATOR, ("*",), Secret("a-secret-of-operators"))
NODE = Principal("a", Role.NODE, ("*",), Secret("a-secret-of-the-node"))
PEER = "10.0.0.7:4711"


def token(principal: Principal, seconds: int = 60, text: str = "") -> str:
    claims = Claims(clock.unix_ms() // 1000 + seconds, scopes.parse(text))
    return minted.mint(principal.secret.reveal(), principal.name, claims)


@pytest.fixture
def guard() -> Guard:
    return Guard([ENGINE, OPS, NODE])


def bearer(principal: Principal, secret: str) -> str:
    return f"Bearer {principal.name}:{secret}"


def test_a_token_is_what_its_format_says() -> None:
    made = minted.mint(SECRET, "engine", Claims(1000, scopes.parse("verbs=read keys=a+b/")))
    start, key, claims = made.split(":", 2)
    assert (start, claims) == ("kvt1", "exp=1000+verbs=read+keys=a%2Bb/")
    message = b"kvstore 1 minted token\nengine\n" + claims.encode()
    assert key == hmac.new(SECRET.encode(), message, hashlib.sha256).hexdigest()
    assert minted.parts(made) == (key, claims) and minted.parts(SECRET) is None
    assert minted.read(claims, 999) == Claims(1000, scopes.parse("verbs=read keys=a%2Bb/"))
    with pytest.raises(UnauthenticatedError, match="expired 1 s ago"):
        minted.read(claims, 1001)
    with pytest.raises(InvalidArgumentError, match="a server takes 1024"):
        minted.mint(SECRET, "engine", Claims(1000, scopes.parse(f"keys={'k' * 1024}")))


def test_a_bearer_may_have_a_minted_token(guard: Guard) -> None:
    found = guard.identify(bearer(ENGINE, token(ENGINE, text="verbs=read tenants=chat")), PEER)
    assert found.name == "engine" and guard.still_admits(found)
    assert found.may("chat", Need(Verb.READ, ["k"])) and not found.may("chat", LISTING)
    assert not found.may_use("default")
    with pytest.raises(PermissionDeniedError, match="minted token"):
        security.require(found, [Role.CLIENT], "chat", need=LISTING)
    whole = guard.identify(bearer(OPS, token(OPS)), PEER)
    security.require(whole, [Role.OPERATOR], "*", need=scopes.ADMINISTRATION)
    guard.replace([OPS])
    assert not guard.still_admits(found) and guard.still_admits(whole)


def test_claims_only_narrow(guard: Guard) -> None:
    narrow = Principal("n", Role.CLIENT, ("chat",), Secret(SECRET), scopes.parse("keys=docs/"))
    guard.replace([narrow])
    found = guard.identify(bearer(narrow, token(narrow, text="verbs=read | keys=x")), PEER)
    assert found.may("chat", Need(Verb.READ, ["docs/a"]))
    for need in (Need(Verb.READ, ["x"]), Need(Verb.WRITE, ["docs/a"]), LISTING):
        assert not found.may("chat", need)


def test_wrong_tokens_are_refused(guard: Guard) -> None:
    good = token(ENGINE)
    head, key, claims = good.split(":", 2)
    for wrong in (
        token(ENGINE, seconds=-1),
        token(ENGINE, seconds=2 * minted.MAX_TTL_S),
        minted.mint("another-secret-of-some", "engine", Claims(clock.unix_ms() // 1000 + 60)),
        minted.mint(SECRET, "ops", Claims(clock.unix_ms() // 1000 + 60)),
        f"{head}:{key}:{claims}0",
        f"{head}:{key[::-1]}:{claims}",
        f"{head}:{key}:",
    ):
        with pytest.raises(UnauthenticatedError):
            guard.identify(bearer(ENGINE, wrong), PEER)
        guard.identify(bearer(ENGINE, good), PEER)
    with pytest.raises(PermissionDeniedError, match="mints no tokens"):
        guard.identify(bearer(NODE, token(NODE)), PEER)


def test_a_proof_may_be_of_a_minted_token(guard: Guard) -> None:
    holder = Principal(
        "ops", Role.OPERATOR, ("*",), Secret(token(OPS, text="verbs=admin keys=a:b"))
    )
    proofs = Proofs(guard, "c/a")
    header = prove(holder, "c/a", "GET", "/sessions")
    assert "kvt1" not in header and SECRET not in header
    found = proofs.identify(header, PEER, "GET", "/sessions")
    assert found.may("*", Need(Verb.ADMIN)) and not found.may("*", Need(Verb.READ))
    with pytest.raises(UnauthenticatedError, match="used before"):
        proofs.identify(header, PEER, "GET", "/sessions")
    other = prove(holder, "c/a", "GET", "/sessions").replace("verbs=admin", "verbs=read")
    with pytest.raises(UnauthenticatedError, match="wrong proof"):
        proofs.identify(other, PEER, "GET", "/sessions")


def test_guesses_have_to_wait_at_their_address(guard: Guard) -> None:
    told: list[tuple[str, str, int]] = []
    guard.on_pause = lambda name, peer, pause_ms: told.append((name, peer, pause_ms))
    for i in range(6):
        with pytest.raises(UnauthenticatedError, match="unknown principal or wrong token"):
            guard.identify(bearer(ENGINE, f"guess-{i}"), PEER)
    assert told == [("engine", PEER, 1000)]
    for secret in ("guess", SECRET, token(ENGINE)):
        with pytest.raises(UnauthenticatedError, match="try again in"):
            guard.identify(bearer(ENGINE, secret), "10.0.0.7:9")
    assert not guard.knows(bearer(ENGINE, SECRET), PEER)
    assert guard.identify(bearer(ENGINE, SECRET), "10.0.0.8:9") is ENGINE
    assert guard.identify(bearer(OPS, OPS.secret.reveal()), PEER) is OPS
    assert guard.failed.stats() == {"wrong": 6, "pauses": 1, "paused": 4}
    guard.replace([ENGINE, OPS])
    assert guard.identify(bearer(ENGINE, SECRET), PEER) is ENGINE


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("10.0.0.7:4711", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7"),
        ("[2001:db8::1:2]:4711", "2001:db8::/64"),
        ("2001:db8::1:2", "2001:db8::/64"),
        ("[::ffff:10.0.0.7]:1", "10.0.0.7"),
        ("[fe80::1%eth0]:1", "fe80::/64"),
        ("unix:", "unix"),
        ("", ""),
        ("[odd", "odd"),
    ],
)
def test_addresses_that_one_host_may_have_are_one(peer: str, network: str) -> None:
    assert security.network_of(peer) == network


def test_servers_need_the_secret_itself(tmp_path: object) -> None:
    from pathlib import Path

    file = Path(str(tmp_path)) / "tokens"
    file.touch(0o600)
    file.write_text(f"engine client default {token(ENGINE)}\n")
    assert security.load_identity(file).name == "engine"
    with pytest.raises(InvalidArgumentError, match="'engine' is a minted token"):
        security.load_principals(file)
