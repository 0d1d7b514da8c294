"""The benchmark measures, verifies and reports: that it is correct, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.arena import Arena, stamp
from bench.processes import ROOT, BenchError
from bench.selfcheck import check_detection
from tests.support.processes import run_to_end

pytestmark = pytest.mark.cluster

_ROUNDS = 2
_OPERATIONS = {"put_from", "put", "get", "exists", "absent"}
_RUN = ["--only", "shm,tcp,latency", "--size", "4kb", "--working-set", "2mb"]
_RUN += ["--rounds", str(_ROUNDS), "--quiet-limit", "0", "--json"]


@pytest.fixture(scope="module")
def limits_program() -> None:
    subprocess.run(["make", "build/bench/limits"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.usefixtures("limits_program")
def test_a_short_run_has_every_row_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", *_RUN, "--out", str(tmp_path / "out")]
    out, pid = run_to_end(command, ROOT)
    results = json.loads(out)
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"date", "processor", "kernel", "tcp_congestion"} <= set(results["machine"])
    assert [table["shape"]["batch"] for table in results["rounds"]] == [1, 128]
    for table in results["rounds"]:
        assert len(table["foreign_cpu"]) == _ROUNDS
        assert set(table["samples"]) == {"limits", "kvstore-shm", "kvstore-tcp"}
        for name in ("kvstore-shm", "kvstore-tcp"):
            assert set(table["samples"][name]) == _OPERATIONS
            assert {len(samples) for samples in table["samples"][name].values()} == {_ROUNDS}
    for row in results["ratios"]:
        assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert any("flipped" in note and "2 times" in note for note in results["notes"])
    table_page = (tmp_path / "out" / "table.md").read_text()
    assert "kvstore-shm get_into" in table_page and "Latency of one small call" in table_page
    assert not list(Path("/dev/shm").glob(f"kvstore-bench-{pid}-*"))


class _Client:
    """A client whose reads answer as told, whatever was done to the file."""

    def __init__(self, *answers: dict[str, bool]) -> None:
        self._answers = list(answers)

    def ask(self, do: str, **arguments: Any) -> Any:
        return self._answers.pop(0) if do == "read_one" else None


_RIGHT = {"hit": True, "right": True}
_WRONG = {"hit": True, "right": False}
_MISS = {"hit": False, "right": False}


def _segment(folder: Path, key: str) -> Path:
    path = folder / "segment"
    path.write_bytes(bytes(5000) + stamp(key) + bytes(100_000))
    return path


def test_a_flipped_byte_that_is_a_miss_passes_the_self_check(tmp_path: Path) -> None:
    path = _segment(tmp_path, "k")
    before = path.read_bytes()
    assert check_detection([_Client(_RIGHT, _MISS), _Client(_RIGHT, _MISS)], [path], "k") == 2
    changed = [i for i, (a, b) in enumerate(zip(before, path.read_bytes(), strict=True)) if a != b]
    assert len(changed) == 1


@pytest.mark.parametrize("after", [_WRONG, _RIGHT], ids=["wrong bytes", "no flip seen"])
def test_a_store_that_does_not_verify_fails_the_self_check(
    tmp_path: Path, after: dict[str, bool]
) -> None:
    path = _segment(tmp_path, "k")
    with pytest.raises(BenchError):
        check_detection([_Client(_RIGHT, _MISS), _Client(_RIGHT, after)], [path], "k")


def test_nothing_to_flip_fails_the_self_check(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="in no file"):
        check_detection([_Client(_RIGHT, _MISS)], [_segment(tmp_path, "other")], "k")


def test_slots_differ_and_are_signed_by_their_keys() -> None:
    arena, other = Arena(1 << 16), Arena(1 << 16)
    for one in (arena, other):
        one.fill(16, 4096)
        for slot in range(16):
            one.sign(slot, 4096, f"key/{slot}")
    assert all(arena.equal(slot, 4096, other, slot) for slot in range(16))
    assert not arena.equal(0, 4096, other, 1)
    other.view(3, 4096)[4095] ^= 1
    assert not arena.equal(3, 4096, other, 3)
