"""One table of outcomes: errors.py and status.h have the same numbers, names and reasons."""

import re
from pathlib import Path

import pytest

from kvstore import _native, errors
from kvstore.errors import RAISED, TABLE, KvstoreError, MissReason, Status

STATUS_H = Path(__file__).resolve().parents[2] / "native/src/base/status.h"


def native_codes() -> dict[str, int]:
    text = STATUS_H.read_text()
    body = text[text.index("enum class Code") : text.index("};", text.index("enum class Code"))]
    return {name: int(number) for name, number in re.findall(r"k(\w+) = (-?\d+)", body)}


def test_numbers_and_names_equal_the_native_ones() -> None:
    assert {status.name: int(status) for status in Status} == native_codes()
    for status in Status:
        assert _native.code_name(status) == status.name
    assert _native.code_name(-999) == "Unknown"


def test_miss_reasons_equal_the_native_ones() -> None:
    names = [_native.miss_reason_name(i) for i in range(_native.MISS_REASON_COUNT)]
    assert [reason.value for reason in MissReason] == names


def test_every_status_has_a_row_and_every_class_a_status() -> None:
    assert set(TABLE) == set(Status)
    for status, row in TABLE.items():
        assert issubclass(row.error, KvstoreError)
        assert row.grpc.isupper()
        assert not (status.ok and row.retryable)
    classes = {row.error for row in TABLE.values()}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, KvstoreError):
            assert value in classes, f"{name} stands in no row"


@pytest.mark.parametrize("status", list(Status))
def test_error_for_keeps_code_and_sentence(status: Status) -> None:
    error = errors.error_for(status, "what happened")
    assert isinstance(error, TABLE[status].error)
    assert error.status is status
    assert str(error) == "what happened"
    assert str(errors.error_for(status)) == status.name


def test_an_unknown_code_is_internal() -> None:
    error = errors.error_for(-4711)
    assert error.status is Status.Internal
    assert "-4711" in str(error)


def test_what_is_raised_is_what_a_caller_fixes() -> None:
    assert not any(status.retryable or status.ok for status in RAISED)


def test_grpc_names_lead_back() -> None:
    assert errors.status_for_grpc("UNAVAILABLE") is Status.Unavailable
    assert errors.status_for_grpc("NOT_FOUND") is Status.NotFound
    assert errors.status_for_grpc("NO_SUCH_NAME") is Status.Internal


def test_a_status_shows_its_name_and_compares_with_numbers() -> None:
    assert str(Status.NoSpace) == "NoSpace"
    number: int = -3
    assert Status.NoSpace == number
    assert Status.AlreadyExists.ok and Status.Ok.ok and not Status.Partial.ok


def test_a_failed_rpc_becomes_what_its_metadata_names_else_its_code() -> None:
    named = errors.error_from_rpc("ABORTED", "why", [("x", "1"), ("kvstore-status", "-9")])
    assert isinstance(named, errors.PermissionDeniedError) and str(named) == "why"
    for trailing in (None, [("x", "1")]):
        plain = errors.error_from_rpc("UNAVAILABLE", "", trailing)
        assert isinstance(plain, errors.UnavailableError) and str(plain) == "UNAVAILABLE"
