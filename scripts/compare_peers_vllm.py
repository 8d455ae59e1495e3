"""The vLLM side of compare_peers.py, run by a Python that has vLLM: one engine, one round per line of standard input.

argv: model directory, JSON with batches, input_len, output_len and keywords for vLLM. Answers JSON lines.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints: standard output is for answers
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    work = json.loads(sys.argv[2])
    context = work["input_len"] + work["output_len"] + 2
    sizes = {"max_model_len": max(2048, context), "max_num_seqs": max(64, *work["batches"])}
    usual = {"dtype": "bfloat16", "enable_prefix_caching": False, "disable_log_stats": True}
    llm = LLM(model=sys.argv[1], **{**usual, **sizes, "max_num_batched_tokens": 2048, **work["options"]})
    draw = random.Random(0)

    def seconds(batch: int, num_tokens: int) -> float:
        prompts = [{"prompt_token_ids": draw.choices(range(100, 40000), k=work["input_len"])} for _ in range(batch)]
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - started

    seconds(2, 8)
    print(json.dumps({"ready": True}), file=answers)
    for _ in sys.stdin:
        found = {}
        prefills = []
        for batch in work["batches"]:
            # Each the best of three: their difference is then as kind to vLLM as it can be.
            first = min(seconds(batch, 1) for _ in range(3))
            whole = min(seconds(batch, 1 + work["output_len"]) for _ in range(3))
            found[f"decode {batch}"] = batch * work["output_len"] / max(whole - first, 1e-9)
            prefills.append(batch * work["input_len"] / first)
        print(json.dumps({**found, "prefill": max(prefills)}), file=answers)


if __name__ == "__main__":
    main()
