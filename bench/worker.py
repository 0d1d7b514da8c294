"""The client process of a contender: reads JSON lines, times each call, writes JSON lines.

Runs in the peers' environment too: it needs the standard library and the contender's own package.
Only the calls themselves are timed: keys and buffers are made before, answers and bytes are
checked afterwards.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import traceback
from time import perf_counter_ns
from typing import Any

from bench.arena import Arena
from bench.drivers import Blocks, Call, Driver, WrongAnswer, open_driver
from bench.sample import summarize

_SINGLE_BYTES = 8 << 20
_READ_BACK = 32  # objects of a put round that are read again


class Worker:
    """Holds the memory of one client and the round that is armed."""

    def __init__(self, driver: Driver, working_set: int, seed: int) -> None:
        self._driver = driver
        self._random = random.Random(seed)
        self._base = Arena(working_set)  # what the objects to be read hold
        self._fresh = Arena(working_set)  # what a round puts
        self._out = Arena(working_set)  # where a round reads to
        self._single = Arena(_SINGLE_BYTES)  # one object and where it is read to
        self._register()
        self._bodies: dict[str, tuple[int, int]] = {}
        self._round: Round | None = None

    def _register(self) -> None:
        for arena in (self._base, self._fresh, self._out, self._single):
            self._driver.register(arena.address, arena.size_bytes)

    def _bodies_of(self, name: str, arena: Arena, count: int, size: int) -> None:
        if self._bodies.get(name) != (count, size):
            arena.fill(count, size)
            self._bodies[name] = (count, size)

    def adopt(self, prefix: str, size: int, count: int) -> None:
        """Learn the bytes of objects that another client puts."""
        self._bodies_of("base", self._base, count, size)
        for place in range(count):
            self._base.sign(place, size, f"{prefix}/{place}")

    def base(self, prefix: str, size: int, count: int, batch: int) -> None:
        """Put the objects that later rounds read."""
        self.adopt(prefix, size, count)
        for first in range(0, count, batch):
            places = range(first, min(first + batch, count))
            blocks = self._blocks(prefix, size, list(places), self._base, list(places))
            call = self._driver.bind("put_from", blocks) or self._driver.bind("put", blocks)
            assert call is not None
            self._driver.check("put", blocks, call())

    def drop(self, prefix: str, count: int) -> None:
        self._driver.remove([f"{prefix}/{place}" for place in range(count)])

    def _blocks(
        self, prefix: str, size: int, numbers: list[int], arena: Arena, places: list[int]
    ) -> Blocks:
        return Blocks(
            keys=[f"{prefix}/{number}" for number in numbers],
            views=[arena.view(place, size) for place in places],
            pointers=[arena.pointer(place, size) for place in places],
            sizes=[size] * len(numbers),
        )

    def arm(
        self,
        operation: str,
        prefix: str,
        size: int,
        count: int,
        batch: int,
        calls: int,
        start: int,
        shift: int,
    ) -> bool:
        """Prepare a round of `calls` calls from object `start` on; False: no such call here.

        Args:
            operation: put_from, put, get, exists or absent.
            prefix: of the keys.
            size: bytes of an object.
            count: objects under the prefix; numbers wrap there.
            batch: objects of a call.
            calls: how many.
            start: number of the first object.
            shift: how many places behind its object's a destination lies.
        """
        puts = operation in ("put_from", "put")
        arena = self._fresh if puts else self._out
        plan: list[tuple[Call, Blocks, list[int], list[int]]] = []
        if puts:
            self._bodies_of("fresh", self._fresh, count, size)
        for call in range(calls):
            numbers = [(start + call * batch + i) % count for i in range(batch)]
            places = numbers if puts else [(number + shift) % count for number in numbers]
            blocks = self._blocks(prefix, size, numbers, arena, places)
            if puts:
                for place, key in zip(places, blocks.keys, strict=True):
                    arena.sign(place, size, key)
            bound = self._driver.bind("exists" if operation == "absent" else operation, blocks)
            if bound is None:
                return False
            plan.append((bound, blocks, numbers, places))
        self._round = Round(operation, size, plan)
        return True

    def fire(self) -> dict[str, Any]:
        """Run the armed round; the summary of its times, after everything was checked."""
        armed, self._round = self._round, None
        assert armed is not None
        times, results, began, ended = armed.run()
        if armed.operation == "absent":
            if not all(map(self._driver.absent, results)):
                raise WrongAnswer("a key that was never put exists")
        else:
            for (_, blocks, _, _), result in zip(armed.plan, results, strict=True):
                self._driver.check(armed.operation, blocks, result)
        if armed.operation == "get":
            self._verify(armed)
        elif armed.operation in ("put_from", "put"):
            self._read_back(armed)
        moved = 0
        if armed.operation in ("get", "put_from", "put"):
            moved = sum(len(numbers) for _, _, numbers, _ in armed.plan) * armed.size
        summary: dict[str, Any] = dict(summarize(times))
        return summary | {"bytes": moved, "began_ns": began, "ended_ns": ended}

    def _verify(self, armed: Round) -> None:
        for _, blocks, numbers, places in armed.plan:
            for key, number, place in zip(blocks.keys, numbers, places, strict=True):
                if not self._out.equal(place, armed.size, self._base, number):
                    raise WrongAnswer(f"the bytes of {key} are not those that were put")

    def _read_back(self, armed: Round) -> None:
        """Read some of what a round put, then remove all of it."""
        size = armed.size
        written = [
            pair
            for _, blocks, _, places in armed.plan
            for pair in zip(blocks.keys, places, strict=True)
        ]
        for key, place in self._random.sample(written, min(_READ_BACK, len(written))):
            blocks = Blocks([key], [self._out.view(0, size)], [self._out.pointer(0, size)], [size])
            call = self._driver.bind("get", blocks)
            assert call is not None
            self._driver.check("get", blocks, call())
            if not self._out.equal(0, size, self._fresh, place):
                raise WrongAnswer(f"the bytes of {key} are not those that were put")
        self._driver.remove([key for key, _ in written])

    def learn_one(self, key: str, size: int) -> None:
        """Learn the bytes of one object beside the base."""
        self._single.fill(1, size)
        self._single.sign(0, size, key)

    def put_one(self, key: str, size: int) -> None:
        self.learn_one(key, size)
        blocks = self._one(key, size, place=0)
        call = self._driver.bind("put", blocks)
        assert call is not None
        self._driver.check("put", blocks, call())

    def read_one(self, key: str, size: int) -> dict[str, bool]:
        """Read that object: whether the store gave it, and whether it was right."""
        blocks = self._one(key, size, place=1)
        call = self._driver.bind("get", blocks)
        assert call is not None
        try:
            self._driver.check("get", blocks, call())
        except WrongAnswer:
            return {"hit": False, "right": False}
        return {"hit": True, "right": self._single.equal(1, size, self._single, 0)}

    def drop_one(self, key: str) -> None:
        self._driver.remove([key])

    def _one(self, key: str, size: int, place: int) -> Blocks:
        arena = self._single
        return Blocks([key], [arena.view(place, size)], [arena.pointer(place, size)], [size])

    def warm_up(self, size: int, count: int) -> None:
        """Prepare the bytes that later puts of this shape will send."""
        self._bodies_of("fresh", self._fresh, count, size)

    def reconnect(self, driver: str, options: dict[str, Any]) -> None:
        """Leave the store and use another; the memory stays."""
        self._driver.close()
        self._driver = open_driver(driver, options)
        self._register()

    def close(self) -> None:
        self._driver.close()

    def counters(self) -> dict[str, int]:
        return self._driver.counters()


class Round:
    """A prepared round: calls that are ready to be made."""

    def __init__(
        self,
        operation: str,
        size: int,
        plan: list[tuple[Call, Blocks, list[int], list[int]]],
    ) -> None:
        self.operation = operation
        self.size = size
        self.plan = plan

    def run(self) -> tuple[list[int], list[Any], int, int]:
        times: list[int] = []
        results: list[Any] = []
        gc.collect()
        gc.disable()
        try:
            began = perf_counter_ns()
            for call, _, _, _ in self.plan:
                start = perf_counter_ns()
                result = call()
                times.append(perf_counter_ns() - start)
                results.append(result)
            ended = perf_counter_ns()
        finally:
            gc.enable()
        return times, results, began, ended


def main() -> None:
    options = json.loads(sys.argv[1])
    # What a native library prints on descriptor 1 must not reach the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    driver = open_driver(options["driver"], options["options"])
    worker = Worker(driver, options["working_set"], options["seed"])
    try:
        print(json.dumps({"value": "ready"}), file=answers, flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            name = command.pop("do")
            try:
                answer = {"value": getattr(worker, name)(**command)}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        worker.close()


if __name__ == "__main__":
    main()
