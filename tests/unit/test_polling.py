from __future__ import annotations

import os

import pytest

import kvstore
from kvstore import polling


@pytest.mark.parametrize(("cpus", "chosen"), [(1, 0), (7, 0), (8, 20), (200, 20)])
def test_nobody_polls_where_cpus_are_few(
    cpus: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cpus)))
    assert polling.poll_us(polling.AUTO) == chosen


def test_a_setting_is_what_it_says() -> None:
    assert [polling.poll_us(setting) for setting in (0, 1, 1000)] == [0, 1, 1000]


@pytest.mark.parametrize("wrong", [-2, 1001])
def test_others_are_refused(wrong: int) -> None:
    with pytest.raises(kvstore.InvalidArgumentError, match="poll_us"):
        kvstore.connect("127.0.0.1:1", poll_us=wrong)
