"""A proof is for one request at one server, once."""

from __future__ import annotations

import pytest

from kvstore import clock
from kvstore.errors import UnauthenticatedError
from kvstore.proofs import Proofs, prove, server_name
from kvstore.security import ANYBODY, Guard, Principal, Role, Secret, bearer

PEER = "10.0.0.7:4711"
OPS = Principal("ops", Role.OPERATOR, ("*",), Secret("the-secret-of-ops-0123"))
OTHER = Principal("ops", Role.OPERATOR, ("*",), Secret("another-secret-of-ops"))
HERE, THERE = server_name("cluster", "a"), server_name("cluster")
REQUEST = ("DELETE", "/sessions?principal=e")


@pytest.fixture
def proofs() -> Proofs:
    return Proofs(Guard([OPS]), HERE)


def test_it_proves_who_asks_and_tells_no_secret(proofs: Proofs) -> None:
    header = prove(OPS, HERE, *REQUEST)
    assert OPS.secret.reveal() not in header
    assert proofs.identify(header, PEER, *REQUEST) == OPS
    assert Guard([OPS]).claimed(header) == "ops"
    with pytest.raises(UnauthenticatedError):
        Guard([OPS]).identify(header, PEER)


def test_it_holds_for_one_request_at_one_server_once(proofs: Proofs) -> None:
    wrong_ones = (
        prove(OPS, THERE, *REQUEST),
        prove(OPS, server_name("another", "a"), *REQUEST),
        prove(OPS, HERE, "GET", REQUEST[1]),
        prove(OPS, HERE, "DELETE", "/sessions?principal=f"),
        prove(OTHER, HERE, *REQUEST),
        prove(OPS, HERE, *REQUEST)[:-1] + "x",
        prove(OPS, HERE, *REQUEST).replace("ops:", "ops:1"),
        prove(OPS, HERE, *REQUEST).replace("ops:", "nobody:"),
    )
    for number, wrong in enumerate(wrong_ones):
        with pytest.raises(UnauthenticatedError, match="wrong proof"):
            proofs.identify(wrong, f"10.0.1.{number}:1", *REQUEST)
    header = prove(OPS, HERE, *REQUEST)
    assert proofs.identify(header, PEER, *REQUEST) == OPS
    with pytest.raises(UnauthenticatedError, match="used before"):
        proofs.identify(header, PEER, *REQUEST)


@pytest.mark.parametrize("late_ms", [-301_000, 301_000])
def test_it_holds_for_minutes(
    proofs: Proofs, monkeypatch: pytest.MonkeyPatch, late_ms: int
) -> None:
    header = prove(OPS, HERE, *REQUEST)
    now_ms = clock.unix_ms() + late_ms
    monkeypatch.setattr(clock, "unix_ms", lambda: now_ms)
    with pytest.raises(UnauthenticatedError, match="too old"):
        proofs.identify(header, PEER, *REQUEST)


@pytest.mark.parametrize(
    "header", ["Kvstore-Proof", "Kvstore-Proof a:b", "kvstore-proof ops:1:2:\xff"]
)
def test_others_are_no_proofs(proofs: Proofs, header: str) -> None:
    with pytest.raises(UnauthenticatedError):
        proofs.identify(header, PEER, *REQUEST)


def test_a_bearer_token_will_do_and_without_tokens_everybody_may(proofs: Proofs) -> None:
    ((_, token),) = bearer(OPS)
    assert proofs.identify(token, PEER, *REQUEST) == OPS
    off = Proofs(Guard(None), HERE)
    for header in (None, token, prove(OPS, HERE, *REQUEST)):
        assert off.identify(header, PEER, *REQUEST) is ANYBODY


def test_both_secrets_of_a_name_prove(proofs: Proofs) -> None:
    both = Proofs(Guard([OPS, OTHER]), HERE)
    for one in (OPS, OTHER):
        assert both.identify(prove(one, HERE, *REQUEST), PEER, *REQUEST) == one


def test_used_ones_are_forgotten_when_they_are_too_old_anyway(
    proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = clock.unix_ms()
    monkeypatch.setattr(clock, "unix_ms", lambda: now_ms)
    for _ in range(4096):
        proofs.identify(prove(OPS, HERE, *REQUEST), PEER, *REQUEST)
    with pytest.raises(UnauthenticatedError, match="too many"):
        proofs.identify(prove(OPS, HERE, *REQUEST), PEER, *REQUEST)
    now_ms += 601_000
    assert proofs.identify(prove(OPS, HERE, *REQUEST), PEER, *REQUEST) == OPS
