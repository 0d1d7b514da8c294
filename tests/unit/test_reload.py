"""What a changed configuration does to a running process: compared, applied, refused, watched."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore import reload
from kvstore.config import MasterConfig, NodeConfig
from kvstore.errors import InvalidArgumentError
from kvstore.reload import Apply, Reloader, compare
from tests.support.coroutines import until


def test_what_reloads_is_applied_and_what_does_not_waits() -> None:
    running = NodeConfig(port=1, reservation_ms=30_000, shm_write=("a",))
    wanted = NodeConfig(port=2, reservation_ms=10_000, shm_write=("a", "b"))
    outcome = compare(running, wanted)
    assert outcome.applied == ("shm_write", "reservation_ms")
    assert outcome.restart_needed == ("port",)
    assert outcome.effective == NodeConfig(port=1, reservation_ms=10_000, shm_write=("a", "b"))


def test_nothing_changed_is_nothing_to_do() -> None:
    running = MasterConfig(port=7)
    outcome = compare(running, MasterConfig(port=7))
    assert (outcome.effective, outcome.applied, outcome.restart_needed) == (running, (), ())


def test_a_restart_is_no_longer_needed_once_the_old_value_is_back() -> None:
    running = compare(MasterConfig(port=1), MasterConfig(port=2, repair_copies=5)).effective
    outcome = compare(running, MasterConfig(port=1, repair_copies=5))
    assert (outcome.applied, outcome.restart_needed) == ((), ())


@pytest.mark.parametrize("kind", [MasterConfig, NodeConfig])
def test_authentication_is_turned_on_at_run_time_and_off_by_a_restart_only(
    kind: type[MasterConfig] | type[NodeConfig],
) -> None:
    off, on, other = kind(), kind(auth_token_file="/a"), kind(auth_token_file="/b")
    assert compare(off, on).applied == ("auth_token_file",)
    assert compare(on, other).applied == ("auth_token_file",)
    outcome = compare(on, off)
    assert outcome.restart_needed == ("auth_token_file",)
    assert outcome.effective.auth_token_file == "/a"


def test_values_that_only_fit_after_a_restart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def live(kind: object, name: str, value: object) -> bool:
        return name != "heartbeat_ms"

    monkeypatch.setattr("kvstore.config.reloads", live)
    with pytest.raises(InvalidArgumentError, match=r"node_ttl_ms.*heartbeat_ms cannot change"):
        compare(MasterConfig(), MasterConfig(heartbeat_ms=100, node_ttl_ms=200))


class Process:
    """A process with a configuration file, as far as the reloader is concerned."""

    def __init__(self, folder: Path, **flags: Any) -> None:
        self.path = folder / "config.json"
        self.write({"http_port": 1})
        self.in_effect: list[NodeConfig] = []
        self.reloader = Reloader(NodeConfig, self.path, flags)
        self.reloader.on_change(self.prepare)
        self.results = self.reloader.reloads.results

    def write(self, values: object) -> None:
        self.path.write_text(values if isinstance(values, str) else json.dumps(values))

    def prepare(self, config: NodeConfig) -> Apply:
        if config.reservation_ms == 13:
            raise InvalidArgumentError("the process refuses it")
        if config.reservation_ms == 17:
            raise RuntimeError("a bug")
        return lambda: self.in_effect.append(config)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    yield Process(tmp_path)
    logging.getLogger("kvstore").setLevel(logging.NOTSET)


def test_the_command_line_stays_over_the_file(tmp_path: Path) -> None:
    process = Process(tmp_path, reservation_ms=500)
    process.write({"http_port": 1, "reservation_ms": 700, "client_cap_bytes": "1mb"})
    process.reloader.reload("sighup")
    (config,) = process.in_effect
    assert (config.reservation_ms, config.client_cap_bytes) == (500, 1 << 20)


def test_the_log_level_is_set(process: Process) -> None:
    process.write({"http_port": 1, "log_level": "error"})
    process.reloader.reload("sighup")
    assert logging.getLogger("kvstore").level == logging.ERROR
    assert process.results["applied"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"http_port": 1, "reserv', "not JSON"),  # half written
        ({"reservation_sm": 5}, "did you mean 'reservation_ms'"),
        ({"reservation_ms": 0}, "reservation_ms"),
        ({"reservation_ms": 13}, "the process refuses it"),
        ("", "not JSON"),
        ('{"labels": ' * 50_000, "nested too deeply"),
        ({"reservation_ms": 17}, "a bug"),
    ],
)
def test_what_is_wrong_changes_nothing_and_says_so(
    process: Process, content: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = process.reloader.config
    process.write(content)
    process.reloader.reload("sighup")
    assert process.reloader.config == before and not process.in_effect
    assert process.results == {"applied": 0, "unchanged": 0, "refused": 1, "failed": 0}
    assert words in process.reloader.reloads.refusal
    ready = process.reloader.reloads.readiness(lambda: (True, {"link": "up"}))()
    assert ready[0] and words in ready[1]["config_refused"]
    process.write({"http_port": 1})
    process.reloader.reload("sighup")
    assert process.results["unchanged"] == 1 and not process.reloader.reloads.refusal


def test_a_refused_start_says_the_same_sentence(process: Process) -> None:
    process.write({"reservation_ms": 0})
    process.reloader.reload("sighup")
    with pytest.raises(InvalidArgumentError) as start:
        Reloader(NodeConfig, process.path, {})
    assert process.reloader.reloads.refusal == str(start.value)


def test_what_waits_for_a_restart_is_shown(process: Process) -> None:
    process.write({"http_port": 2, "segment_size": "2gb"})
    process.reloader.reload("sighup")
    reloads = process.reloader.reloads
    assert reloads.restart_needed == ("http_port", "segment_size")
    values = {
        (s.name, s.labels.get("result")): s.value for f in reloads.families() for s in f.samples
    }
    assert values["kvstore_config_restart_needed", None] == 2
    assert values["kvstore_config_reloads_total", "unchanged"] == 1
    assert values["kvstore_config_refused", None] == 0
    assert reloads.readiness(lambda: (False, {}))() == (
        False,
        {"restart_needed": ["http_port", "segment_size"]},
    )


def watched(process: Process, steps: list[tuple[Callable[[], None], Callable[[], bool]]]) -> None:
    """Run the watch; take each step once the condition of the one before holds."""

    async def drive() -> None:
        watch = asyncio.create_task(process.reloader.watch())
        try:
            for number, (change, done) in enumerate(steps):
                change()
                await until(lambda: done() or watch.done(), f"step {number}")  # noqa: B023
                assert not watch.done(), watch.exception()
        finally:
            watch.cancel()

    asyncio.run(drive())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_LOOK_S", 0.002)


@pytest.mark.usefixtures("quick")
def test_a_file_is_watched_through_links_renames_and_mistakes(tmp_path: Path) -> None:
    first, second, link = tmp_path / "..1", tmp_path / "..2", tmp_path / "..data"
    for number, folder in enumerate((first, second), 1):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"reservation_ms": number * 1000}))
    link.symlink_to(first.name)
    process = Process(tmp_path)
    process.path.unlink()
    process.path.symlink_to("..data/config.json")
    process.reloader.reload("test")

    def now(reservation_ms: int) -> Callable[[], bool]:
        return lambda: process.reloader.config.reservation_ms == reservation_ms

    def exchange_link() -> None:
        (tmp_path / "..new").symlink_to(second.name)
        os.rename(tmp_path / "..new", link)

    def rename() -> None:
        (tmp_path / "edited").write_text(json.dumps({"reservation_ms": 3000}))
        os.rename(tmp_path / "edited", process.path)

    watched(
        process,
        [
            (lambda: None, now(1000)),
            (exchange_link, now(2000)),
            (rename, now(3000)),
            (process.path.unlink, lambda: process.results["refused"] == 1),
            (lambda: process.write({"reservation_ms": 4000}), now(4000)),
            (lambda: process.write("{"), lambda: process.results["refused"] == 2),
            (lambda: process.write({"reservation_ms": 5000}), now(5000)),
        ],
    )
    assert process.results["refused"] == 2


@pytest.mark.usefixtures("quick")
def test_the_token_file_is_watched_even_while_it_is_refused(tmp_path: Path) -> None:
    process = Process(tmp_path)
    token = tmp_path / "token"
    token.write_text("first")
    refuse = [True]

    def prepare(config: NodeConfig) -> Apply:
        if refuse[0]:
            raise InvalidArgumentError("mode 0644 lets others read it")
        return lambda: process.in_effect.append(config)

    process.reloader.on_change(prepare)

    def write(path: Path, text: str) -> None:
        path.write_text(text)

    def put_right() -> None:
        refuse[0] = False
        token.chmod(0o600)

    token.chmod(0o644)
    watched(
        process,
        [
            (
                lambda: process.write({"auth_token_file": str(token)}),
                lambda: process.results["refused"] == 1,
            ),
            (put_right, lambda: process.results["applied"] == 1),
            (lambda: write(token, "second"), lambda: process.results["applied"] == 2),
        ],
    )
    assert process.results == {"applied": 2, "unchanged": 0, "refused": 1, "failed": 0}


def test_a_pipe_is_read_once_at_the_start() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b'{"reservation_ms": 77}')
        os.close(writer)
        assert Reloader(NodeConfig, f"/dev/fd/{reader}", {}).config.reservation_ms == 77
    finally:
        os.close(reader)


def test_an_error_while_applying_is_counted_and_tried_again(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(config: NodeConfig) -> Apply:
        def apply() -> None:
            raise RuntimeError("a bug")

        return apply

    process.reloader.on_change(broken)
    process.write({"http_port": 1, "reservation_ms": 7})
    process.reloader.reload("sighup")
    assert process.results["failed"] == 1
    process.reloader.on_change(process.prepare)
    process.reloader.reload("sighup")
    assert [config.reservation_ms for config in process.in_effect] == [7]


@pytest.mark.usefixtures("quick")
def test_a_file_is_taken_once_nobody_writes_it_any_more(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [0]

    def still_being_written(path: object) -> str:
        if path != process.path:
            return ""
        looks[0] += 1
        return f"content {min(looks[0], 20)}"

    monkeypatch.setattr(reload, "_fingerprint", still_being_written)
    watched(process, [(lambda: None, lambda: looks[0] > 40)])
    assert process.results["unchanged"] == 1
