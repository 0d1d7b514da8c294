"""SchedulerSide: decides which pages a request loads from the store and saves to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from kvstore.client.lookup import Lookup
from kvstore.clock import monotonic_ns
from kvstore.errors import MissReason, Status
from kvstore.integrations.guard import Guard
from kvstore.integrations.link import Link
from kvstore.integrations.vllm.messages import Answer, Load, Save, Step
from kvstore.integrations.vllm.options import Options
from kvstore.integrations.vllm.pages import Blocks, Pages

_MISS_KEPT_NS = 100_000_000  # a request that waits for memory is not looked up at each step
_WAITERS = 16
# Share of all blocks that saves may hold: a slow store must not starve the engine.
_HELD_SHARE = 0.25


class Request(Protocol):
    """Attributes of vLLM's Request that are used."""

    request_id: str
    num_prompt_tokens: int
    num_computed_tokens: int
    block_hashes: Sequence[bytes]
    skip_reading_prefix_cache: bool


class BlockPool(Protocol):
    """Methods of vLLM's BlockPool that are used: a reference protects a block from reuse."""

    blocks: Sequence[Any]

    def touch(self, blocks: Sequence[Any]) -> None:
        """Add a reference to each."""

    def free_blocks(self, ordered_blocks: Any) -> None:
        """Drop a reference to each."""


@dataclass(frozen=True)
class Stored:
    """A run of a request's blocks that was just stored."""

    request: Any
    group: int
    first: int
    """Position of the first one in the group's block table."""
    count: int


@dataclass
class _Found:
    """Result of a lookup, kept until the request is admitted."""

    first_page: int
    lookup: Lookup | None
    at_ns: int
    worth_fetching: bool

    @property
    def objects(self) -> int:
        return 0 if self.lookup is None else len(self.lookup)

    def still_good(self, first_page: int) -> bool:
        if first_page != self.first_page:
            return False
        if self.lookup is not None and self.lookup.alive:
            return True
        return not self.objects and monotonic_ns() - self.at_ns < _MISS_KEPT_NS

    def release(self) -> None:
        if self.lookup is not None:
            self.lookup.release()


@dataclass
class _Tracked:
    request: Request
    saved_pages: int = 0  # those that a save was started for
    found: _Found | None = None
    waited: Future[Lookup | None] | None = None
    loading: Lookup | None = None  # leased until the load has finished
    load_failed: bool = False

    def release_found(self) -> None:
        found, self.found = self.found, None
        if found is not None:
            found.release()

    def release_loading(self) -> None:
        loading, self.loading = self.loading, None
        if loading is not None:
            loading.release()

    def release(self) -> None:
        self.release_found()
        self.release_loading()
        waited, self.waited = self.waited, None
        if waited is not None:
            waited.add_done_callback(_release_result)


@dataclass
class _Held:
    """Blocks that a save reads, referenced until every worker has answered."""

    request: Request
    blocks: Blocks
    workers: int  # yet to answer
    written: frozenset[int]  # rows that every worker so far wrote


class SchedulerSide:
    """The scheduler's half of the connector; called by the scheduler's thread only.

    The pages of a looked-up request are leased until its blocks are loaded. Blocks being saved are
    referenced in vLLM's block pool until every worker has answered: even if the request finishes,
    is preempted or aborted meanwhile, no other request gets them.
    """

    def __init__(
        self,
        *,
        options: Options,
        pages: Pages,
        guard: Guard,
        loads: bool,
        saves: bool,
        workers: int,
        keep_back: int = 0,
    ) -> None:
        """Start without a store; `start` sets the namespace.

        Args:
            options: of the operator.
            pages: how tokens become keys.
            guard: of the scheduler's calls.
            loads: whether this engine reads from the store.
            saves: whether it writes the prompts that it computes.
            workers: number of workers that answer each save.
            keep_back: number of found pages at the end that are computed anyway, as speculative
                decoding requires.
        """
        self._options = options
        self._pages = pages
        self._guard = guard
        # For the workers' loads: a master that answers lookups does not mean that no node hangs.
        self._load_guard = Guard("vLLM")
        self._loads = loads
        self._saves_prompt = saves
        self._saves_decode = saves if options.save_decode is None else options.save_decode
        self._workers = workers
        self._keep_back = keep_back
        self._namespace = ""
        self._link: Link | None = None
        self._waiters = ThreadPoolExecutor(_WAITERS, "kvstore-wait") if options.wait_ms else None
        self._pool: BlockPool | None = None
        self._tracked: dict[str, _Tracked] = {}
        self._loads_to_send: list[Load] = []
        self._held: dict[int, _Held] = {}
        self._held_blocks = 0
        self._next_job = 0
        self.stored: list[Stored] | None = None
        """When set to a list, stored runs are appended to it."""

    def start(self, namespace: str, link: Link) -> None:
        """Use a namespace from now on."""
        self._namespace = namespace
        self._link = link

    def use_pool(self, pool: BlockPool) -> None:
        """Hold blocks in this pool."""
        self._pool = pool

    # --- loading ---

    def matched(self, request: Request, computed_tokens: int) -> int | None:
        """Return how many tokens the store has beyond the computed ones; None: ask again later."""
        tracked = self._track(request)
        first = self._pages.whole(computed_tokens)
        last = self._whole_pages(request)
        if self._link is None or not self._loads or request.skip_reading_prefix_cache:
            return 0
        if last <= first or computed_tokens % self._pages.tokens:
            return 0
        if tracked.load_failed:  # pages that are found again may fail again
            return 0
        if self._load_guard.skips():
            self._guard.count("lookups_left_out")
            return 0
        if tracked.found is None or not tracked.found.still_good(first):
            tracked.release_found()
            if not self._is_looked_up(tracked, first, last):
                return None
        assert tracked.found is not None
        pages = max(0, tracked.found.objects // self._pages.objects - self._keep_back)
        return pages * self._pages.tokens if tracked.found.worth_fetching else 0

    def allocated(
        self, request: Request, tables: Sequence[Sequence[int]], external_tokens: int
    ) -> None:
        """Admit a request, and load its external tokens into its blocks."""
        tracked = self._track(request)
        if tracked.found is None or not external_tokens:
            tracked.release_found()
            return
        first = tracked.found.first_page
        last = first + self._pages.whole(external_tokens)
        blocks = self._pages.blocks(request.block_hashes, first, last, tables)
        tracked.release_loading()
        tracked.loading = tracked.found.lookup
        tracked.found = None
        self._loads_to_send.append(Load(request.request_id, blocks, external_tokens))

    def _is_looked_up(self, tracked: _Tracked, first: int, last: int) -> bool:
        """Ask the store; False while a thread waits for the answer."""
        hashes = list(tracked.request.block_hashes)
        if self._waiters is None:
            lookup = self._look_up(hashes, first, last, None)
        else:
            if tracked.waited is None:
                wait_ms = self._options.wait_ms
                tracked.waited = self._waiters.submit(self._look_up, hashes, first, last, wait_ms)
            if not tracked.waited.done():
                return False
            lookup, tracked.waited = tracked.waited.result(), None
        worth_fetching = not lookup or self._guard.worth_fetching()
        tracked.found = _Found(first, lookup, monotonic_ns(), worth_fetching)
        return True

    def _look_up(
        self, hashes: list[bytes], first: int, last: int, wait_ms: int | None
    ) -> Lookup | None:
        assert self._link is not None
        keys = self._pages.lookup_keys(hashes, first, last)
        return self._link.call(
            "lookup",
            lambda store: store.lookup(
                keys,
                stride=self._pages.objects,
                lease_ms=self._options.lease_ms,
                wait_ms=wait_ms,
            ),
            None,
            _says_away,
        )

    # --- saving ---

    def step(self, scheduled_tokens: Mapping[str, int], tables_of: Callable[[str], Any]) -> Step:
        """Decide the workers' loads and saves of this step.

        Args:
            scheduled_tokens: of each request that this step computes.
            tables_of: returns a request's block tables as they are now, or None.
        """
        loads, self._loads_to_send = self._loads_to_send, []
        step = Step(self._namespace, loads)
        if self._link is None or not (self._saves_prompt or self._saves_decode):
            return step
        for request_id, tokens in scheduled_tokens.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                save = self._save(tracked, tracked.request.num_computed_tokens + tokens, tables_of)
                if save is not None:
                    step.saves.append(save)
        return step

    def _save(
        self, tracked: _Tracked, computed_tokens: int, tables_of: Callable[[str], Any]
    ) -> Save | None:
        request = tracked.request
        if not self._saves_decode:
            computed_tokens = min(computed_tokens, request.num_prompt_tokens)
        first = tracked.saved_pages
        if not self._saves_prompt:  # a consumer writes only what it generates
            first = max(first, self._pages.whole(request.num_prompt_tokens))
        # A page is hashed once its tokens are final, so that it has no rejected drafts.
        last = min(self._pages.whole(computed_tokens), self._whole_pages(request))
        if last <= first or self._pool is None:
            return None
        free_blocks = int(_HELD_SHARE * len(self._pool.blocks)) - self._held_blocks
        if last - first > free_blocks // self._pages.blocks_each:  # others follow at a later step
            self._guard.count("saves_put_off")
            last = first + max(0, free_blocks // self._pages.blocks_each)
        tables = tables_of(request.request_id)
        if tables is None or last <= first:
            return None
        blocks = self._pages.blocks(request.block_hashes, first, last, tables)
        tracked.saved_pages = last
        self._pool.touch([self._pool.blocks[block] for block in blocks.ids])
        self._held_blocks += len(blocks)
        job, self._next_job = self._next_job, self._next_job + 1
        self._held[job] = _Held(request, blocks, self._workers, frozenset(range(len(blocks))))
        return Save(job, blocks)

    def has_held_blocks(self) -> bool:
        """Say whether saves are in progress: their answers come with further steps."""
        return bool(self._held)

    def has_blocks_to_come(self) -> bool:
        """Say whether blocks of finished requests become free when saves have finished."""
        return any(held.request.request_id not in self._tracked for held in self._held.values())

    # --- the workers' answers ---

    def answered(self, answer: Answer) -> None:
        """Process the workers' answers: free saved blocks, record rates and failures of loads."""
        for request_id, loaded in answer.loads.items():
            self._load_guard.call("load", partial(bool, loaded.unreachable), False, bool)
            self._guard.count("load_failures", int(loaded.unreachable))
            if loaded.failed_blocks:
                self._guard.count("blocks_failed_to_load", loaded.failed_blocks)
                if request_id in self._tracked:
                    self._tracked[request_id].load_failed = True
            else:
                self._guard.count("tokens_loaded", loaded.tokens)
                self._guard.fetched(loaded.tokens, loaded.seconds)
        for job, saved in answer.saves.items():
            held = self._held.get(job)
            if held is not None:
                held.workers -= saved.ranks
                held.written &= saved.written
                if held.workers <= 0:
                    del self._held[job]
                    self._let_go(held)

    def _let_go(self, held: _Held) -> None:
        assert self._pool is not None
        pool = self._pool
        self._held_blocks -= len(held.blocks)
        # The chain's tail first: it is reused before its head.
        pool.free_blocks(pool.blocks[block] for block in reversed(held.blocks.ids))
        self._guard.count("blocks_saved", len(held.written))
        if self.stored is not None:
            self.stored += _runs(held)

    def loaded(self, request_ids: set[str]) -> None:
        """Release the leases of finished loads."""
        for request_id in request_ids:
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                tracked.release_loading()

    def finished(self, request_id: str) -> None:
        """Forget a request."""
        tracked = self._tracked.pop(request_id, None)
        if tracked is not None:
            tracked.release()

    def flush(self) -> Status:
        """Flush the namespace, including pages found but not admitted yet."""
        for tracked in self._tracked.values():
            tracked.release_found()
        if self._link is None:
            return Status.Unavailable
        return self._link.call("flush", lambda store: store.flush(), Status.Unavailable)

    def close(self) -> None:
        """Release every lease; end calls of the store."""
        for request_id in list(self._tracked):
            self.finished(request_id)
        if self._link is not None:
            self._link.close()
        if self._waiters is not None:
            self._waiters.shutdown(wait=False, cancel_futures=True)

    def _track(self, request: Request) -> _Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.request is not request:
            tracked = self._tracked[request.request_id] = _Tracked(request)
        return tracked

    def _whole_pages(self, request: Request) -> int:
        return self._pages.whole(len(request.block_hashes) * self._pages.hash_tokens)


def _says_away(lookup: Lookup | None) -> bool:
    return lookup is not None and not len(lookup) and lookup.reason is MissReason.Unavailable


def _release_result(waited: Future[Lookup | None]) -> None:
    found = None if waited.cancelled() or waited.exception() else waited.result()
    if found is not None:
        found.release()


def _runs(held: _Held) -> list[Stored]:
    """Join written blocks of a save that follow each other."""
    runs: list[Stored] = []
    rows = sorted(held.written, key=lambda row: (held.blocks.groups[row], held.blocks.indexes[row]))
    for row in rows:
        group, index = held.blocks.groups[row], held.blocks.indexes[row]
        if runs and runs[-1].group == group and runs[-1].first + runs[-1].count == index:
            runs[-1] = Stored(held.request, group, runs[-1].first, runs[-1].count + 1)
        else:
            runs.append(Stored(held.request, group, index, 1))
    return runs
