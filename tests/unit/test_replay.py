"""The replay against a store that is a dictionary: hit rate, verification, hostile traces."""

import random
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvstore.errors import InvalidArgumentError, Status
from kvstore.replay.payload import payload
from kvstore.replay.runner import Replay, percentile_us
from kvstore.replay.trace import Request, generate, read_trace

BLOCK = 512


class DictStore:
    """An exact LRU of `capacity` blocks behind the calls a replay makes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.objects: OrderedDict[str, bytes] = OrderedDict()

    def prefix_length(self, keys: Sequence[str], stride: int = 1) -> int:
        return next((i for i, key in enumerate(keys) if key not in self.objects), len(keys))

    def batch_get_into(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> list[int]:
        for key, buffer in zip(keys, buffers, strict=True):
            buffer[:] = self.objects[key]
            self.objects.move_to_end(key)
        return [BLOCK] * len(keys)

    def batch_put(
        self, keys: Sequence[str], buffers: Sequence[bytes], *, parent: str | None = None
    ) -> list[Status]:
        statuses = []
        for key, buffer in zip(keys, buffers, strict=True):
            statuses.append(Status.AlreadyExists if key in self.objects else Status.Ok)
            self.objects[key] = bytes(buffer)
            self.objects.move_to_end(key)
            if len(self.objects) > self.capacity:
                self.objects.popitem(last=False)
        return statuses


def lru_hit_rate(requests: Sequence[Request], capacity: int) -> float:
    """An independent count of the same thing, on ids alone."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = total = 0
    for request in requests:
        unbroken = True
        for block in request.hash_ids:
            total += 1
            unbroken = unbroken and block in cache
            hits += unbroken
        for block in request.hash_ids:
            cache[block] = None
            cache.move_to_end(block)
            if len(cache) > capacity:
                cache.popitem(last=False)
    return hits / total


@pytest.mark.parametrize("capacity", [100, 1000, 100_000])
def test_hit_rate_is_lrus(capacity: int) -> None:
    requests = generate(seed=7, conversations=30, turns=6)
    replay = Replay(DictStore(capacity), BLOCK, max(len(r.hash_ids) for r in requests))
    tally = replay.run(requests, lambda: None)
    assert tally.requests == len(requests) == 180
    assert tally.hit_rate == pytest.approx(lru_hit_rate(requests, capacity))
    assert tally.wrong_bytes == 0
    assert tally.hit_blocks + sum(tally.put_statuses.values()) == tally.blocks


def test_one_wrong_byte_is_counted() -> None:
    store = DictStore(100)
    replay = Replay(store, BLOCK, 4)
    replay.run([Request(0, 1, 1, (1, 2, 3))], lambda: None)
    stored = bytearray(store.objects["replay/512/2"])
    stored[100] ^= 1
    store.objects["replay/512/2"] = bytes(stored)
    tally = replay.run([Request(0, 1, 1, (1, 2, 3))], lambda: None)
    assert tally.wrong_bytes == 1


def test_payloads_differ_by_id_and_by_position() -> None:
    draw = random.Random(3)
    a, b = payload(1, 65536), payload(2, 65536)
    assert len(a) == 65536 and a == payload(1, 65536) and a[:512] == payload(1, 512)
    for _ in range(100):
        first, second = draw.randrange(0, 65536 - 64), draw.randrange(0, 65536 - 64)
        assert a[first : first + 64] != b[second : second + 64]
        if (first - second) % 4093:
            assert a[first : first + 64] != a[second : second + 64]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1, 2]",
        '{"timestamp": 0}',
        '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [-1]}',
        '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}',
        '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 7}',
    ],
)
def test_a_bad_trace_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    good = '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n'
    path.write_text(good + line + "\n")
    with pytest.raises(InvalidArgumentError, match=r"trace\.jsonl:2"):
        read_trace(path)


def test_an_absent_or_empty_trace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        read_trace(tmp_path / "absent")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InvalidArgumentError, match="no request"):
        read_trace(tmp_path / "empty")


def test_percentiles() -> None:
    assert percentile_us([], 0.5) == 0
    assert percentile_us([i * 1000 for i in range(100)], 0.5) == 50
    assert percentile_us([i * 1000 for i in range(100)], 0.99) == 99
