"""The memory that integrations register: spans, tensors, refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvstore.errors import NoSpaceError
from kvstore.integrations.guard import Guard
from kvstore.integrations.registered import memory_of_tensors, merged, register


def test_spans_that_touch_are_one() -> None:
    assert merged([(100, 10), (0, 50), (40, 20), (60, 5), (200, 0), (42, 3)]) == [
        (0, 65),
        (100, 10),
    ]
    assert merged([]) == []


def test_only_host_memory_is_registered() -> None:
    def tensor(address: int, is_cuda: bool) -> Any:
        return SimpleNamespace(data_ptr=lambda: address, nbytes=8, is_cuda=is_cuda)

    assert memory_of_tensors([tensor(64, False), tensor(128, True), None]) == [(64, 8)]


def test_what_is_refused_is_counted_and_the_engine_goes_on() -> None:
    asked: list[tuple[int, int]] = []

    class Store:
        def register(self, address: int, size: int, kind: str) -> None:
            assert kind == "cuda"
            asked.append((address, size))
            raise NoSpaceError("ulimit -l is too small")

    guard, store = Guard("test"), Store()
    opened: Any = store
    register(opened, guard, [(0, 8), (64, 8)], "cuda")
    assert asked == [(0, 8), (64, 8)]
    assert guard.stats()["register_failures"] == 2
