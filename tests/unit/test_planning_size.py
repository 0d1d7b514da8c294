"""Bytes of KV pages: models of known shape, computed by hand; and configs that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore.cli.operator import main
from kvstore.errors import InvalidArgumentError
from kvstore.planning.model import read_config, shape_of
from kvstore.planning.sizing import pages_of, plan_pages, plan_segment
from tests.engines import test_vllm, tiny_model

# From the models' config.json files, what matters of them.
LLAMA_3_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
QWEN3_235B = {  # head_dim is not hidden_size / num_attention_heads
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "head_dim": 128,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "sliding_window": None,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "torch_dtype": "bfloat16",
}
GEMMA_3_27B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "hidden_size": 5376,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}
QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "head_dim": 256,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "torch_dtype": "bfloat16",
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12}


@pytest.mark.parametrize(
    ("config", "dtype", "token_bytes"),
    [
        (LLAMA_3_70B, "auto", 327_680),  # 80 layers * 2 * 8 heads * 128 * 2 B
        (LLAMA_3_70B, "fp8", 163_840),
        (QWEN3_235B, "auto", 192_512),  # 94 * 2 * 4 * 128 * 2
        (DEEPSEEK_V3, "auto", 70_272),  # 61 * (512 + 64) * 2
        (DEEPSEEK_V3, "fp8", 35_136),
        (GEMMA_3_27B, "auto", 507_904),  # 62 * 2 * 16 * 128 * 2
        (QWEN3_NEXT, "auto", 24_576),  # 12 of 48 layers * 2 * 2 * 256 * 2
        (GPT2, "float16", 36_864),  # 12 * 2 * 12 * 64 * 2: every head has keys of its own
    ],
)
def test_bytes_of_a_token(config: dict[str, Any], dtype: str, token_bytes: int) -> None:
    assert pages_of(shape_of(config, dtype), "sglang", 1, 64).token_bytes == token_bytes


def test_layers_of_a_hybrid_model() -> None:
    gemma = shape_of(GEMMA_3_27B)
    assert (gemma.full_layers, gemma.sliding_layers, gemma.window) == (10, 52, 1024)
    listed = ["sliding_attention"] * 3 + ["full_attention"]
    text = {**GEMMA_3_27B["text_config"], "num_hidden_layers": 4, "layer_types": listed}  # type: ignore[dict-item]
    shape = shape_of({"text_config": text})
    assert (shape.full_layers, shape.sliding_layers) == (1, 3)
    next_ = shape_of(QWEN3_NEXT)
    assert (next_.full_layers, next_.state_layers) == (12, 36)
    assert any("keep a state" in note for note in next_.notes)


@pytest.mark.parametrize(
    ("config", "engine", "tp", "objects"),
    [
        # 64 tokens * 80 layers * 1 head * 2 * 128 * 2 B
        (LLAMA_3_70B, "sglang", 8, [(8, 2_621_440)]),
        (LLAMA_3_70B, "vllm", 8, [(8, 2_621_440)]),
        # Four heads on eight ranks: vLLM's ranks with equal heads share, SGLang's do not.
        (QWEN3_235B, "sglang", 8, [(8, 64 * 94 * 2 * 128 * 2)]),
        (QWEN3_235B, "vllm", 8, [(4, 64 * 94 * 2 * 128 * 2)]),
        # One rank writes the latent for all.
        (DEEPSEEK_V3, "sglang", 8, [(1, 64 * 70_272)]),
        (DEEPSEEK_V3, "vllm", 16, [(1, 64 * 70_272)]),
        # Ten full layers, 52 others in six groups: 4 * 9 + 2 * 8. 4 heads on a rank:
        # 2,048 B a token and layer.
        (
            GEMMA_3_27B,
            "vllm",
            4,
            [(4, 64 * 10 * 2_048), (16, 64 * 9 * 2_048), (8, 64 * 8 * 2_048)],
        ),
        (GEMMA_3_27B, "sglang", 4, [(4, 64 * 62 * 4 * 256 * 2)]),
    ],
)
def test_objects_of_a_page(
    config: dict[str, Any], engine: str, tp: int, objects: list[tuple[int, int]]
) -> None:
    pages = pages_of(shape_of(config), engine, tp, 64)
    sizes = [(one.count, one.size_bytes) for one in pages.objects]
    assert sizes == objects
    assert pages.page_bytes == pages.copies * 64 * pages.token_bytes


def test_the_tiny_models_of_the_engine_tests(tmp_path: Path) -> None:
    """Those tests compare their numbers with what real engines have written."""
    model = tiny_model.write_llama(tmp_path / "llama")
    pages = pages_of(shape_of(read_config(model)), "vllm", 1, test_vllm.BLOCK)
    assert [one.size_bytes for one in pages.objects] == [test_vllm.PAGE_BYTES]
    ranks = pages_of(shape_of(read_config(model)), "vllm", 2, test_vllm.BLOCK)
    assert [(one.count, one.size_bytes) for one in ranks.objects] == [
        (2, test_vllm.PAGE_BYTES // 2)
    ]
    gemma = tiny_model.write_gemma3(tmp_path / "gemma", window=64)
    halves = pages_of(shape_of(read_config(gemma)), "vllm", 1, test_vllm.BLOCK)
    assert [(one.what, one.count, one.size_bytes) for one in halves.objects] == [
        ("full attention", 1, test_vllm.PAGE_BYTES // 2),
        ("sliding window", 1, test_vllm.PAGE_BYTES // 2),
    ]


def test_what_is_planned_fits() -> None:
    pages = pages_of(shape_of(LLAMA_3_70B), "sglang", 8, 64)
    plan = plan_pages(pages, 256_000)  # 500 sessions of 32,768 tokens
    assert plan.objects == 2_048_000
    assert plan.data_bytes == 256_000 * 20_971_520
    assert plan.segment_bytes * 0.95 >= plan.data_bytes
    assert plan.segment_bytes < plan.data_bytes * 1.06
    assert plan.shm_bytes == plan.segment_bytes + 2 * plan.index_bytes
    assert plan_segment(pages, plan.segment_bytes).pages == 256_000
    small = plan_segment(pages_of(shape_of(DEEPSEEK_V3), "sglang", 8, 1), 1 << 30)
    assert small.index_bytes == 64 << 20  # as deploy/README.md says


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": 1e3}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers must be a whole number"),
        ({"num_key_value_heads": [8, 4]}, "differs from layer to layer"),
        ({"num_key_value_heads": 7}, "not a multiple of num_key_value_heads 7"),
        ({"num_attention_heads": 60, "num_key_value_heads": 6}, "write head_dim"),
        ({"head_dim": "128"}, "head_dim must be a whole number"),
        ({"torch_dtype": "int4"}, "give --kv-dtype"),
        ({"torch_dtype": ["x"]}, "give --kv-dtype"),
        ({"layer_types": ["full_attention"]}, "layer_types must list 80 layers"),
        ({"layer_types": ["\x1b[31m"] * 80}, "layer_types[0]"),
        ({"layer_types": [{}] * 80}, "layer_types[0]"),
        ({"layer_types": ["mamba"] * 80}, "no layer has attention"),
        ({"num_kv_shared_layers": 80}, "num_kv_shared_layers"),
        ({"is_encoder_decoder": True}, "cross-attention"),
        ({"kv_lora_rank": 512}, "qk_rope_head_dim is missing"),
    ],
)
def test_a_wrong_config_is_explained(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        shape_of({**LLAMA_3_70B, **change})
    assert named in str(raised.value)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["size", *arguments])


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN', b"null"]
)
def test_a_file_that_is_no_config_gets_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    found = run("--model", str(file))
    assert found.exit_code == 2
    assert found.stderr.count("\n") == 1
    assert str(file) in found.stderr


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path, Path("/dev/null")):
        found = run("--model", str(path))
        assert found.exit_code == 2, path
        assert found.stderr.count("\n") == 1


def test_the_command_prints_formula_plan_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_70B))
    arguments = ("--model", str(tmp_path), "--tp", "8", "--sessions", "500", "--tokens", "32k")
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "80 layers x 2 (key, value) x 8 KV heads x 128 x 2 B" in shown.stdout
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["token_bytes"] == 327_680
    assert document["plan"]["sessions"] == 500
    assert document["node_config"]["segment_size"] == document["plan"]["segment_bytes"]
    fits = json.loads(run("--model", str(tmp_path), "--segment", "1tb", "--json").stdout)
    assert fits["plan"]["tokens"] == 3_187_648


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sessions", "5"),
        ("--sessions", "5", "--tokens", "63"),
        ("--sessions", "5", "--tokens", "64", "--segment", "1gb"),
        ("--segment", "0"),
        ("--segment", "much"),
        ("--tp", "3"),
        ("--tp", "0"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_70B))
    found = run("--model", str(tmp_path), *arguments)
    assert found.exit_code == 2
    assert "Traceback" not in found.output
