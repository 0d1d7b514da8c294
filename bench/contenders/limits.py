"""What the machine can do without a store: `bench/limits.cpp`, which takes turns like a store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench.processes import ROOT, BenchError, Talker
from bench.sample import Sample
from bench.shapes import Shape

PROGRAM = ROOT / "build" / "bench" / "limits"
COPIES = ("copy get plain", "copy get nt", "copy put plain", "copy put nt")
STREAMS = ("tcp stream", "tcp get", "tcp put")
SUMS = ("copy get sum", "copy put sum", "tcp get_sum", "tcp put_sum")  # with the checksums
_ALL = COPIES + STREAMS + SUMS


class Limits:
    """Copies and streams of the same sizes, batches and working set as the stores'."""

    about = (
        "memcpy between pre-faulted shared and private memory, one thread, plain and with "
        "non-temporal stores; one TCP stream with writev and readv into the user's buffers"
    )

    def __init__(self, name: str, process: Talker, congestion: str, nt: bool) -> None:
        self.name = name
        self.congestion = congestion
        self._process = process
        self._nt = nt

    @property
    def pid(self) -> int:
        """Of the end that asks; its children answer."""
        return self._process.pid

    def operations(self, shape: Shape) -> tuple[str, ...]:
        return tuple(name for name in COPIES + STREAMS if self._nt or not name.endswith(" nt"))

    def prepare(self, shape: Shape) -> None:
        pass

    def finish(self, shape: Shape) -> None:
        pass

    def measure(self, operation: str, shape: Shape, number: int) -> Sample | None:
        # Each operation walks another part of the set: none may find warm what another has read.
        turn = number * len(_ALL) + _ALL.index(operation)
        self._process.send(
            f"{operation} {shape.size} {shape.batch} {shape.calls} {shape.start(turn)}"
        )
        return Sample.of(self._process.receive(), shape.keys)

    def round_trip(self, kind: str, size_bytes: int, count: int) -> Sample:
        """Time `count` ping-pongs over "tcp", "unix", or TCP that both ends poll ("spin")."""
        self._process.send(f"rtt {kind} {size_bytes} {count}")
        return Sample.of(self._process.receive(), count)


def start(
    stack: ExitStack, folder: Path, working_set: int, name: str = "limits", congestion: str = "-"
) -> Limits:
    """Start it; `congestion` names another algorithm than the machine's default."""
    if not PROGRAM.exists():
        raise BenchError(f"{PROGRAM.relative_to(ROOT)} is not built; run it with: make bench")
    process = Talker(name, [PROGRAM], folder)
    stack.enter_context(process)
    process.send(f"init {working_set} {congestion}")
    answer = process.receive()
    return Limits(name, process, answer["congestion"], answer["nt"])
