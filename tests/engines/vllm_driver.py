"""Runs vLLM on the CPU at a test's word: one JSON line in, one JSON line out.

usage: vllm_driver.py MODEL ANSWERS ENGINE-JSON

ENGINE-JSON holds arguments of vllm.LLM, "transfer" those of its KVTransferConfig and "events" those
of its KVEventsConfig. A line on stdin is one of

    {"prompts": [[token, …], …], "max_tokens": n}
    {"forget": true}                                empty the engine's own prefix cache
    {"count": name}                                 a counter of vLLM's metrics, by label

The answers go to the file ANSWERS, as vLLM prints where it likes. The end of stdin ends the engine.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    model, answers_path, arguments = sys.argv[1:]
    from vllm import LLM, SamplingParams
    from vllm.config import KVEventsConfig, KVTransferConfig

    engine: dict[str, Any] = json.loads(arguments)
    transfer = engine.pop("transfer", None)
    if transfer is not None:
        engine["kv_transfer_config"] = KVTransferConfig(**transfer)
    if "events" in engine:
        engine["kv_events_config"] = KVEventsConfig(**engine.pop("events"))
    defaults = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 1024,
        "block_size": 32,
        "enforce_eager": True,
        "enable_prefix_caching": True,
        "disable_log_stats": False,
        "seed": 0,
    }
    llm = LLM(model=model, **{**defaults, **engine})
    with open(answers_path, "w", buffering=1) as answers:

        def answer(**values: Any) -> None:
            answers.write(json.dumps(values) + "\n")

        answer(ready=True)
        for line in sys.stdin:
            order = json.loads(line)
            if order.get("forget"):
                answer(forgotten=llm.reset_prefix_cache())
                continue
            if "count" in order:
                found = [one for one in llm.get_metrics() if one.name == order["count"]]
                answer(counted={one.labels.get("what", ""): one.value for one in found})
                continue
            sampling = SamplingParams(
                temperature=0,
                max_tokens=order["max_tokens"],
                ignore_eos=True,
                detokenize=False,
            )
            prompts = [{"prompt_token_ids": tokens} for tokens in order["prompts"]]
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            answer(
                tokens=[list(output.outputs[0].token_ids) for output in outputs],
                cached=[output.num_cached_tokens for output in outputs],
            )
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
