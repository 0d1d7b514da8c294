"""Export and import of the master's state: the same state comes back, and nothing half of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvstore.cli.master import main
from kvstore.errors import InvalidArgumentError
from kvstore.master import state_export
from kvstore.master.lmdb_state import LmdbState
from tests.unit.test_lmdb_state import fill, record


def lines_of(directory: Path) -> list[str]:
    return list(state_export.lines(state_export.check(directory, keep=True)))


def restored(directory: Path, lines: list[str], force: bool = False) -> str:
    rows = state_export.parse([line.encode() for line in lines], "file")
    return state_export.restore(directory, rows, force=force)


def master(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["--data-dir", str(directory), *options])


def test_an_import_goes_on_where_the_export_ended(tmp_path: Path) -> None:
    cluster = fill(tmp_path / "a")
    lines = lines_of(tmp_path / "a")
    assert restored(tmp_path / "b", lines) == ""
    assert lines_of(tmp_path / "b") == lines
    before, after = LmdbState(tmp_path / "a"), LmdbState(tmp_path / "b")
    assert after.cluster_id == before.cluster_id == cluster
    assert (after.epoch, after.hash_secret) == (before.epoch, before.hash_secret)
    assert after.nodes() == before.nodes() == [record("a")]
    assert after.ops() == before.ops() and len(after.ops()) == 99
    assert after.namespaces() == before.namespaces()
    assert after.trimmed() == before.trimmed() == (100, 42)
    before.close()
    after.close()


def test_a_state_that_is_there_is_replaced_by_force_only(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    other = fill(tmp_path / "b")
    lines = lines_of(tmp_path / "a")
    with pytest.raises(InvalidArgumentError, match="holds a state: --force"):
        restored(tmp_path / "b", lines)
    assert restored(tmp_path / "b", lines, force=True) == "data.mdb.1"
    assert lines_of(tmp_path / "b") == lines
    (tmp_path / "b" / "data.mdb.1").replace(tmp_path / "b" / "data.mdb")
    (tmp_path / "b" / "cluster.1").replace(tmp_path / "b" / "cluster")
    assert state_export.check(tmp_path / "b").cluster_id == other


def test_a_lost_state_is_restored_above_its_last_epoch(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    lines = lines_of(tmp_path / "a")
    for _ in range(4):
        LmdbState(tmp_path / "a").close()
    (tmp_path / "a" / "data.mdb").unlink()
    assert restored(tmp_path / "a", lines) == ""
    state = LmdbState(tmp_path / "a")
    assert state.epoch == 6
    state.close()
    fill(tmp_path / "b")
    (tmp_path / "b" / "data.mdb").unlink()
    with pytest.raises(InvalidArgumentError, match="is not that of cluster"):
        restored(tmp_path / "b", lines)


def test_a_changed_or_cut_export_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    lines = lines_of(tmp_path / "a")
    row = next(number for number, line in enumerate(lines) if '"nodes"' in line)
    without_rows = state_export.check(tmp_path / "a")
    changes = {
        "lacks the cluster's id": list(state_export.lines(without_rows)),
        "its last line is missing": lines[:-1],
        "was changed": [*lines[:row], lines[row].replace(": true", ": false"), *lines[row + 1 :]],
        "wrong number": [*lines[:5], *lines[6:]],
        "line 4: ": [*lines[:3], "{\n", *lines[4:]],
        "line 5: unknown table 'x'": [*lines[:4], '{"table": "x"}\n', *lines[5:]],
        "line 6: 'name' is missing": [*lines[:5], '{"table": "meta"}\n', *lines[6:]],
        "not an export of this format": ['{"kvstore_master_state": 2}\n', *lines[1:]],
        "not a line of an export": [*lines, lines[3]],
        "nested|recursion": [*lines[:3], "[" * 100_000 + "\n", *lines[4:]],
        "line 1: ": ["\xff\n", *lines[1:]],
        "last line is missing": [],
    }
    for words, changed in changes.items():
        with pytest.raises(InvalidArgumentError, match=words):
            restored(tmp_path / "b", changed)
        assert not (tmp_path / "b").exists()


def test_the_commands(tmp_path: Path) -> None:
    directory, file = tmp_path / "a", tmp_path / "state.jsonl"
    cluster = fill(directory)
    told = json.loads(master(directory, "--check", "--json").stdout)
    assert told["valid"] is False  # the test's own operations are none that a master knows
    assert "table ops, record 101" in told["error"]
    assert master(directory, "--check").exit_code == 5
    state = LmdbState(directory)
    state.trim(1000, 42, [])
    state.close()
    told = json.loads(master(directory, "--check", "--json").stdout)
    assert (told["valid"], told["cluster_id"], told["epoch"]) == (True, cluster, 2)
    assert told["records"]["nodes"] == 1
    exported = master(directory, "--export", str(file))
    assert exported.exit_code == 0 and cluster in exported.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    assert master(directory, "--export", "-").stdout == file.read_text()
    refused = master(directory, "--import", str(file))
    assert refused.exit_code == 2 and "--force" in refused.stderr
    assert master(tmp_path / "b", "--import", str(file)).exit_code == 0
    assert master(tmp_path / "b", "--export", "-").stdout == file.read_text()


def test_wrong_combinations_and_missing_states_are_usage_errors(tmp_path: Path) -> None:
    assert master(tmp_path, "--check").exit_code == 2  # nothing there yet
    assert not (tmp_path / "data.mdb").exists()
    assert master(tmp_path / "none", "--check").exit_code == 5
    assert not (tmp_path / "none").exists()
    assert master(tmp_path, "--check", "--export", "-").exit_code == 2
    assert master(tmp_path, "--force").exit_code == 2
    assert master(tmp_path, "--import", str(tmp_path / "none")).exit_code == 5


def test_nothing_is_done_under_a_running_master(tmp_path: Path) -> None:
    state = LmdbState(tmp_path)
    for options in (["--check"], ["--export", "-"], ["--import", "/dev/null"]):
        command = [sys.executable, "-m", "kvstore.cli.master", "--data-dir", str(tmp_path)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        expected = 2 if "/dev/null" in options else 3
        assert done.returncode == expected, done.stderr
        assert expected == 2 or "another master is active" in done.stderr
    state.close()
