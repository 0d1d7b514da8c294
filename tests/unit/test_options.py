"""Options given by name: every reader refuses unknown, missing and wrong ones the same way."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from kvstore.errors import InvalidArgumentError
from kvstore.options import Addresses, one_of, read, read_object, refuse_unknown, whole_number


@dataclass(frozen=True, kw_only=True)
class Base:
    master: Addresses
    transport: Literal["auto", "tcp"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    timeout_ms: int = 5
    rate: float = 0.0
    save: bool | None = None
    name: str = ""


def test_values_take_the_type_of_their_field() -> None:
    given = {"master": ["a:1", "b:1"], "rate": 5, "save": None, "hers": 1}
    found = read(Derived, given, "", ignored=["hers"])
    assert found == Derived(master=("a:1", "b:1"), rate=5.0)
    assert isinstance(found.rate, float)
    assert read(Derived, {"master": "a:1", "save": False}, "").save is False


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"timeout_ms": 5}, "'master' is missing"),
        ({"mastr": "a:1"}, "unknown key 'mastr'; did you mean 'master'"),
        ({"qqq": 1}, "unknown key 'qqq'; known keys: master, transport, timeout_ms, rate"),
        ({"master": ["a:1", 5]}, "'master' must be a string \"HOST:PORT\" or a list of them"),
        ({"master": ""}, "'master' must be"),
        ({"master": None}, "'master' must be"),
        ({"master": "a:1", "transport": "udp"}, "'transport' must be one of auto, tcp, not 'udp'"),
        ({"master": "a:1", "timeout_ms": 1.5}, "'timeout_ms' must be a whole number, 0 or more"),
        ({"master": "a:1", "timeout_ms": False}, "'timeout_ms' must be a whole number"),
        ({"master": "a:1", "rate": float("nan")}, "'rate' must be a number, 0 or more"),
        ({"master": "a:1", "rate": "5"}, "'rate' must be a number"),
        ({"master": "a:1", "save": 1}, "'save' must be true or false, not 1"),
        ({"master": "a:1", "name": None}, "'name' must be a string, not None"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read(Derived, given, "here: ")
    assert str(caught.value).startswith(f"here: {sentence}")


def test_a_known_name_is_never_refused() -> None:
    refuse_unknown(["a", "b"], ["b", "a"])
    with pytest.raises(InvalidArgumentError, match="unknown key 5; known keys: a"):
        refuse_unknown([5], ["a"])  # type: ignore[list-item]


def test_ranges_and_choices() -> None:
    assert whole_number("n", 3, 1, 3) == 3
    assert whole_number("n", None, 1, 3, optional=True) == 0
    for wrong in (0, 4, "2", 2.0, None):
        with pytest.raises(InvalidArgumentError, match=r"^n must be 1 to 3, not "):
            whole_number("n", wrong, 1, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"^n must be None or 1 to 3, not 9$"):
        whole_number("n", 9, 1, 3, optional=True)
    one_of("pin", None, (None, "soft"))
    with pytest.raises(InvalidArgumentError, match=r'^pin must be None, "soft" or "hard", not 5$'):
        one_of("pin", 5, (None, "soft", "hard"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "here: No such file or directory"),
        (b"[1]", "here: not a JSON object"),
        (b"{", "here: not JSON: "),
        (b"", "here: not JSON: "),
        (b" " * ((1 << 20) + 1), "here: larger than 1 MiB"),
        (b'{"a": "\xff"}', "here: not JSON: 'utf-8' codec"),
        (b'{"a": ' * 100_000, "here: nested too deeply"),
        (b'{"a": 1, "a": 2}', "here: 'a' stands there twice"),
        (b'{"b": {"a": 1, "a": 2}}', "here: 'a' stands there twice"),
        (b'{"a": NaN}', "here: NaN is no number of JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "here: not JSON: "),
        (b'{"a": "x\\u0000"}', "here: 'a' has a character that cannot be printed: 'x\\x00'"),
        (b'{"a": ["x", "\\ud800"]}', "here: 'a' has a character that cannot be printed"),
        (b'{"a": "x\\ny"}', "here: 'a' has a character that cannot be printed"),
    ],
)
def test_files_that_hold_no_options(tmp_path: Path, text: bytes | None, sentence: str) -> None:
    file = tmp_path / "options.json"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(InvalidArgumentError) as caught:
        read_object(file, "here: ")
    assert str(caught.value).startswith(sentence)


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.options._PIPE_S", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, sentence in {
        str(pipe): "here: nothing to read within 0.1 s",
        str(tmp_path): "here: Is a directory",
        "a\0b": "here: a path has no NUL",
    }.items():
        with pytest.raises(InvalidArgumentError) as caught:
            read_object(path, "here: ")
        assert str(caught.value) == sentence


def test_a_pipe_is_read_until_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as stream:
            stream.write(b'{"a": "' + b"x" * 100_000)
            stream.write(b'"}')

    writer = threading.Thread(target=write)
    writer.start()
    assert read_object(pipe, "") == {"a": "x" * 100_000}
    writer.join()


def test_a_file_of_options(tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text('{"master": "a:1"}')
    assert read_object(file, "") == {"master": "a:1"}
