"""Messages from the scheduler to the workers at each step, and their answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.integrations.vllm.pages import Blocks


@dataclass(frozen=True)
class Load:
    """Blocks to fill before a request continues."""

    request_id: str
    blocks: Blocks
    tokens: int


@dataclass(frozen=True)
class Save:
    """Blocks to store after this step's forward pass; they stay unchanged until then."""

    job: int
    blocks: Blocks


@dataclass
class Step:
    """The scheduler's orders to the workers."""

    namespace: str = ""
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


@dataclass
class Loaded:
    """Result of a load."""

    tokens: int
    seconds: float
    failed_blocks: int
    unreachable: bool
    """The store could not be reached, as opposed to a block that is not in it."""


@dataclass
class Saved:
    """Result of a save."""

    ranks: int
    """Number of ranks that have answered."""
    written: frozenset[int]
    """Rows that every answering rank wrote itself rather than found in the store."""


@dataclass
class Answer:
    """The workers' answers since the last step."""

    loads: dict[str, Loaded] = field(default_factory=dict)
    saves: dict[int, Saved] = field(default_factory=dict)

    def join(self, other: Answer) -> None:
        """Merge another rank's answer: a load is as good as its worst rank."""
        for request_id, theirs in other.loads.items():
            mine = self.loads.get(request_id)
            self.loads[request_id] = theirs if mine is None else _worse(mine, theirs)
        for job, saved in other.saves.items():
            known = self.saves.get(job)
            self.saves[job] = saved if known is None else _both(known, saved)


def _worse(one: Loaded, other: Loaded) -> Loaded:
    return Loaded(
        max(one.tokens, other.tokens),
        max(one.seconds, other.seconds),
        max(one.failed_blocks, other.failed_blocks),
        one.unreachable or other.unreachable,
    )


def _both(one: Saved, other: Saved) -> Saved:
    return Saved(one.ranks + other.ranks, one.written & other.written)
