"""The vLLM connector's parts without vLLM: keys, addresses, decisions and failures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvstore.errors import MissReason, Status
from kvstore.integrations.guard import Guard
from kvstore.integrations.identity import UNKNOWN_PARENT
from kvstore.integrations.link import Link
from kvstore.integrations.vllm.messages import Answer, Load, Loaded, Save, Saved, Step
from kvstore.integrations.vllm.options import Options
from kvstore.integrations.vllm.pages import Blocks, Pages, Region, joined, layout_of, regions_of
from kvstore.integrations.vllm.scheduler import SchedulerSide, Stored
from kvstore.integrations.vllm.worker import WorkerSide

ONE_GROUP = Pages(tokens=32, hash_tokens=32, groups=((0, 32),), ranks=1)
# Full attention in blocks of 64 tokens beside a sliding window in blocks of 32, on two ranks.
HYBRID = Pages(tokens=64, hash_tokens=32, groups=((0, 64), (1, 32)), ranks=2)


def hashes(count: int) -> list[bytes]:
    return [bytes([number]) * 4 for number in range(1, count + 1)]


def test_the_package_needs_no_vllm() -> None:
    import kvstore.integrations.vllm as package

    assert "vllm" not in sys.modules
    with pytest.raises(AttributeError, match="KVStoreConnectr"):
        _ = package.KVStoreConnectr  # type: ignore[attr-defined]


# --- options ---


def test_options_say_what_is_wrong() -> None:
    assert Options.of({"master": "h:1", "lease_ms": 5}).lease_ms == 5
    with pytest.raises(ValueError, match="'master' is missing"):
        Options.of({})
    with pytest.raises(ValueError, match="'lease_m'; did you mean 'lease_ms'"):
        Options.of({"master": "h:1", "lease_m": 5})
    with pytest.raises(ValueError, match="known keys: master, "):
        Options.of({"master": "h:1", "zzzzzz": 5})


# --- pages ---


def test_a_page_of_one_group_is_a_block() -> None:
    assert ONE_GROUP.objects == 1
    assert ONE_GROUP.lookup_keys(hashes(3), 1, 3) == ["02020202-g0-r0", "03030303-g0-r0"]
    blocks = ONE_GROUP.blocks(hashes(3), 0, 2, [[7, 8, 9]])
    assert (blocks.ids, blocks.indexes) == ([7, 8], [0, 1])
    assert blocks.keys(3) == ["01010101-g0-r3", "02020202-g0-r3"]


def test_a_page_of_a_hybrid_model_is_the_blocks_of_all_groups_and_ranks() -> None:
    assert HYBRID.objects == 6
    assert HYBRID.lookup_keys(hashes(2), 0, 1) == [
        "02020202-g0-r0",
        "02020202-g0-r1",
        "01010101-g1-r0",
        "01010101-g1-r1",
        "02020202-g1-r0",
        "02020202-g1-r1",
    ]


def test_blocks_that_a_window_has_left_are_not_moved() -> None:
    blocks = HYBRID.blocks(hashes(4), 0, 2, [[5, 6], [0, 0, 0, 9]])
    assert blocks.names == ["02020202-g0", "04040404-g0", "04040404-g1"]
    assert (blocks.groups, blocks.ids) == ([0, 0, 1], [5, 6, 9])
    assert blocks.indexes == [0, 1, 3]
    assert len(HYBRID.blocks(hashes(4), 0, 2, [[5], [1]])) == 2  # tables end early


# --- addresses ---


def test_a_dense_layer_is_one_region() -> None:
    assert regions_of(1000, (10, 2, 32, 64), (4096, 2048, 64, 1), 4, 10) == [
        Region(1000, 4096 * 4, 4096 * 4)
    ]


def test_the_order_of_dimensions_does_not_tear_a_block_apart() -> None:
    tokens_first = regions_of(0, (10, 2, 32, 64), (4096, 64, 128, 1), 2, 10)
    assert tokens_first == [Region(0, 8192, 8192)]


def test_parts_of_a_block_are_one_block() -> None:
    assert regions_of(0, (40, 2, 8, 64), (1024, 512, 64, 1), 1, 10) == [Region(0, 4096, 4096)]
    with pytest.raises(ValueError, match="does not consist of 7 blocks"):
        regions_of(0, (40, 2, 8, 64), (1024, 512, 64, 1), 1, 7)


def test_layers_that_lie_side_by_side_are_joined() -> None:
    """Two layers interleaved block by block: one region of both."""
    first = regions_of(0, (10, 4), (8, 1), 1, 10)
    second = regions_of(4, (10, 4), (8, 1), 1, 10)
    assert joined(first + second) == [Region(0, 8, 8)]
    assert joined(second + first) == second + first


def test_gaps_within_a_block_make_several_regions() -> None:
    """Heads outside, blocks inside: each head of a block lies elsewhere."""
    assert regions_of(0, (10, 3, 4), (4, 40, 1), 2, 10) == [
        Region(0, 8, 8),
        Region(80, 8, 8),
        Region(160, 8, 8),
    ]


def test_the_layout_tells_orders_of_bytes_apart() -> None:
    heads_first = layout_of((10, 2, 32, 64), (4096, 2048, 64, 1), "f16", 10)
    tokens_first = layout_of((10, 2, 32, 64), (4096, 64, 128, 1), "f16", 10)
    assert heads_first != tokens_first
    assert heads_first == layout_of((20, 2, 32, 64), (9999, 2048, 64, 1), "f16", 20)
    assert heads_first != layout_of((20, 2, 32, 64), (4096, 2048, 64, 1), "f16", 10)
    assert heads_first != layout_of((10, 2, 32, 64), (4096, 2048, 64, 1), "f32", 10)


# --- what ranks say together ---


def test_answers_of_ranks_are_as_good_as_the_worst() -> None:
    answer = Answer({"a": Loaded(64, 0.1, 0, False)}, {1: Saved(1, frozenset({0, 1}))})
    answer.join(Answer({"a": Loaded(64, 0.3, 2, True)}, {1: Saved(1, frozenset({1, 2}))}))
    answer.join(Answer({}, {2: Saved(1, frozenset())}))
    assert answer.loads == {"a": Loaded(64, 0.3, 2, True)}
    assert answer.saves == {1: Saved(2, frozenset({1})), 2: Saved(1, frozenset())}


# --- the scheduler's side ---


@dataclass
class FakeRequest:
    request_id: str = "r"
    num_prompt_tokens: int = 100
    num_computed_tokens: int = 0
    block_hashes: Sequence[bytes] = field(default_factory=lambda: hashes(3))
    skip_reading_prefix_cache: bool = False


class FakeLookup:
    def __init__(self, length: int, reason: MissReason = MissReason.Absent) -> None:
        self.length = length
        self.reason = reason
        self.alive = length > 0
        self.released = 0

    def __len__(self) -> int:
        return self.length

    def release(self) -> None:
        self.released += 1
        self.alive = False


class FakePool:
    def __init__(self, count: int) -> None:
        self.blocks: Sequence[Any] = range(count)
        self.references: dict[int, int] = {}

    def touch(self, blocks: Sequence[Any]) -> None:
        for block in blocks:
            self.references[block] = self.references.get(block, 0) + 1

    def free_blocks(self, ordered_blocks: Any) -> None:
        for block in ordered_blocks:
            self.references[block] -= 1


class FakeStore:
    """Answers lookups from a list; an exception in it is raised."""

    def __init__(self, *answers: FakeLookup | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, dict[str, Any]]] = []

    def lookup(self, keys: Sequence[str], **how: Any) -> FakeLookup:
        self.asked.append((len(keys), how))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        pass


def side_of(
    store: Any, pages: Pages = ONE_GROUP, pool_blocks: int = 100, **how: Any
) -> tuple[SchedulerSide, FakePool]:
    options = how.pop("options", {})
    guard = how.setdefault("guard", Guard("test"))
    side = SchedulerSide(
        options=Options.of({"master": "h:1", **options}),
        pages=pages,
        **{"loads": True, "saves": True, "workers": 1, **how},
    )
    side.start("space", Link(guard, lambda: store))
    pool = FakePool(pool_blocks)
    side.use_pool(pool)
    return side, pool


def tables(*ids: int) -> Callable[[str], tuple[list[int], ...]]:
    return lambda request_id: (list(ids),)


def test_a_request_is_looked_up_once_and_its_lease_kept_until_it_is_loaded() -> None:
    lookup = FakeLookup(2)
    store = FakeStore(lookup)
    side, _ = side_of(store)
    request = FakeRequest()
    assert [side.matched(request, 0) for _ in range(3)] == [64, 64, 64]
    assert store.asked == [(3, {"stride": 1, "lease_ms": 10_000, "wait_ms": None})]
    side.allocated(request, [[4, 5, 6]], 64)
    (load,) = side.step({}, tables()).loads
    assert (load.request_id, load.tokens, load.blocks.ids) == ("r", 64, [4, 5])
    assert not side.step({}, tables()).loads
    assert lookup.released == 0
    side.loaded({"r", "stranger"})
    assert lookup.released == 1


def test_only_what_is_not_computed_is_looked_up() -> None:
    store = FakeStore(FakeLookup(1))
    side, _ = side_of(store)
    request = FakeRequest()
    assert side.matched(request, 64) == 32
    assert store.asked[0][0] == 1
    side.allocated(request, [[4, 5, 6]], 32)
    assert side.step({}, tables()).loads[0].blocks.ids == [6]
    assert side.matched(FakeRequest("s"), 96) == 0
    assert side.matched(FakeRequest("t", skip_reading_prefix_cache=True), 0) == 0


def test_a_request_that_is_admitted_otherwise_or_ends_gives_its_lease_back() -> None:
    lookups = [FakeLookup(2), FakeLookup(2), FakeLookup(2)]
    side, _ = side_of(FakeStore(*lookups))
    request = FakeRequest()
    side.matched(request, 0)
    side.allocated(request, [[4]], 0)
    assert lookups[0].released == 1
    side.matched(request, 0)
    side.finished("r")
    assert lookups[1].released == 1
    side.matched(request, 0)
    side.close()
    assert lookups[2].released == 1


def test_a_lookup_whose_lease_is_lost_is_made_again() -> None:
    lookups = [FakeLookup(2), FakeLookup(1)]
    side, _ = side_of(FakeStore(*lookups))
    assert side.matched(FakeRequest(), 0) == 64
    request = FakeRequest("s")
    side, _ = side_of(FakeStore(*lookups))
    side.matched(request, 0)
    lookups[0].alive = False
    assert side.matched(request, 0) == 32


def test_a_miss_is_remembered_for_a_while() -> None:
    store = FakeStore(FakeLookup(0))
    side, _ = side_of(store)
    request = FakeRequest()
    assert [side.matched(request, 0) for _ in range(3)] == [0, 0, 0]
    assert len(store.asked) == 1


def test_after_a_failed_load_the_request_is_computed() -> None:
    store = FakeStore(FakeLookup(2))
    side, _ = side_of(store)
    request = FakeRequest()
    side.matched(request, 0)
    side.allocated(request, [[4, 5, 6]], 64)
    side.answered(Answer({"r": Loaded(64, 0.1, 2, False)}))
    side.loaded({"r"})
    assert side.matched(request, 0) == 0
    assert len(store.asked) == 1


def test_a_store_that_is_away_is_a_miss_and_then_not_asked() -> None:
    store = FakeStore(
        RuntimeError("gone"), FakeLookup(0, MissReason.Unavailable), RuntimeError("gone")
    )
    side, _ = side_of(store)
    for number in range(6):
        assert side.matched(FakeRequest(str(number)), 0) == 0
    assert len(store.asked) == 3


def test_failing_loads_rest_whatever_the_lookups_say() -> None:
    """A master answers for a node that hangs."""
    store = FakeStore(*[FakeLookup(2) for _ in range(4)])
    side, _ = side_of(store)
    for number in range(3):
        request = FakeRequest(str(number))
        assert side.matched(request, 0) == 64
        side.allocated(request, [[4, 5, 6]], 64)
        side.answered(Answer({str(number): Loaded(64, 0.1, 2, True)}))
    assert side.matched(FakeRequest("s"), 0) == 0
    assert len(store.asked) == 3


def test_slow_fetches_are_not_made() -> None:
    guard = Guard("test", prefill_tokens_per_s=1000)
    side, _ = side_of(FakeStore(FakeLookup(2), FakeLookup(2)), guard=guard)
    side.answered(Answer({"q": Loaded(100, 1.0, 0, False)}))
    assert side.matched(FakeRequest(), 0) == 64  # one measures again
    assert side.matched(FakeRequest("s"), 0) == 0


def test_what_speculation_needs_is_computed() -> None:
    side, _ = side_of(FakeStore(FakeLookup(2), FakeLookup(0)), keep_back=1)
    assert side.matched(FakeRequest(), 0) == 32
    assert side.matched(FakeRequest("s"), 0) == 0


def test_half_a_page_is_no_page() -> None:
    side, _ = side_of(FakeStore(FakeLookup(11)), HYBRID)
    request = FakeRequest(block_hashes=hashes(5))
    assert side.matched(request, 0) == 64


def test_a_decode_engine_waits_for_pages_in_a_thread() -> None:
    store = FakeStore(FakeLookup(3))
    side, _ = side_of(store, options={"wait_ms": 1000})
    request = FakeRequest()
    answers = [side.matched(request, 0)]
    waited = side._tracked["r"].waited
    if waited is not None:
        waited.result(10)
    answers.append(side.matched(request, 0))
    assert answers[-1] == 96
    assert store.asked[0][1]["wait_ms"] == 1000
    side.close()


def test_computed_pages_are_saved_once_and_their_blocks_held_until_all_ranks_answer() -> None:
    side, pool = side_of(FakeStore(), workers=2)
    side.stored = []
    request = FakeRequest()
    side.allocated(request, [[4, 5, 6, 7]], 0)
    (save,) = side.step({"r": 70, "stranger": 5}, tables(4, 5, 6, 7)).saves
    assert save.blocks.ids == [4, 5]
    request.num_computed_tokens = 70
    assert not side.step({"r": 10}, tables(4, 5, 6, 7)).saves
    side.finished("r")
    assert side.has_held_blocks() and side.has_blocks_to_come()
    assert pool.references == {4: 1, 5: 1}
    side.answered(Answer({}, {save.job: Saved(1, frozenset({0, 1}))}))
    assert pool.references == {4: 1, 5: 1}
    side.answered(Answer({}, {save.job: Saved(1, frozenset({1}))}))
    assert pool.references == {4: 0, 5: 0}
    assert not side.has_held_blocks() and not side.has_blocks_to_come()
    assert side.stored == [Stored(request, 0, 1, 1)]


def test_tokens_without_a_hash_are_not_saved() -> None:
    """Tokens of drafts count as computed before they are accepted."""
    side, _ = side_of(FakeStore())
    side.allocated(FakeRequest(block_hashes=hashes(1)), [[4, 5, 6]], 0)
    (save,) = side.step({"r": 96}, tables(4, 5, 6)).saves
    assert save.blocks.ids == [4]


@pytest.mark.parametrize(
    ("saves", "save_decode", "saved"),
    [(True, None, [4, 5, 6]), (True, False, [4]), (False, True, [5, 6]), (False, None, [])],
)
def test_roles_decide_what_is_saved(
    saves: bool, save_decode: bool | None, saved: list[int]
) -> None:
    side, _ = side_of(FakeStore(), saves=saves, options={"save_decode": save_decode})
    side.allocated(FakeRequest(num_prompt_tokens=40), [[4, 5, 6]], 0)
    found = [save.blocks.ids for save in side.step({"r": 96}, tables(4, 5, 6)).saves]
    assert found == ([saved] if saved else [])


def test_a_producer_reads_nothing() -> None:
    store = FakeStore()
    side, _ = side_of(store, loads=False)
    assert side.matched(FakeRequest(), 0) == 0
    assert not store.asked


def test_slow_saves_do_not_take_the_engines_memory() -> None:
    side, pool = side_of(FakeStore(), pool_blocks=8)
    side.allocated(FakeRequest(), [[4, 5, 6]], 0)
    side.allocated(FakeRequest("s"), [[1, 2, 3]], 0)
    (save,) = side.step({"r": 96}, tables(4, 5, 6)).saves
    assert save.blocks.ids == [4, 5]  # a quarter of the blocks
    assert not side.step({"s": 64}, tables(1, 2, 3)).saves
    side.answered(Answer({}, {save.job: Saved(1, frozenset())}))
    rest, other = side.step({"r": 96, "s": 64}, tables(4, 5, 6)).saves
    assert (rest.blocks.ids, other.blocks.ids) == ([6], [4])
    assert pool.references == {4: 1, 5: 0, 6: 1}


# --- the worker's side ---


class FakeMemory:
    """Takes each call's answers from a list."""

    layout = ""

    def __init__(self, *answers: Any, block: int = 40 << 20) -> None:
        self.answers = list(answers)
        self.block = block
        self.calls: list[tuple[list[str], Any]] = []

    def block_bytes(self, group: int) -> int:
        return self.block

    def register(self, store: Any, guard: Guard) -> None:
        pass

    def mark(self) -> str:
        return "mark"

    def put(self, store: Any, keys: Any, groups: Any, ids: Any, **how: Any) -> Any:
        self.calls.append((list(keys), how))
        return self._answer()

    def get(self, store: Any, keys: Any, groups: Any, ids: Any) -> Any:
        self.calls.append((list(keys), None))
        return self._answer()

    def _answer(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class ExistsStore:
    def __init__(self, present: set[str]) -> None:
        self.present = present

    def batch_exists(self, keys: Sequence[str]) -> list[bool]:
        return [key in self.present for key in keys]

    def close(self) -> None:
        pass


def worker_of(memory: FakeMemory, store: Any = None, writes: bool = True) -> WorkerSide:
    opened: Any = store or ExistsStore(set())
    return WorkerSide(
        memory=memory,
        guard=Guard("test"),
        open_store=lambda namespace: opened,
        rank=1,
        writes=writes,
        replicas=1,
    )


BLOCKS = Blocks(["a", "b", "c"], [0, 0, 0], [0, 1, 2], [7, 8, 9])


def loaded_by(memory: FakeMemory) -> tuple[dict[str, set[int]], Loaded, FakeMemory]:
    worker = worker_of(memory)
    worker.start_loads(Step("space", [Load("r", BLOCKS, 96)]))
    worker._loaders.shutdown(wait=True)
    answer = worker.take_answer()
    finished, failed = worker.take_finished()
    assert finished == {"r"} and answer is not None
    worker.close()
    return failed, answer.loads["r"], memory


def test_blocks_come_in_calls_of_a_bounded_size() -> None:
    size = 40 << 20
    failed, loaded, memory = loaded_by(FakeMemory([size], [size], [size]))
    assert (failed, loaded.failed_blocks, loaded.unreachable) == ({}, 0, False)
    assert [keys for keys, _ in memory.calls] == [["a-r1"], ["b-r1"], ["c-r1"]]


@pytest.mark.parametrize(
    ("second", "unreachable"),
    [
        ([int(Status.NotFound)], False),
        ([int(Status.Unavailable)], True),
        ([17], False),  # another size than a block's: never taken for one
        (RuntimeError("broken"), True),
    ],
)
def test_a_block_that_does_not_come_fails_with_all_after_it(second: Any, unreachable: bool) -> None:
    failed, loaded, memory = loaded_by(FakeMemory([40 << 20], second))
    assert failed == {"r": {8, 9}}
    assert (loaded.failed_blocks, loaded.unreachable) == (2, unreachable)
    assert len(memory.calls) == 2


def saved_by(memory: FakeMemory, store: Any = None, writes: bool = True) -> Saved:
    worker = worker_of(memory, store, writes)
    step = Step("space", [], [Save(5, BLOCKS)])
    worker.start_loads(step)
    worker.start_saves(step)
    worker._saver.shutdown(wait=True)
    answer = worker.take_answer()
    assert answer is not None
    worker.close()
    return answer.saves[5]


def test_only_absent_blocks_are_written_with_their_parent() -> None:
    memory = FakeMemory([Status.Ok, Status.AlreadyExists], block=10)
    assert saved_by(memory, ExistsStore({"a-r1"})) == Saved(1, frozenset({1}))
    (call,) = memory.calls
    assert call == (["b-r1", "c-r1"], {"parent": "a-r1", "replicas": 1, "after": "mark"})


def test_the_first_blocks_of_a_prompt_are_a_chain_too() -> None:
    memory = FakeMemory([Status.Ok] * 3, block=10)
    saved_by(memory)
    (_, how) = memory.calls[0]
    assert how["parent"] == UNKNOWN_PARENT  # without one, the blocks would not be linked


@pytest.mark.parametrize("first", [[Status.NoSpace], [Status.Unavailable], RuntimeError("broken")])
def test_a_save_that_fails_is_answered(first: Any) -> None:
    memory = FakeMemory(first)
    assert saved_by(memory) == Saved(1, frozenset())
    assert len(memory.calls) == 1


def test_one_of_several_ranks_with_the_same_heads_writes() -> None:
    memory = FakeMemory()
    assert saved_by(memory, writes=False) == Saved(1, frozenset({0, 1, 2}))
    assert not memory.calls
