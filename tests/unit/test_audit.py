"""The audit log: whole lines, files that are moved, failures that no call notices."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from kvstore import audit, clock, refusals
from kvstore.audit import AuditLog, Deed
from kvstore.errors import InvalidArgumentError, Status
from kvstore.logging import EventLogger
from kvstore.refusals import Refusal


def note(log: AuditLog, call: str = "Flush", **fields: Any) -> None:
    values = {"outcome": Status.Ok, "arguments": {"namespace": "m"}, **fields}
    log.record(call, principal="ops", peer="ipv4:10.0.0.9:4711", via="grpc", **values)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def started(path: str | os.PathLike[str]) -> AuditLog:
    log = AuditLog("master")
    log.prepare(str(path))()
    return log


def test_a_line_says_who_from_where_what_and_the_outcome(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = started(path)
    note(log, arguments={"namespace": "with\nnewline"})
    note(log, "Drain", outcome=Status.PermissionDenied, arguments={"node_id": "a"})
    log.close()
    first, second = lines(path)
    assert first.pop("time").endswith("Z")
    assert first == {
        "process": "master",
        "principal": "ops",
        "peer": "ipv4:10.0.0.9:4711",
        "via": "grpc",
        "call": "Flush",
        "arguments": {"namespace": "with\nnewline"},
        "outcome": "Ok",
    }
    assert (second["call"], second["outcome"]) == ("Drain", "PermissionDenied")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert log.counts == {"written": 2, "lost": 0}


def test_an_argument_is_as_long_as_a_stranger_likes_but_not_the_line(tmp_path: Path) -> None:
    log = started(tmp_path / "audit.jsonl")
    note(log, arguments={"node_id": "x" * (1 << 20), "cancel": True})
    log.close()
    (line,) = lines(tmp_path / "audit.jsonl")
    assert line["arguments"]["node_id"].endswith("… (1048576 characters)")
    assert line["arguments"]["cancel"] is True and len(str(line)) < 2000


def test_it_is_appended_to_and_without_a_file_nothing_happens(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        log = started(path)
        note(log)
        log.close()
    assert len(lines(path)) == 2
    off = started("")
    note(off)
    off.close()
    assert off.counts == {"written": 0, "lost": 0}


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    log = started(path)
    note(log, "one")
    while log.counts["written"] < 1:
        clock.pause_s(0.001)
    path.rename(moved)
    note(log, "two")
    log.close()
    assert [line["call"] for line in lines(moved)] == ["one"]
    assert [line["call"] for line in lines(path)] == ["two"]


def test_a_failed_write_is_a_warning_and_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    log = started(path)
    real, room = os.write, [10, 0]

    def full(file: int, data: bytes) -> int:
        if not room:
            return real(file, data)
        if not (size := room.pop(0)):
            raise OSError(28, "No space left on device")
        return real(file, data[:size])

    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING, "kvstore"):
        for call in ("one", "two", "three"):
            note(log, call)
        log.close()
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 10 and json.loads(whole)["call"] == "three"
    assert log.counts == {"written": 1, "lost": 2}
    assert [record.getMessage() for record in caplog.records] == ["audit_not_written"]
    (family,) = log.families()
    assert {s.labels["result"]: s.value for s in family.samples} == {"written": 1, "lost": 2}


def test_a_folder_that_goes_away_fails_no_call(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = started(folder / "audit.jsonl")
    (folder / "audit.jsonl").unlink()
    folder.rmdir()
    note(log)
    log.close()
    assert log.counts == {"written": 0, "lost": 1}


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/full", tmp_path, tmp_path / "fifo", tmp_path / "no" / "file", "a\0b"):
        with pytest.raises(InvalidArgumentError, match="audit_log"):
            AuditLog("master").prepare(str(path))


def test_a_full_queue_loses_lines_and_waits_for_nobody(tmp_path: Path) -> None:
    log = AuditLog("master")
    log.prepare(str(tmp_path / "audit.jsonl"))
    log._path = "stopped: nobody writes"
    for _ in range(audit._MAX_WAITING + 5):
        note(log)
    assert log.counts["lost"] == 5


def test_what_repeats_is_one_line_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = 1_000_000
    monkeypatch.setattr(clock, "monotonic_ms", lambda: now_ms)
    log = started(tmp_path / "audit.jsonl")
    for _ in range(1000):
        note(log, "Drain", repeats=True)
    note(log, "Drain", repeats=True, arguments={"namespace": "other"})
    note(log, "Drain", repeats=True, outcome=Status.NotFound)
    now_ms += 60_000
    note(log, "Drain", repeats=True)
    log.close()
    assert len(lines(tmp_path / "audit.jsonl")) == 4


def test_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log = started("stderr")
    note(log)
    log.close()
    assert json.loads(capsys.readouterr().err)["call"] == "Flush"


def test_deeds_of_the_block_protocol_are_taken(tmp_path: Path) -> None:
    def deed(call: str, keys: int = 0, prefix: str = "") -> Deed:
        return Deed(
            call=call,
            principal="engine",
            address="10.0.0.9:1",
            client="c",
            tenant="t",
            namespace="m",
            keys=keys,
            prefix=prefix,
            status=0,
        )

    deeds = [deed("Flush"), deed("Remove", 3), *[deed("List", prefix="\x1b[31m\n")] * 5]

    class Core:
        def take_deeds(self) -> tuple[list[Deed], int]:
            return deeds, 7

    log = started(tmp_path / "audit.jsonl")
    audit.write_deeds(Core(), log)
    log.close()
    line, remove, listed = lines(tmp_path / "audit.jsonl")
    assert (line["principal"], line["via"], line["peer"]) == ("engine", "block", "10.0.0.9:1")
    assert line["arguments"] == {"tenant": "t", "namespace": "m", "client": "c"}
    assert (remove["call"], remove["arguments"]["keys"]) == ("Remove", 3)
    assert (listed["call"], listed["arguments"]["prefix"]) == ("List", "\x1b[31m\n")
    assert "\x1b" not in (tmp_path / "audit.jsonl").read_text(), (
        "what a terminal acts on is escaped"
    )
    assert log.counts["lost"] == 7


def test_refused_peers_are_told_once_a_minute(tmp_path: Path) -> None:
    def refusal(status: Status, reason: str) -> Refusal:
        return Refusal(status=status, host="10.0.0.9", principal="e\n", reason=reason, count=3)

    class Core:
        def take_refusals(self) -> list[Refusal]:
            return [
                refusal(Status.Unauthenticated, "e\n: wrong token"),
                refusal(Status.PermissionDenied, "e\n may not list"),
                refusal(Status.ProtocolError, "no frame"),
            ]

    async def report(log: AuditLog) -> None:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(
                    refusals.report(Core(), EventLogger("test"), log.record), 0.01
                )

    log = started(tmp_path / "audit.jsonl")
    asyncio.run(report(log))
    log.close()
    wrong, denied = lines(tmp_path / "audit.jsonl")
    assert (wrong["call"], wrong["principal"], wrong["peer"]) == ("Refused", "e\n", "10.0.0.9")
    assert wrong["arguments"] == {"reason": "wrong token"} and wrong["outcome"] == "Unauthenticated"
    assert denied["arguments"] == {"reason": "e\n may not list"}
