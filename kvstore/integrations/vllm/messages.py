"""What the scheduler tells the workers at each step, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.integrations.vllm.pages import Blocks


@dataclass(frozen=True)
class Load:
    """Blocks to fill before a request goes on."""

    request_id: str
    blocks: Blocks
    tokens: int


@dataclass(frozen=True)
class Save:
    """Blocks to store once this step's forward pass is through; they stay as they are till then."""

    job: int
    blocks: Blocks


@dataclass
class Step:
    """The scheduler's word to the workers."""

    namespace: str = ""
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


@dataclass
class Loaded:
    """How a load went."""

    tokens: int
    seconds: float
    failed_blocks: int
    away: bool
    """The store could not be reached, as opposed to that a block was not in it."""


@dataclass
class Saved:
    """How a save went."""

    ranks: int
    """How many have answered."""
    written: frozenset[int]
    """Rows of its blocks that every rank that answered wrote now, rather than found there."""


@dataclass
class Answer:
    """The workers' word to the scheduler since the last step."""

    loads: dict[str, Loaded] = field(default_factory=dict)
    saves: dict[int, Saved] = field(default_factory=dict)

    def join(self, other: Answer) -> None:
        """Take in what another rank says: a load is as good as its worst rank."""
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
        one.away or other.away,
    )


def _both(one: Saved, other: Saved) -> Saved:
    return Saved(one.ranks + other.ranks, one.written & other.written)
