"""KVStoreConnector: vLLM's KV connector interface (v1) on top of the two sides."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_events import BlockStored
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from kvstore.errors import Status
from kvstore.integrations.guard import Guard
from kvstore.integrations.identity import peers_that_share_no_key
from kvstore.integrations.link import Link
from kvstore.integrations.vllm import facts
from kvstore.integrations.vllm.memory import memory_of
from kvstore.integrations.vllm.messages import Answer, Step
from kvstore.integrations.vllm.options import Options
from kvstore.integrations.vllm.scheduler import SchedulerSide, Stored
from kvstore.integrations.vllm.telemetry import Counted, Intervals, PrometheusCounters
from kvstore.integrations.vllm.worker import WorkerSide

_log = init_logger("vllm.kvstore")  # below vLLM's own logger, whose handlers show it
_MEDIUM = "STORAGE"  # vLLM's name for media other than GPU and CPU


@dataclass
class StepMetadata(KVConnectorMetadata):
    """Carries a Step to the workers."""

    step: Step


@dataclass
class AnswerMetadata(KVConnectorWorkerMetadata):
    """Carries an Answer to the scheduler."""

    answer: Answer

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """Merge another worker's answer."""
        assert isinstance(other, AnswerMetadata)
        self.answer.join(other.answer)
        return self


@dataclass
class LayoutMetadata(KVConnectorHandshakeMetadata):
    """Tells the scheduler the layout of a worker's blocks, which is part of the namespace."""

    layout: str


class KVStoreConnector(KVConnectorBase_V1, SupportsHMA):
    """Shares the KV cache of vLLM engines through a kvstore cluster.

    A request's prompt is looked up once; pages that are found are loaded in the background while
    other requests run, and computed pages are stored in the background. While the store is
    unreachable, slow or damaged, requests are computed as without it. Only whole pages with a valid
    checksum are used.

    vLLM's prefix hashes must be equal on all engines, as they are with the default algorithm.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Create one side; vLLM creates the scheduler's and one per worker.

        Raises:
            ValueError: kv_connector_extra_config is wrong.
        """
        super().__init__(vllm_config, role, kv_cache_config)
        self._options = Options.of(self._kv_transfer_config.kv_connector_extra_config or {})
        rate = self._options.prefill_tokens_per_s
        self._guard = Guard("vLLM", prefill_tokens_per_s=rate)
        self._intervals = Intervals(self._guard)
        self._namespace = ""
        self._greeted = False
        self._failed_blocks: set[int] = set()
        self._layout: LayoutMetadata | None = None
        self._worker: WorkerSide | None = None
        self._scheduler: SchedulerSide | None = None
        # A page that could not be loaded is a miss; vLLM's default would fail its request.
        self._kv_transfer_config.kv_load_failure_policy = "recompute"
        self._refusal = facts.refusal(vllm_config, kv_cache_config)
        if self._refusal:
            _log.warning("kvstore is not used: %s", self._refusal)
        elif role == KVConnectorRole.SCHEDULER:
            self._pages = facts.pages(vllm_config, kv_cache_config)
            self._scheduler = self._scheduler_side()

    @property
    def requires_kv_delivery(self) -> bool:
        """Say that a dropped save is harmless: its tokens are computed again."""
        return False

    def get_kv_connector_stats(self) -> Counted | None:
        """Return this side's counters since the last call."""
        return self._intervals.take()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Counted:
        """Wrap counters that came from another process."""
        return Counted(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *of_vllm: Any) -> PrometheusCounters:
        """Register the counters with vLLM's metrics."""
        return PrometheusCounters(*of_vllm)

    # --- scheduler's side ---

    def _scheduler_side(self) -> SchedulerSide:
        config = self._vllm_config
        speculative, events = config.speculative_config, config.kv_events_config
        side = SchedulerSide(
            options=self._options,
            pages=self._pages,
            guard=self._guard,
            loads=self._kv_transfer_config.is_kv_consumer,
            saves=self._kv_transfer_config.is_kv_producer,
            workers=config.parallel_config.world_size,
            keep_back=int(speculative is not None and speculative.use_eagle_block_drop()),
        )
        if events is not None and events.enable_kv_cache_events:
            side.stored = []
        return side

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Set the namespace, now that the layout of every worker's blocks is known."""
        if self._scheduler is None:
            return
        layouts = {
            f"{pp}.{tp}": one.layout
            for (pp, tp), one in sorted(metadata.items())
            if isinstance(one, LayoutMetadata)
        }
        if len(layouts) != self._vllm_config.parallel_config.world_size:
            _log.warning("kvstore is not used: not every worker can share its KV cache")
            return
        options = self._options
        namespace = facts.namespace(self._vllm_config, options, self._pages, layouts)
        self._namespace = namespace
        link = Link(self._guard, lambda: options.open_store(namespace, options.lookup_timeout_ms))
        self._scheduler.start(namespace, link)
        _log.info("kvstore namespace=%s", namespace)

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """Use vLLM's block pool to hold blocks while they are saved."""
        if self._scheduler is not None:
            self._scheduler.use_pool(gpu_block_pool)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return how many tokens the store has beyond those computed; they load asynchronously."""
        if self._scheduler is None:
            return 0, False
        self._greet()
        tokens = self._scheduler.matched(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Load into the blocks that the request was given."""
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Tell the workers which blocks to load and save in this step."""
        if self._scheduler is None:
            return StepMetadata(Step())
        state = scheduler_output.kv_connector_block_state
        tables_of = state.get_block_ids if state is not None else lambda request_id: None
        return StepMetadata(self._scheduler.step(scheduler_output.num_scheduled_tokens, tables_of))

    def update_connector_output(self, connector_output: Any) -> None:
        """Process the workers' answers."""
        if self._scheduler is None:
            return
        metadata = connector_output.kv_connector_worker_meta
        if isinstance(metadata, AnswerMetadata):
            self._scheduler.answered(metadata.answer)
        self._scheduler.loaded(connector_output.finished_recving or set())

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks may be freed, except those held by saves."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks may be freed, except those held by saves."""
        if self._scheduler is not None:
            self._scheduler.finished(request.request_id)
        return False, None

    def has_pending_push_work(self) -> bool:
        """Keep the engine stepping while blocks are held for saves."""
        return self._scheduler is not None and self._scheduler.has_held_blocks()

    def has_pending_block_frees(self) -> bool:
        """Say whether blocks become free without preempting a request."""
        return self._scheduler is not None and self._scheduler.has_blocks_to_come()

    def take_events(self) -> Iterable[Any]:
        """Return an event for each run of blocks that was stored."""
        if self._scheduler is None or not self._scheduler.stored:
            return ()
        stored, self._scheduler.stored = self._scheduler.stored, []
        return [self._event(one) for one in stored]

    def reset_cache(self) -> bool | None:
        """Flush this namespace, for example because the weights have changed."""
        return None if self._scheduler is None else self._scheduler.flush() is Status.Ok

    def _event(self, stored: Stored) -> BlockStored:
        request = stored.request
        tokens = self._kv_cache_config.kv_cache_groups[stored.group].kv_cache_spec.block_size
        each = tokens // self._pages.hash_tokens
        hashes = [maybe_convert_block_hash(one) for one in request.block_hashes[each - 1 :: each]]
        end = stored.first + stored.count
        return BlockStored(
            block_hashes=hashes[stored.first : end],
            parent_block_hash=hashes[stored.first - 1] if stored.first else None,
            token_ids=list(request.all_token_ids[stored.first * tokens : end * tokens]),
            block_size=tokens,
            lora_id=request.lora_request.adapter_id if request.lora_request else None,
            medium=_MEDIUM,
            lora_name=request.lora_request.name if request.lora_request else None,
            group_idx=stored.group,
        )

    def _greet(self) -> None:
        """Warn once of engines that share no keys; in a thread, as it may take a while."""
        if self._greeted or not self._namespace:
            return
        self._greeted = True
        threading.Thread(target=self._meet_peers, daemon=True).start()

    def _meet_peers(self) -> None:
        options = self._options
        none: list[str] = []
        sentences = self._guard.call(
            "peers",
            lambda: peers_that_share_no_key(
                lambda namespace: options.open_store(namespace, options.timeout_ms),
                facts.model_name(self._vllm_config, options),
                self._namespace,
                facts.probe(self._vllm_config, self._pages),  # vLLM's seed has been set
            ),
            none,
        )
        for sentence in sentences:
            self._guard.say(f"peer: {sentence}", sentence)

    # --- worker's side ---

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Register this rank's KV cache and start the threads that load and save."""
        if self._refusal:
            return
        cache, options = self._kv_cache_config, self._options
        groups = {
            group: cache.kv_cache_groups[group].layer_names
            for group in cache.prefix_cacheable_group_ids
        }
        try:
            memory = memory_of(kv_caches, groups, cache.num_blocks)
        except Exception as error:  # an unsupported KV cache: run without the store
            self._refusal = f"{type(error).__name__}: {error}"
            _log.warning("kvstore is not used: %s", self._refusal)
            return
        tensor, pipeline = get_tp_group(), get_pp_group()
        ranks = tensor.world_size // cache.kv_tp_replicas
        place, copy = divmod(tensor.rank_in_group, cache.kv_tp_replicas)
        self._layout = LayoutMetadata(memory.layout)
        self._worker = WorkerSide(
            memory=memory,
            guard=self._guard,
            open_store=lambda namespace: options.open_store(namespace, options.timeout_ms),
            rank=pipeline.rank_in_group * ranks + place,
            writes=copy == 0,
            replicas=options.replicas,
        )

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Return the layout of this rank's blocks."""
        return self._layout

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Start this step's loads in the background."""
        if self._worker is not None:
            self._worker.start_loads(self._step())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: a request runs only after all of its blocks are loaded."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Do nothing: blocks are saved with all layers, after the forward pass."""

    def wait_for_save(self) -> None:
        """Start this step's saves in the background; their blocks are held until they finish.

        For the same reason `handle_preemptions` does nothing: no block is overwritten.
        """
        if self._worker is not None:
            self._worker.start_saves(self._step())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return the requests whose loads have finished."""
        if self._worker is None:
            return KVConnectorTransferResults()
        finished, failed = self._worker.take_finished()
        results = KVConnectorTransferResults(finished_recving=finished)
        if len(self._kv_cache_config.kv_cache_groups) > 1:
            # A block number means other tokens in another group: the whole request is reported.
            results.failed_recving = set(failed)
        else:
            self._failed_blocks = set().union(*failed.values())
        return results

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Return no sent requests, and those whose loads have finished."""
        return None, self.get_transfer_results(finished_req_ids).finished_recving or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the failed blocks of the requests just reported, to be computed."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """Report loads and saves to the scheduler."""
        answer = None if self._worker is None else self._worker.take_answer()
        return None if answer is None else AnswerMetadata(answer)

    def shutdown(self) -> None:
        """Stop the threads and close the store; running saves get a little time."""
        scheduler, self._scheduler = self._scheduler, None
        worker, self._worker = self._worker, None
        if scheduler is not None:
            scheduler.close()
        if worker is not None:
            worker.close()
        if scheduler is not None or worker is not None:
            _log.info("kvstore %s: %s", self.role.name.lower(), self._guard.stats())

    def _step(self) -> Step:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepMetadata)
        return metadata.step
