"""`kvstore plan` on a live cluster: what it says of another size is what a replay there finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstore.replay.runner import Replay
from kvstore.replay.trace import Request, generate, read_trace
from tests.support.cluster import Cluster
from tests.support.processes import wait_for

BLOCK = 4096
TRACE = Path(__file__).resolve().parents[3] / "shared/data/conversation_trace.jsonl"
REQUESTS = 2500
MAX_MEMORY_BYTES = 1_000_000


def conversation() -> list[Request]:
    if not TRACE.exists():
        pytest.skip(f"needs the public conversation trace at {TRACE}")
    return read_trace(TRACE)[:REQUESTS]


def segment_bytes(blocks: int) -> int:
    return blocks * BLOCK * 65 // 64 + (256 << 10)


@contextmanager
def replayed(folder: Path, requests: list[Request], nodes: list[dict[str, Any]]) -> Iterator[Any]:
    """Replay on a fresh cluster; yields it with the hit rate, once every use was reported."""
    folder.mkdir()
    # A replay of a second or two: with the usual interval, nodes are filled unevenly meanwhile, and
    # report more than a sample has room for.
    (folder / "master.json").write_text('{"heartbeat_ms": 100}')
    cluster = Cluster(folder, ["--config", str(folder / "master.json")])
    try:
        for number, config in enumerate(nodes):
            cluster.start_node(f"n{number}", **config)
        store = cluster.connect(timeout_ms=30_000)
        most = max(len(request.hash_ids) for request in requests)
        tally = Replay(store, BLOCK, most).run(requests, lambda: None)
        blocks = sum(len(request.hash_ids) for request in requests)
        wait_for(
            lambda: cluster.cli("plan")["uses"] >= blocks * 0.999,
            f"{blocks} uses to be reported\n{cluster.logs()}",
            20,
        )
        yield cluster, tally.hit_rate
    finally:
        cluster.close()


def sizes(cluster: Cluster, *options: str) -> dict[str, Any]:
    found = cluster.cli("plan", *options)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("make", "small", "large"),
    [
        (conversation, 8_000, 16_000),
        (lambda: generate(3, conversations=300, turns=8), 2_500, 5_000),
    ],
    ids=["conversation", "multi-turn"],
)
def test_twice_the_memory(
    tmp_path: Path, make: Callable[[], list[Request]], small: int, large: int
) -> None:
    requests = make()
    answers = []
    for name, blocks, other in (("small", small, large), ("large", large, small)):
        nodes = [{"segment_size": segment_bytes(blocks)}]
        with replayed(tmp_path / name, requests, nodes) as (cluster, hit_rate):
            found = sizes(cluster, "--memory", str(segment_bytes(other)))
            # What the nodes count is what the replay counts.
            assert found["hit_rate"] == pytest.approx(hit_rate, abs=0.001)
            assert found["estimate"] == pytest.approx(hit_rate, abs=0.03)
            answers.append((hit_rate, found["plans"][0]["hit_rate"]))
            assert 0 < found["master_memory_bytes"] <= MAX_MEMORY_BYTES
            # A hundredth of the master's time; measured: 0.0003.
            assert found["master_busy_us"] < 0.01 * 1000 * found["observed_ms"]
    (low, of_high), (high, of_low) = answers
    assert high - low > 0.05, "the sizes do not differ enough to tell anything"
    assert of_high == pytest.approx(high, abs=0.02)
    assert of_low == pytest.approx(low, abs=0.02)


def test_keys_are_sampled_alike_on_every_node(tmp_path: Path) -> None:
    requests = generate(4, conversations=200, turns=8)
    half = {"segment_size": segment_bytes(1_800)}
    with replayed(tmp_path / "two", requests, [half, half]) as (cluster, hit_rate):
        found = sizes(cluster)
        assert found["hit_rate"] == pytest.approx(hit_rate, abs=0.001)
        assert found["estimate"] == pytest.approx(hit_rate, abs=0.05)
        rates = [row["hit_rate"] for row in found["plans"]]
        assert rates == sorted(rates)


def test_a_master_that_restarts_begins_anew(tmp_path: Path) -> None:
    requests = generate(5, conversations=40, turns=4)
    with replayed(tmp_path / "m", requests, [{"segment_size": "64mb"}]) as (cluster, _):
        cluster.master.terminate()
        cluster.restart_master()
        cluster.wait_state("n0", "alive")
        store = cluster.connect(timeout_ms=30_000)
        again = generate(5, conversations=40, turns=4)
        most = max(len(request.hash_ids) for request in again)
        tally = Replay(store, BLOCK, most).run(again, lambda: None)
        assert tally.hit_rate == 1.0, "a node keeps its objects"
        wait_for(lambda: cluster.cli("plan")["uses"] > 0, "uses to be reported", 20)
        found = sizes(cluster, "--memory", "64mb")
        # The first uses that the new master saw were hits: they are not cold.
        assert found["plans"][0]["hit_rate"] == pytest.approx(1.0, abs=0.01)
