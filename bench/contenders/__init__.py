"""The contenders: how each is started, and how it differs from the others."""

from __future__ import annotations

from typing import Any, Protocol

from bench.processes import WorkerProcess
from bench.sample import Sample
from bench.shapes import Shape

READS_AND_WRITES = ("put_from", "put", "get")
QUESTIONS = ("exists", "absent")


class Contender(Protocol):
    """Something that takes its turn in every round."""

    name: str
    about: str

    def operations(self, shape: Shape) -> tuple[str, ...]: ...

    def prepare(self, shape: Shape) -> None: ...

    def finish(self, shape: Shape) -> None: ...

    def measure(self, operation: str, shape: Shape, number: int) -> Sample | None: ...


class StoreContender:
    """A store behind a client process."""

    def __init__(
        self, name: str, about: str, worker: WorkerProcess, questions_size: int = 4096
    ) -> None:
        self.name = name
        self.about = about
        self.worker = worker
        self._questions_size = questions_size

    def operations(self, shape: Shape) -> tuple[str, ...]:
        """Return the operations to measure; exists does not depend on the size of an object."""
        if shape.size == self._questions_size:
            return READS_AND_WRITES + QUESTIONS
        return READS_AND_WRITES

    def _prefix(self, shape: Shape) -> str:
        return f"{self.name}/{shape.size}x{shape.batch}"

    def prepare(self, shape: Shape) -> None:
        # Filled in large calls, which is not measured, whatever the shape's own batch is.
        batch = max(1, min(128, (64 << 20) // shape.size))
        self.worker.ask(
            "base", prefix=self._prefix(shape), size=shape.size, count=shape.count, batch=batch
        )

    def finish(self, shape: Shape) -> None:
        self.worker.ask("drop", prefix=self._prefix(shape), count=shape.count)

    def arm(self, operation: str, shape: Shape, number: int) -> bool:
        prefix = self._prefix(shape)
        if operation in ("put_from", "put", "absent"):
            prefix = f"{prefix}/{operation}/{number}"
        armed: bool = self.worker.ask(
            "arm",
            operation=operation,
            prefix=prefix,
            size=shape.size,
            count=shape.count,
            batch=shape.batch,
            calls=shape.calls,
            start=shape.start(number),
            shift=shape.shift(number),
        )
        return armed

    def measure(self, operation: str, shape: Shape, number: int) -> Sample | None:
        if not self.arm(operation, shape, number):
            return None
        answer: dict[str, Any] = self.worker.ask("fire")
        return Sample.of(answer, shape.keys)
