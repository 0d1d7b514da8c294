"""The model behind bench.multi_turn: clients that chat, an engine with cache levels, virtual time.

What is modelled: arrivals, the engine (one line of prefills at a fixed rate of tokens), its device
and host caches (least recently used pages, looked up as prefixes) and the time that loading from
the host takes. What is not: the store below them, which is asked for real; its measured times enter
the virtual clock.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Page = tuple[int, int]  # client, place in its conversation


@dataclass(frozen=True)
class Workload:
    """Every client takes `rounds` turns; each prompt repeats the whole conversation before it."""

    clients: int = 150
    rounds: int = 10
    turn_tokens: int = 2048
    requests_per_s: float = 16.0  # at most so many are begun
    page_tokens: int = 64
    seed: int = 1

    @property
    def turn_pages(self) -> int:
        """Pages that each turn adds."""
        return self.turn_tokens // self.page_tokens


class Level:
    """A cache of pages that evicts the least recently used, and is searched for a prefix."""

    def __init__(self, capacity_pages: int) -> None:
        self._capacity = capacity_pages
        self._pages: OrderedDict[Page, None] = OrderedDict()

    def prefix(self, pages: Sequence[Page]) -> int:
        """Count the leading pages that are here."""
        for length, page in enumerate(pages):
            if page not in self._pages:
                return length
        return len(pages)

    def touch(self, pages: Sequence[Page]) -> None:
        """Add pages, the head of the chain as the newest: it is more useful than the tail."""
        for page in reversed(pages):
            self._pages[page] = None
            self._pages.move_to_end(page)
        while len(self._pages) > self._capacity:
            self._pages.popitem(last=False)


class Shared(Protocol):
    """The level below the engine; both calls say how long they took, in seconds."""

    def fetch(self, pages: Sequence[Page]) -> tuple[int, float]:
        """Read the leading pages that are there, and return their number."""

    def store(self, pages: Sequence[Page]) -> float:
        """Write pages."""


@dataclass(frozen=True)
class Engine:
    """Rates in tokens a second, capacities in pages; no host level where it is 0."""

    prefill_tokens_per_s: float
    device_pages: int
    host_pages: int = 0
    host_tokens_per_s: float = 400_000.0  # from host memory to the device


@dataclass
class Outcome:
    """The outcome of a run."""

    ttft_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    device_tokens: int = 0
    host_tokens: int = 0
    fetched_tokens: int = 0
    fetch_s: float = 0.0
    seconds: float = 0.0

    @property
    def hit_rate(self) -> float:
        """The share of the prompts' tokens that was not computed."""
        cached = self.device_tokens + self.host_tokens
        return cached / self.prompt_tokens

    @property
    def mean_ttft_s(self) -> float:
        """Mean time to the first token."""
        return sum(self.ttft_s) / len(self.ttft_s)

    @property
    def p90_ttft_s(self) -> float:
        """90th percentile of the time to the first token."""
        return sorted(self.ttft_s)[len(self.ttft_s) * 9 // 10]

    @property
    def input_tokens_per_s(self) -> float:
        """Prompt tokens served, computed or not, per second."""
        return self.prompt_tokens / self.seconds


def run(workload: Workload, engine: Engine, shared: Shared | None = None) -> Outcome:
    """Let every client have its conversation.

    A request starts when its client is drawn from those that are ready, at most `requests_per_s`
    of them (at random times, with that mean rate). The shared
    level is read while the request waits for the engine, as HiCache prefetches; requests share
    one line of fetches, and one of writes behind them.
    """
    out = Outcome()
    device, host = Level(engine.device_pages), Level(engine.host_pages)
    rounds = [0] * workload.clients
    draw = random.Random(workload.seed)
    ready = list(range(workload.clients))
    written_at: dict[Page, float] = {}
    finished: list[tuple[float, int]] = []  # when a client's answer is there
    engine_free = fetch_free = write_free = clock = 0.0
    for _ in range(workload.clients * workload.rounds):
        while finished and (not ready or finished[0][0] <= clock):
            when, client = heapq.heappop(finished)
            if not ready:
                clock = max(clock, when)
            ready.append(client)
        client = ready.pop(draw.randrange(len(ready)))
        rounds[client] += 1
        pages = [(client, i) for i in range(rounds[client] * workload.turn_pages)]
        prompt_tokens = len(pages) * workload.page_tokens

        fetched_until = clock
        if shared is not None:
            near = max(device.prefix(pages), host.prefix(pages))
            wanted = pages[near:]
            there = next(
                (i for i, p in enumerate(wanted) if written_at.get(p, clock + 1) > clock),
                len(wanted),
            )
            if there:
                found, seconds = shared.fetch(wanted[:there])
                fetch_free = fetched_until = max(clock, fetch_free) + seconds
                host.touch(pages[: near + found])
                out.fetched_tokens += found * workload.page_tokens
                out.fetch_s += seconds
        start = max(clock, engine_free, fetched_until)
        on_device = device.prefix(pages)
        on_host = max(0, host.prefix(pages) - on_device)
        missing = len(pages) - on_device - on_host
        load_s = on_host * workload.page_tokens / engine.host_tokens_per_s
        compute_s = missing * workload.page_tokens / engine.prefill_tokens_per_s
        engine_free = start + max(load_s, compute_s)  # layer by layer, one behind the other
        device.touch(pages)
        host.touch(pages)
        if shared is not None and missing:
            seconds = shared.store(pages[on_device + on_host :])
            write_free = max(engine_free, write_free) + seconds
            for page in pages[on_device + on_host :]:
                written_at[page] = write_free

        out.prompt_tokens += prompt_tokens
        out.device_tokens += on_device * workload.page_tokens
        out.host_tokens += on_host * workload.page_tokens
        out.ttft_s.append(engine_free - clock)
        out.seconds = max(out.seconds, engine_free)
        if rounds[client] < workload.rounds:
            heapq.heappush(finished, (engine_free, client))
        clock += draw.expovariate(workload.requests_per_s)
    return out


def bisect(low: float, high: float, is_below: Callable[[float], bool], steps: int) -> float:
    """Find where `is_below(x)` turns from True to False, x rising from low to high."""
    for _ in range(steps):
        middle = math.sqrt(low * high)
        if is_below(middle):
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
