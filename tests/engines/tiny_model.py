"""Writes tiny models of seeded random numbers in the files that engines load: no hub, no torch."""

from __future__ import annotations

import json
import random
import struct
from array import array
from pathlib import Path
from typing import Any

VOCABULARY = 1000
HIDDEN = 128
INTERMEDIATE = 256
HEADS, KV_HEADS, HEAD = 4, 2, 32
LAYERS = 2


_Tensors = dict[str, tuple[tuple[int, ...], float | None]]


def write_llama(folder: Path, seed: int = 0) -> Path:
    """Write a Llama of two layers whose attention decides what it says next."""
    config = {
        **_config("LlamaForCausalLM", "llama"),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    tensors = _tensors(("input_layernorm", "post_attention_layernorm"))
    tensors["lm_head.weight"] = ((VOCABULARY, HIDDEN), 0.2)
    return _write(folder, config, tensors, seed)


def write_gemma3(folder: Path, window: int, seed: int = 0) -> Path:
    """Write a Gemma 3 of two layers: the first sees a sliding window, the second all tokens."""
    config = {
        **_config("Gemma3ForCausalLM", "gemma3_text"),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": HEAD,
        "rope_local_base_freq": 10000.0,
        "sliding_window": window,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    }
    norms = (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    )
    tensors = _tensors(norms)
    for number in range(LAYERS):
        for norm in ("q_norm", "k_norm"):
            tensors[f"model.layers.{number}.self_attn.{norm}.weight"] = ((HEAD,), None)
    return _write(folder, config, tensors, seed)


def _config(architecture: str, model_type: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _tensors(norms: tuple[str, ...]) -> _Tensors:
    """Return shape and standard deviation of each tensor; None: ones."""
    tensors: _Tensors = {
        "model.embed_tokens.weight": ((VOCABULARY, HIDDEN), 1.0),
        "model.norm.weight": ((HIDDEN,), None),
    }
    for number in range(LAYERS):
        layer = f"model.layers.{number}."
        tensors |= {
            layer + "self_attn.q_proj.weight": ((HEADS * HEAD, HIDDEN), 0.16),
            layer + "self_attn.k_proj.weight": ((KV_HEADS * HEAD, HIDDEN), 0.16),
            layer + "self_attn.v_proj.weight": ((KV_HEADS * HEAD, HIDDEN), 0.08),
            layer + "self_attn.o_proj.weight": ((HIDDEN, HEADS * HEAD), 0.08),
            layer + "mlp.gate_proj.weight": ((INTERMEDIATE, HIDDEN), 0.08),
            layer + "mlp.up_proj.weight": ((INTERMEDIATE, HIDDEN), 0.08),
            layer + "mlp.down_proj.weight": ((HIDDEN, INTERMEDIATE), 0.08),
            **{f"{layer}{norm}.weight": ((HIDDEN,), None) for norm in norms},
        }
    return tensors


def _write(folder: Path, config: dict[str, Any], tensors: _Tensors, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    _write_safetensors(folder / "model.safetensors", tensors, seed)
    return folder


def _write_safetensors(path: Path, tensors: _Tensors, seed: int) -> None:
    """Write float32 tensors of random numbers.

    Source: the format's description: u64 length, JSON header, bytes.
    """
    draw = random.Random(seed)
    header: dict[str, Any] = {}
    body = bytearray()
    for name, (shape, scale) in tensors.items():
        count = 1
        for size in shape:
            count *= size
        values = [1.0] * count if scale is None else [draw.gauss(0, scale) for _ in range(count)]
        begin = len(body)
        body += array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(body)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
