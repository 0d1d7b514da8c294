"""Sizes as people write them."""

import pytest

from kvstore.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (4294967296, 1 << 32),
        ("4gb", 4 << 30),
        ("256MB", 256 << 20),
        ("1.5 GiB", 3 << 29),
        ("64k", 64 << 10),
        ("17", 17),
        (" 2tb ", 2 << 40),
        ("5b", 5),
    ],
)
def test_sizes_are_binary(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "bad", [-1, "", "gb", "4 pb", "-4gb", "1.0001kb", True, "1e9", "9" * 400 + ".5gb", "9" * 5000]
)
def test_what_is_no_size_is_refused(bad: int | str) -> None:
    with pytest.raises(ValueError, match=r"size|bytes"):
        parse_size(bad)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (256 << 20, "256 MiB"), (5 << 50, "5120 TiB")],
)
def test_sizes_are_shown_in_the_largest_unit(size: int, text: str) -> None:
    assert format_size(size) == text
