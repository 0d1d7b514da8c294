"""The shape of a model's KV cache, from its Hugging Face config.json."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgumentError

_MAX_FILE_BYTES = 16 << 20
_MAX_LAYERS = 10_000
_MAX_VALUE = 1 << 24
# Where models with several parts keep the part that has the KV cache.
_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
# One fact, several spellings.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "multi_query_group_num", "num_kv_heads", "n_head_kv")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEAD_DIM = ("head_dim", "kv_channels")
# What a config leaves out when it equals the default of its class in Transformers.
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window_pattern": 2},
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
    "cohere2": {"sliding_window_pattern": 4},
    "qwen3_next": {"full_attention_interval": 4},
}
_FULL = ("full_attention", "attention", "global_attention")
_SLIDING = ("sliding_attention", "chunked_attention", "local_attention")
_STATE = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp")
DTYPE_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "int8": 1,
}
"""Bytes of an element of the KV cache."""
_DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a token leaves in the KV cache of a model."""

    name: str
    full_layers: int
    """Layers that attend to every token before."""
    sliding_layers: int
    """Layers that attend to the last `window` tokens."""
    window: int
    state_layers: int
    """Layers that keep a state of fixed size instead of tokens; nothing of them is stored."""
    kv_heads: int
    head_dim: int
    latent_dim: int
    """Multi-head latent attention: numbers a token and layer, shared by all heads; 0: none."""
    dtype: str
    """Of the cache: a name in DTYPE_BYTES."""
    notes: tuple[str, ...] = ()
    """What was taken for granted."""

    @property
    def layers(self) -> int:
        """Return the number of layers with tokens in the cache."""
        return self.full_layers + self.sliding_layers

    @property
    def layer_token_bytes(self) -> int:
        """Return the bytes of one token in one layer, all heads."""
        return self.head_token_numbers * (1 if self.latent_dim else self.kv_heads) * self.item_bytes

    @property
    def head_token_numbers(self) -> int:
        """Return the numbers of one token in one layer and head: key and value, or the latent."""
        return self.latent_dim or 2 * self.head_dim

    @property
    def item_bytes(self) -> int:
        """Return the bytes of a number."""
        return DTYPE_BYTES[self.dtype]


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json.

    Args:
        path: the file, or the folder of a model that has one.

    Raises:
        InvalidArgumentError: It cannot be read, or is no JSON object.
    """
    if path.is_dir():
        path = path / "config.json"
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer.
        with open(path, "rb", opener=lambda p, f: os.open(p, f | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgumentError(f"{path} is no regular file: name a config.json")
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read {path}: {error}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidArgumentError(
            f"{path} has more than {_MAX_FILE_BYTES >> 20} MiB: it is no model's config.json"
        )
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidArgumentError(f"{path}: expected a JSON object, as in a model's config.json")
    return config


def shape_of(config: Mapping[str, Any], dtype: str = "auto") -> ModelShape:
    """Return the shape of the KV cache of a model.

    Args:
        config: as in config.json.
        dtype: of the cache: a name in DTYPE_BYTES, or "auto" for the model's own.

    Raises:
        InvalidArgumentError: A value is missing or impossible, or the cache of such a model does
            not consist of tokens.
    """
    text = _text_part(config)
    if config.get("is_encoder_decoder"):
        raise InvalidArgumentError(
            "is_encoder_decoder: the cache of cross-attention cannot be shared by prefix"
        )
    kind = str(text.get("model_type") or config.get("model_type") or "model")
    defaults = _CLASS_DEFAULTS.get(kind, {})
    fields = _Fields({**defaults, **{k: v for k, v in text.items() if v is not None}})
    layer_kinds = _layer_kinds(fields, fields.number(_LAYERS, most=_MAX_LAYERS))
    notes = [
        f"{name} is not in the file: {value}, the default of {kind}"
        for name, value in defaults.items()
        if text.get(name) is None and "layer_types" not in text
    ]
    counted = {which: layer_kinds.count(which) for which in ("full", "sliding", "state")}
    if not counted["full"] + counted["sliding"]:
        raise InvalidArgumentError("no layer has attention: there are no KV pages to store")
    if counted["state"]:
        notes.append(
            f"{counted['state']} layers keep a state instead of tokens: it is not stored, and an "
            "engine needs it to go on from a prefix"
        )
    if fields.optional(("index_head_dim",)):
        notes.append("the keys of the sparse-attention indexer are not counted")
    latent = _latent_dim(fields)
    heads, head_dim = (1, latent) if latent else _heads(fields, notes)
    return ModelShape(
        name=_name(config, kind),
        full_layers=counted["full"],
        sliding_layers=counted["sliding"],
        window=_window(fields) if counted["sliding"] else 0,
        state_layers=counted["state"],
        kv_heads=heads,
        head_dim=head_dim,
        latent_dim=latent,
        dtype=_dtype(config, text, dtype, notes),
        notes=tuple(notes),
    )


class _Fields:
    """Numbers of a config, each checked."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def optional(self, names: Sequence[str], *, most: int = _MAX_VALUE) -> int | None:
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, list):
                raise InvalidArgumentError(
                    f"{name} differs from layer to layer: such models are not supported"
                )
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidArgumentError(
                    f"{name} must be a whole number from 1 to {most}, not {str(value)[:40]!r}"
                )
            return value
        return None

    def number(self, names: Sequence[str], *, most: int = _MAX_VALUE) -> int:
        value = self.optional(names, most=most)
        if value is None:
            raise InvalidArgumentError(
                f"{names[0]} is missing: write the value that the model's class has by default "
                "into the file"
            )
        return value


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in _PARTS:
        part = config.get(name)
        if isinstance(part, dict) and not any(config.get(layers) for layers in _LAYERS):
            return _text_part(part)
    return config


def _name(config: Mapping[str, Any], kind: str) -> str:
    architectures = config.get("architectures")
    named = isinstance(architectures, list) and architectures and isinstance(architectures[0], str)
    return str(architectures[0] if named else kind)[:100]  # type: ignore[index]


def _latent_dim(fields: _Fields) -> int:
    rank = fields.optional(("kv_lora_rank",))
    return rank + fields.number(("qk_rope_head_dim",)) if rank else 0


def _heads(fields: _Fields, notes: list[str]) -> tuple[int, int]:
    """Return the number of KV heads, and the numbers in each."""
    heads = fields.number(_HEADS)
    kv_heads = fields.optional(_KV_HEADS)
    if kv_heads is None:
        kv_heads = 1 if fields.values.get("multi_query") is True else heads
    if heads % kv_heads:
        raise InvalidArgumentError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    head_dim = fields.optional(_HEAD_DIM)
    if head_dim is None:
        hidden = fields.number(_HIDDEN)
        if hidden % heads:
            raise InvalidArgumentError(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}: write "
                "head_dim into the file"
            )
        head_dim = hidden // heads
    if fields.optional(("v_head_dim",)) not in (None, head_dim):
        notes.append("v_head_dim differs from head_dim, and is padded to it, as engines do")
    return kv_heads, head_dim


def _window(fields: _Fields) -> int:
    return fields.optional(("sliding_window", "attention_chunk_size")) or 0


def _layer_kinds(fields: _Fields, layers: int) -> list[str]:
    """Return "full", "sliding" or "state" for each layer that has a cache of its own."""
    kinds = _listed_kinds(fields, layers) or _regular_kinds(fields, layers)
    shared = fields.values.get("num_kv_shared_layers") or 0  # they use the cache of earlier layers
    if type(shared) is not int or not 0 <= shared < layers:
        raise InvalidArgumentError(f"num_kv_shared_layers must be from 0 to {layers - 1}")
    return kinds[: layers - shared]


def _listed_kinds(fields: _Fields, layers: int) -> list[str] | None:
    pattern = fields.values.get("hybrid_override_pattern")
    if isinstance(pattern, str) and pattern:
        return ["full" if letter == "*" else "state" for letter in pattern[:_MAX_LAYERS]]
    numbers = fields.values.get("attn_type_list")
    if isinstance(numbers, list) and numbers:
        return ["full" if number == 1 else "state" for number in numbers[:_MAX_LAYERS]]
    names = fields.values.get("layer_types")
    if not names:
        return None
    if not isinstance(names, list) or len(names) != layers:
        raise InvalidArgumentError(f"layer_types must list {layers} layers, as num_hidden_layers")
    return [_kind_of(name, i) for i, name in enumerate(names)]


def _kind_of(name: object, layer: int) -> str:
    for kind, known in (("full", _FULL), ("sliding", _SLIDING), ("state", _STATE)):
        if name in known:
            return kind
    raise InvalidArgumentError(
        f"layer_types[{layer}] is {str(name)[:40]!r}: expected one of "
        f"{', '.join(_FULL + _SLIDING + _STATE)}"
    )


def _regular_kinds(fields: _Fields, layers: int) -> list[str]:
    """Return the kinds of layers that follow a rule."""
    interval = fields.optional(("full_attention_interval", "attn_layer_period"))
    if interval:
        offset = fields.values.get("attn_layer_offset", interval - 1)
        return ["full" if i % interval == offset else "state" for i in range(layers)]
    window = _window(fields)
    if not window or fields.values.get("use_sliding_window") is False:
        return ["full"] * layers
    pattern = fields.optional(("sliding_window_pattern",))
    if pattern:
        return ["full" if (i + 1) % pattern == 0 else "sliding" for i in range(layers)]
    first = fields.values.get("max_window_layers", 0)
    first = first if type(first) is int else 0
    return ["full" if i < first else "sliding" for i in range(layers)]


def _dtype(
    config: Mapping[str, Any], text: Mapping[str, Any], wanted: str, notes: list[str]
) -> str:
    if wanted != "auto":
        return _DTYPE_NAMES.get(wanted, wanted)
    for part in (text, config):
        for name in ("torch_dtype", "dtype"):
            value = part.get(name)
            if value is None:
                continue
            known = _DTYPE_NAMES.get(str(value), str(value).removeprefix("torch."))
            if known not in DTYPE_BYTES:
                raise InvalidArgumentError(
                    f"{name} {str(value)[:40]!r} is no type of a KV cache: give --kv-dtype"
                )
            return known
    notes.append("torch_dtype is not in the file: bfloat16")
    return "bfloat16"
