"""The checker finds what is wrong, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.history import (
    NOBODY,
    Op,
    Recorder,
    check,
    late,
    load,
    longest_outage,
    number_of,
    payload,
)

PUT = Op("put", "k", 1, 0.0, 1.0, "Ok")
REMOVE = Op("remove", "k", 0, 2.0, 3.0, "Ok")


def read(number: int, start: float, key: str = "k") -> Op:
    return Op("get", key, number, start, start + 0.5, "hit")


MISS = Op("get", "k", -1, 1.5, 1.6, "miss")

WRONG = {
    "bytes of nobody": [PUT, read(NOBODY, 1.5)],
    "bytes of a put that never was": [PUT, read(2, 1.5)],
    "bytes of another key": [PUT, read(1, 1.5, "other")],
    "read before it was put": [PUT, read(1, -2.0)],
    "read after it was removed": [PUT, REMOVE, read(1, 3.1)],
    "read after a remove that a second put followed": [
        PUT,
        REMOVE,
        Op("put", "k", 2, 4.0, 5.0, "Ok"),
        read(1, 6.0),
    ],
    "a refused put": [Op("put", "k", 1, 0.0, 1.0, "NoSpace"), read(1, 2.0)],
    "an unknown put that was read, removed and is back": [
        Op("put", "k", 1, 0.0, 1.0, "Unavailable"),
        read(1, 1.0),
        REMOVE,
        read(1, 9.0),
    ],
    "the put of a killed process, read, removed and back": [
        Op("put", "k", 1, 0.0, None, ""),
        read(1, 1.0),
        REMOVE,
        read(1, 9.0),
    ],
}
RIGHT = {
    "a miss at any time": [PUT, MISS, REMOVE, Op("get", "k", -1, 9.0, 9.1, "miss")],
    "read while it is put": [PUT, read(1, 0.2)],
    "read while it is removed": [PUT, REMOVE, read(1, 2.9)],
    "removed before it was put": [Op("remove", "k", 0, -3.0, -2.0, "Ok"), PUT, read(1, 5.0)],
    "put while it was removed": [
        Op("put", "k", 1, 2.5, 4.0, "Ok"),
        REMOVE,
        read(1, 5.0),
    ],
    "a remove whose outcome is not known": [
        PUT,
        Op("remove", "k", 0, 2.0, 3.0, "Partial"),
        Op("remove", "k", 0, 2.0, None, ""),
        Op("remove", "k", 0, 2.0, 3.0, "Unavailable"),
        read(1, 5.0),
    ],
    "a put whose outcome is not known, seen after a remove": [
        Op("put", "k", 1, 0.0, 1.0, "Unavailable"),
        REMOVE,
        read(1, 5.0),
    ],
    "put again": [PUT, REMOVE, Op("put", "k", 2, 4.0, 5.0, "Ok"), read(2, 6.0)],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_found(name: str) -> None:
    assert len(check(WRONG[name])) == 1


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_is_accepted(name: str) -> None:
    assert check(RIGHT[name]) == []


@pytest.mark.parametrize("size", [60, 4093, 50_000])
def test_a_payload_proves_its_key_and_its_put(size: int) -> None:
    data = payload("some/key", 7, size)
    assert len(data) == size
    assert number_of("some/key", data) == 7
    assert number_of("other/key", data) == NOBODY
    for at in (0, 5, size // 2, size - 1):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert number_of("some/key", bytes(damaged)) == NOBODY
    assert number_of("some/key", data[:-1]) == NOBODY
    assert number_of("some/key", data + b"x") == NOBODY
    assert number_of("some/key", b"") == NOBODY
    assert payload("some/key", 8, size) != data


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 3)
    number = recorder.number()
    recorder.begin("put", "k", number)
    recorder.end("put", "k", number, 0.0, "Ok")
    recorder.begin("remove", "k", 0)
    recorder.end("get", "k", -1, 5.0, "miss")
    recorder.close()
    put, get, remove = sorted(load(tmp_path), key=lambda op: op.kind != "put")
    if get.kind == "remove":
        get, remove = remove, get
    assert (put.kind, put.number, put.outcome) == ("put", 3_000_000_001, "Ok")
    assert (get.kind, get.number, get.start) == ("get", -1, 5.0)
    assert (remove.kind, remove.end, remove.outcome) == ("remove", None, "")


def test_slow_calls_and_outages_are_measured() -> None:
    assert late([PUT, REMOVE], 0.5) == ["put k took 1.00 s, Ok", "remove k took 1.00 s, Ok"]
    assert late([PUT, REMOVE], 1.5) == []
    assert longest_outage([PUT, read(1, 1.0), read(1, 7.0), MISS], 0.0, 8.0) == 6.0
    assert longest_outage([], 1.0, 5.0) == 4.0
