"""Addresses of masters as people write them."""

from __future__ import annotations

import pytest

from kvstore.addresses import masters_of
from kvstore.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("given", "masters"),
    [
        ("host", ["host:50051"]),
        ("host:7", ["host:7"]),
        ("tcp://host:7", ["host:7"]),
        ("10.0.0.1, 10.0.0.2:9", ["10.0.0.1:50051", "10.0.0.2:9"]),
        (["a:1", "b,c:2"], ["a:1", "b:50051", "c:2"]),
        (("a",), ["a:50051"]),
        ("::1", ["[::1]:50051"]),
        ("[::1]", ["[::1]:50051"]),
        ("::1:7", ["[::1]:7"]),
        ("fe80::1%eth0", ["[fe80::1%eth0]:50051"]),
        ("[fe80::1%eth0]:7", ["[fe80::1%eth0]:7"]),
        ("unix:///run/master.sock", ["unix:///run/master.sock"]),
        ("unix:@name", ["unix:@name"]),
        ("a,", ["a:50051"]),
    ],
)
def test_an_address_gets_its_port(given: str | list[str], masters: list[str]) -> None:
    assert masters_of(given) == masters


@pytest.mark.parametrize(
    "given",
    ["", " ", ",", ":7", "host:", "host:0", "host:65536", "host:x", "user@host", "a/b", "ht://a"],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--master"):
        masters_of(given, "--master")
