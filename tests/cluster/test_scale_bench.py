"""The scale benchmark runs, and its cluster answers rightly: not how far a master carries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import ROOT
from bench.scale.phases import PROGRAM
from tests.support.processes import run_to_end

pytestmark = pytest.mark.cluster

_PHASES = ["join", "heartbeats", "lookups, no pauses", "lookups", "churn", "churn, watched"]
_PHASES += ["rack killed", "rack without power", "restart", "lookups after the restart"]


@pytest.fixture(scope="module")
def generator() -> None:
    folder = PROGRAM.parent
    if not (folder / "build.ninja").exists():
        pytest.skip("there is no build folder: make test")
    ninja = Path(sys.executable).parent / "ninja"
    subprocess.run([ninja, "-C", folder, PROGRAM.name], check=True, capture_output=True)


@pytest.mark.usefixtures("generator")
def test_a_small_cluster_goes_through_every_phase(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.scale", "--quick", "--json", "--out", str(tmp_path)]
    out, _ = run_to_end(command, ROOT)
    found = json.loads(out)
    assert found == json.loads((tmp_path / "results.json").read_text())
    rows = found["phases"]
    assert list(rows) == _PHASES
    assert "| restart |" in (tmp_path / "table.md").read_text()
    assert rows["join"]["objects"] >= 100_000 and rows["join"]["refused"] == 0
    for name, row in rows.items():
        if "found" in row:
            assert row["found"] > 0 and row["wrong"] == row["failed"] == 0, name
    assert rows["heartbeats"]["over_links_per_s"] > 0
    assert rows["lookups"]["missing"] == rows["lookups"]["down"] == 0
    assert rows["churn"]["claimed"] > 0
    assert rows["churn, watched"]["watchers"]["events"] > 0
    for rack in ("rack killed", "rack without power"):
        assert rows[rack]["nodes"] == 4 and rows[rack]["down"] > 0
    assert rows["rack without power"]["named_for_ms"] >= rows["rack killed"]["named_for_ms"]
    # Two racks of four do not come back. The other twelve announce what they had and have written.
    assert rows["restart"]["objects"] >= 12 * 4_900
    after = rows["lookups after the restart"]
    assert 0.3 < after["down"] / (after["found"] + after["down"]) < 0.5
