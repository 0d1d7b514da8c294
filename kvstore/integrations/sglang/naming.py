"""Which pages are compatible, and the names of a page's objects.

The namespace stands for everything that all ranks of an engine have in common; `kvstore flush`
empties it in one step. A key names the page by SGLang's hash of its tokens and of all before them,
then the pool, a digest of the pool's own shape, and the rank where ranks hold different bytes:

    <hash>.kv.5f1c20aa.tp0      a rank of a model with attention heads
    <hash>.kv.91b0e3d4          MLA: every rank holds the same, rank 0 writes it
    <hash>.mamba.77ab01c2.tp1of2  state that is split although the model's KV is not

Pages of another format have other names: a miss, never wrong bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.integrations.identity import namespace_of

# Attributes that affect the bytes of a page in host pools of the same class.
_SHAPE = (
    *("dtype", "layout", "page_size", "layer_num", "start_layer", "end_layer"),
    *("head_dim", "v_head_dim", "kv_cache_dim", "kv_lora_rank", "qk_rope_head_dim"),
    *("indexer_dtype", "item_bytes", "state_page_bytes", "conv_dtype", "conv_state_shapes"),
    *("temporal_dtype", "temporal_state_shape", "num_mamba_layers"),
)
_SHAPE_OF_HEADS = ("head_num", "size_per_token")  # divided where a page is split by heads


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Position of this process among those that compute one model.

    Attributes:
        replicated: every tensor-parallel rank holds the same KV (MLA); one of them writes it.
        split: number of objects into which a page is divided by heads, so that engines with
            another number of ranks find it (SGLang's tp_lcm_size); 1: undivided.
    """

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    cp_rank: int = 0
    cp_size: int = 1
    dcp_rank: int = 0
    dcp_size: int = 1
    replicated: bool = False
    split: int = 1

    @classmethod
    def of(cls, config: Any) -> Ranks:
        """Read SGLang's HiCacheStorageConfig; older versions support tensor parallelism only."""
        tp_size = int(config.tp_size)
        split = 1
        if getattr(config, "should_split_heads", False):
            split = int(config.tp_lcm_size) // tp_size
        return cls(
            tp_rank=int(config.tp_rank),
            tp_size=tp_size,
            pp_rank=int(getattr(config, "pp_rank", 0)),
            pp_size=int(getattr(config, "pp_size", 1)),
            cp_rank=int(getattr(config, "attn_cp_rank", 0)),
            cp_size=int(getattr(config, "attn_cp_size", 1)),
            dcp_rank=int(getattr(config, "dcp_rank", 0)),
            dcp_size=int(getattr(config, "dcp_size", 1)),
            replicated=bool(config.is_mla_model),
            split=split,
        )

    @property
    def first(self) -> bool:
        """Whether this rank acts for all."""
        return self.tp_rank == self.pp_rank == self.cp_rank == 0

    def facts(self) -> dict[str, object]:
        """Return the properties of the ranks that make pages incompatible."""
        tensor = 0 if self.replicated else self.tp_size * self.split
        return {"tp": tensor, "pp": self.pp_size, "cp": self.cp_size, "dcp": self.dcp_size}

    def suffixes(self, sharded: bool, split: int) -> list[str]:
        """Return the suffixes of one page's keys, one per object.

        Args:
            sharded: whether tensor-parallel ranks hold different bytes.
            split: objects of a page, in the order of their heads.
        """
        stages = ""
        if self.pp_size > 1:
            stages += f".pp{self.pp_rank}"
        if self.cp_size > 1:
            stages += f".cp{self.cp_rank}"
        if self.dcp_size > 1:
            stages += f".dcp{self.dcp_rank}"
        if not sharded:
            return [stages]
        if self.replicated:  # the namespace does not cover tensor parallelism
            return [f".tp{self.tp_rank}of{self.tp_size}{stages}"]
        return [f".tp{self.tp_rank * split + part}{stages}" for part in range(split)]


def pages_namespace(
    model: str, weights: Mapping[str, object], host_pool: Any, ranks: Ranks, interface_v1: bool
) -> str:
    """Name the set of pages that engines like this one can exchange.

    Args:
        model: its name in SGLang.
        weights: facts that distinguish these weights from others of that name.
        host_pool: the pool of the KV pages.
        ranks: of this process; only properties common to all ranks go into the name.
        interface_v1: False: pages are stored as SGLang's flat tensors, with another byte order.

    Returns:
        A namespace.
    """
    facts = {
        "weights": dict(weights),
        "dtype": str(getattr(host_pool, "dtype", "")),
        "layout": str(getattr(host_pool, "layout", "")),
        "page_size": int(getattr(host_pool, "page_size", 1)),
        "interface_v1": interface_v1,
        "ranks": ranks.facts(),
    }
    return namespace_of("sglang", model, facts)


def pool_digest(host_pool: Any, split: int) -> str:
    """Identify a pool's shape in 8 hexadecimal digits.

    Args:
        host_pool: SGLang's host pool.
        split: objects of a page; a page of 8 heads in two objects is like two of 4 heads.
    """
    shape: dict[str, object] = {"class": type(host_pool).__name__}
    for name in _SHAPE:
        shape[name] = str(getattr(host_pool, name, None))
    for name in _SHAPE_OF_HEADS:
        value = getattr(host_pool, name, None)
        shape[name] = str(value // split if isinstance(value, int) else value)
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:8]
