"""One line per event; fields that cannot break it; other libraries under the same roof."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from kvstore.logging import EventFormatter, EventLogger, setup


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
