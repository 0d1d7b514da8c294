"""Facts about a vLLM engine that decide whether pages are compatible; imports vLLM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import AttentionSpec, CrossAttentionSpec, iter_layer_specs

from kvstore.integrations.identity import namespace_of
from kvstore.integrations.vllm.options import Options
from kvstore.integrations.vllm.pages import Pages

ENGINE = "vllm"


def refusal(vllm_config: Any, kv_cache_config: Any) -> str:
    """Say why this engine's cache cannot be shared; "" when it can."""
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "context parallelism spreads a block's tokens over ranks"
    if kv_cache_config.hisparse_host_num_blocks is not None:
        return "HiSparse keeps blocks in separate pools"
    if not kv_cache_config.prefix_cacheable_groups:
        return "no layer's cache can be shared by prefix"
    for group in kv_cache_config.prefix_cacheable_groups:
        for spec in iter_layer_specs(group.kv_cache_spec):
            if not isinstance(spec, AttentionSpec) or isinstance(spec, CrossAttentionSpec):
                return f"{type(spec).__name__} is a state, not pages of tokens"
    return ""


def pages(vllm_config: Any, kv_cache_config: Any) -> Pages:
    """Return how this engine's tokens are divided into pages."""
    tokens, hashed = kv_cache_utils.resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    parallel = vllm_config.parallel_config
    return Pages(
        tokens,
        hashed,
        tuple(
            (group, kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size)
            for group in kv_cache_config.prefix_cacheable_group_ids
        ),
        parallel.pipeline_parallel_size
        * (parallel.tensor_parallel_size // kv_cache_config.kv_tp_replicas),
    )


def model_name(vllm_config: Any, options: Options) -> str:
    """Return the name that all engines of this model use."""
    return options.model or str(vllm_config.model_config.model)


def namespace(
    vllm_config: Any, options: Options, of_tokens: Pages, layouts: Mapping[str, str]
) -> str:
    """Name the set of pages that this engine can read.

    Args:
        vllm_config: vLLM's.
        options: of the operator.
        of_tokens: how tokens are divided into pages.
        layouts: byte order of each worker's blocks.
    """
    model, cache = vllm_config.model_config, vllm_config.cache_config
    parallel = vllm_config.parallel_config
    facts = {
        "weights": [model.revision, options.revision, str(model.quantization)],
        "architecture": _digest(model.hf_config.to_dict()),
        "dtype": str(model.dtype),
        "cache_dtype": cache.cache_dtype,
        "tokens": [of_tokens.tokens, of_tokens.hash_tokens, of_tokens.groups],
        "ranks": [
            parallel.tensor_parallel_size,
            parallel.pipeline_parallel_size,
            of_tokens.ranks,
        ],
        "hash": cache.prefix_caching_hash_algo,
        "layouts": dict(layouts),
    }
    return namespace_of(ENGINE, model_name(vllm_config, options), facts)


def probe(vllm_config: Any, of_tokens: Pages) -> str:
    """Return this engine's hash of an agreed list of tokens."""
    hash_function = get_hash_fn_by_name(vllm_config.cache_config.prefix_caching_hash_algo)
    tokens = range(of_tokens.hash_tokens)
    return bytes(kv_cache_utils.hash_block_tokens(hash_function, None, tokens)).hex()


def _digest(values: Mapping[str, Any]) -> str:
    """Digest a model's configuration, without its path and library version."""
    kept = {
        name: value
        for name, value in values.items()
        if name not in {"_name_or_path", "transformers_version"}
    }
    text = json.dumps(kept, sort_keys=True, default=lambda other: type(other).__name__)
    return hashlib.sha256(text.encode()).hexdigest()
