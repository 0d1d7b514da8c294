"""The vLLM connector's two sides: blocks go and come back, tensors faked."""

from __future__ import annotations

import ctypes
import random
from types import SimpleNamespace
from typing import Any

import kvstore
from kvstore.client.registration import Registration
from kvstore.integrations.guard import Guard
from kvstore.integrations.link import Link
from kvstore.integrations.vllm.memory import memory_of
from kvstore.integrations.vllm.options import Options
from kvstore.integrations.vllm.pages import Pages
from kvstore.integrations.vllm.scheduler import SchedulerSide
from kvstore.integrations.vllm.worker import WorkerSide
from tests.unit.test_vllm_integration import FakePool, FakeRequest

BLOCKS, BLOCK_BYTES, LAYERS = 40, 256, 3
FULL, WINDOW = ("full.0", "full.1"), ("window.0",)
# Blocks of 64 tokens of two layers, beside blocks of 32 of a layer that has a sliding window.
PAGES = Pages(tokens=64, hash_tokens=32, groups=((0, 64), (1, 32)), ranks=1)
HASHES = [bytes([number]) * 8 for number in range(1, 7)]


class Engine:
    """One engine's cache of three layers that lie block by block in one allocation."""

    def __init__(self, store: kvstore.Store, seed: int) -> None:
        self.bytes = bytearray(random.Random(seed).randbytes(BLOCKS * LAYERS * BLOCK_BYTES))
        caches = {name: self._layer(n) for n, name in enumerate((*FULL, *WINDOW))}
        self.memory = memory_of(caches, {0: FULL, 1: WINDOW}, BLOCKS)
        guard = Guard("test")
        self.store = store
        self.registered: list[Registration] = []
        self.scheduler = SchedulerSide(
            options=Options.of({"master": "embedded:1"}),
            pages=PAGES,
            guard=guard,
            loads=True,
            saves=True,
            workers=1,
        )
        # The store is the test's: neither side may close it.
        shared = SimpleNamespace(
            lookup=store.lookup,
            batch_exists=store.batch_exists,
            batch_put_from=store.batch_put_from,
            batch_get_into_pointers=store.batch_get_into_pointers,
            register=self._register,
            close=lambda: None,
        )
        opened: Any = shared
        self.scheduler.start("space", Link(guard, lambda: opened))
        self.scheduler.use_pool(FakePool(BLOCKS))
        self.worker = WorkerSide(
            memory=self.memory,
            guard=guard,
            open_store=lambda namespace: opened,
            rank=0,
            writes=True,
            replicas=1,
        )

    def _layer(self, number: int) -> Any:
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        return SimpleNamespace(
            shape=(BLOCKS, BLOCK_BYTES),
            dtype="uint8",
            device=SimpleNamespace(type="cpu"),
            stride=lambda: (LAYERS * BLOCK_BYTES, 1),
            element_size=lambda: 1,
            data_ptr=lambda: start + number * BLOCK_BYTES,
        )

    def block(self, layer: int, block: int) -> bytes:
        start = (block * LAYERS + layer) * BLOCK_BYTES
        return bytes(self.bytes[start : start + BLOCK_BYTES])

    def run(self, scheduled: dict[str, int], tables: list[list[int]]) -> dict[str, set[int]]:
        """Do a step and wait for its threads; returns the blocks that failed to load."""
        step = self.scheduler.step(scheduled, lambda request_id: tables)
        self.worker.start_loads(step)
        self.worker.start_saves(step)
        self.worker._loaders.shutdown(wait=True)
        self.worker._saver.shutdown(wait=True)
        finished, failed = self.worker.take_finished()
        answer = self.worker.take_answer()
        assert answer is not None
        self.scheduler.answered(answer)
        self.scheduler.loaded(finished)
        return failed

    def _register(self, address: int, size: int, kind: str = "host") -> Registration:
        self.registered.append(self.store.register(address, size))
        return self.registered[-1]

    def close(self) -> None:
        self.scheduler.close()
        self.worker.close()
        (whole,) = self.registered  # the layers lie side by side
        assert whole.size == LAYERS * BLOCKS * BLOCK_BYTES
        whole.release()


def test_blocks_come_back_in_another_engine_whatever_their_numbers(store: kvstore.Store) -> None:
    request = FakeRequest(num_prompt_tokens=200, block_hashes=HASHES)
    written, read = [[3, 4, 5], [10, 11, 12, 13, 14, 15]], [[9, 8, 7], [0, 0, 0, 0, 30, 20]]
    writer = Engine(store, 1)
    writer.scheduler.allocated(request, written, 0)
    writer.run({"r": 200}, written)
    assert sorted(store.keys()) == sorted(PAGES.lookup_keys(HASHES, 0, 3))
    assert not writer.scheduler.has_held_blocks()
    assert store.size(f"{HASHES[1].hex()}-g0-r0") == 2 * BLOCK_BYTES

    reader = Engine(store, 2)
    before = bytes(reader.bytes)
    assert reader.scheduler.matched(request, 0) == 192
    reader.scheduler.allocated(request, read, 192)
    assert reader.run({}, read) == {}
    for ours, theirs in zip(read[0], written[0], strict=True):
        assert reader.block(0, ours) == writer.block(0, theirs)
        assert reader.block(1, ours) == writer.block(1, theirs)
    for ours, theirs in ((30, 14), (20, 15)):  # what the window still needs
        assert reader.block(2, ours) == writer.block(2, theirs)
    changed = sum(
        before[i : i + BLOCK_BYTES] != reader.bytes[i : i + BLOCK_BYTES]
        for i in range(0, len(before), BLOCK_BYTES)
    )
    assert changed == 2 * 3 + 2
    writer.close()
    reader.close()


def test_an_object_that_vanished_after_the_lookup_fails_its_block_and_the_rest(
    store: kvstore.Store,
) -> None:
    request = FakeRequest(num_prompt_tokens=200, block_hashes=HASHES)
    tables = [[3, 4, 5], [10, 11, 12, 13, 14, 15]]
    writer = Engine(store, 1)
    writer.scheduler.allocated(request, tables, 0)
    writer.run({"r": 200}, tables)
    reader = Engine(store, 2)
    assert reader.scheduler.matched(request, 0) == 192
    store.remove(f"{HASHES[3].hex()}-g0-r0")
    reader.scheduler.allocated(request, tables, 192)
    assert reader.run({}, tables) == {"r": {4, 12, 13, 5, 14, 15}}
    assert reader.scheduler.matched(request, 0) == 0  # computed, not tried again
    writer.close()
    reader.close()
