"""One line per event; fields that cannot break it; other libraries under the same roof."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from kvstore import clock
from kvstore.logging import (
    EventFormatter,
    EventLogger,
    JsonFormatter,
    Recurring,
    RecurringByKey,
    in_json,
    setup,
)


@pytest.fixture
def own_root() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("kvstore").level
    yield
    root.handlers[:], root.level = before[0], before[1]
    logging.getLogger("kvstore").setLevel(before[2])


def test_an_event_is_one_line(own_root: None, capfd: pytest.CaptureFixture[str]) -> None:
    setup("info")
    log = EventLogger("part")
    log.info("joined", node_id="a", text="two words", empty="", quote='"', line="a\nb", n=3)
    log.debug("hidden")
    log.warning("odd")
    first, second = capfd.readouterr().err.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO part joined node_id=a ", first)
    assert first.endswith(r'text="two words" empty="" quote="\"" line="a\nb" n=3')
    assert second.endswith("WARNING part odd")


def test_another_librarys_message_is_an_event_too(
    own_root: None, capfd: pytest.CaptureFixture[str]
) -> None:
    setup("debug")
    logging.getLogger("other").warning("look %s", "here")
    logging.getLogger("other").info("chatter")
    assert capfd.readouterr().err.rstrip().endswith('WARNING other message text="look here"')


def test_an_exception_brings_its_traceback() -> None:
    record = logging.LogRecord("kvstore.part", logging.ERROR, "", 0, "broke", None, None)
    try:
        raise ValueError("why")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    first, *rest = EventFormatter().format(record).splitlines()
    assert "ERROR part" in first and rest[-1] == "ValueError: why"


def test_json_has_one_object_a_line(own_root: None, capfd: pytest.CaptureFixture[str]) -> None:
    setup("info")
    assert not in_json()
    setup("info", "json")
    assert in_json()
    log = EventLogger("part")
    log.info("joined", node_id="a", n=3, share=0.5, up=True, text='a\nb "c"', level="odd")
    logging.getLogger("other").warning("look %s", "here")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("broke")
    first, second, third = map(json.loads, capfd.readouterr().err.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        **{"level": "INFO", "component": "part", "event": "joined", "level_": "odd"},
        **{"node_id": "a", "n": 3, "share": 0.5, "up": True, "text": 'a\nb "c"'},
    }
    assert (second["event"], second["text"]) == ("message", "look here")
    assert third["traceback"].endswith("ValueError: why")
    assert isinstance(JsonFormatter(), logging.Formatter)


def test_what_recurs_is_logged_at_once_then_once_a_minute(
    own_root: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup("info")
    now = [5_000]
    monkeypatch.setattr(clock, "monotonic_ms", lambda: now[0])
    lost = Recurring(EventLogger("part"), "lost")
    lost.end()
    for _ in range(150):
        lost.warn(error="no answer")
        now[0] += 1000
    lost.end()
    lost.end()
    lost.warn(error="again")
    lines = [line.split(" ", 1)[1] for line in capfd.readouterr().err.splitlines()]
    assert lines == [
        'WARNING part lost error="no answer"',
        'WARNING part lost error="no answer" times=61 for_s=60',
        'WARNING part lost error="no answer" times=121 for_s=120',
        "INFO part recovered what=lost times=150 after_s=150",
        "WARNING part lost error=again",
    ]


def test_each_cause_is_logged_once_and_their_number_is_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = RecurringByKey(EventLogger("part"), "refused")
    with caplog.at_level(logging.WARNING, "kvstore"):
        for _ in range(3):
            for host in ("a", "b"):
                refused.of(("call", host)).warn(host=host)
        assert len(caplog.records) == 2
        for number in range(10_000):
            refused.of(number)
    assert len(refused._known) <= 256
