"""Programs that the doctor runs beside itself: crashes, hangs and floods are answers, too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvstore.doctor.programs import ask, ask_library


def said(code: str, timeout_s: float = 20.0) -> tuple[dict[str, object], str]:
    answer = ask([sys.executable, "-I", "-c", code], timeout_s)
    return answer.values, answer.error


def test_the_last_line_is_the_answer() -> None:
    assert said("print('UCX WARN x'); print('{\"a\": 1}')") == ({"a": 1}, "")
    assert said('print(\'{"error": "no", "b": 2}\')') == ({"error": "no", "b": 2}, "no")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.abort()", "crashed with signal 6"),
        ("import sys; print('because'); sys.exit(3)", "exited with 3: because"),
        ("pass", "exited with 0"),
        ("print('no JSON')", "exited with 0: no JSON"),
        ("print('[1]')", "exited with 0: [1]"),
        ("print('[' * 30000)", "exited with 0: [["),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)))", "exited with 0: "),
        ("while True: print('x' * 1000)", "crashed with signal 9: xxx"),
    ],
)
def test_anything_else_is_an_error_in_words(code: str, error: str) -> None:
    values, why = said(code)
    assert not values and why.startswith(error) and len(why) < 400


def test_a_program_that_hangs_is_killed() -> None:
    assert said("import signal; signal.pause()", 0.5) == ({}, "no answer within 0.5 s")


def test_a_program_that_is_not_there_is_an_error() -> None:
    assert ask(["/nowhere/python"], 1.0).error == "/nowhere/python: No such file or directory"


@pytest.mark.parametrize("kind", ["ucx", "cuda"])
def test_a_library_that_is_not_one_is_an_error(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "library.so"
    file.write_bytes(b"\x7fELF" + bytes(100))
    assert str(file) in ask_library(kind, str(file)).error
    assert "No such file" in ask_library(kind, "/nowhere/library.so").error
    assert "undefined symbol" in ask_library(kind, "libc.so.6").error
