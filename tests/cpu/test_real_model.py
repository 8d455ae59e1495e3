"""The embedded default model against transformers, on the same GGUF file dequantized to float32."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizer_fixtures import transformers_tokenizer

from penstock import LLM, SamplingParams
from penstock.loader.sources import resolve_source
from penstock.platforms.probe import probe_platform

ROOT = Path(__file__).resolve().parents[2]
NUM_TOKENS = 2100
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf_path() -> Path:
    return resolve_source("smollm2").path


@pytest.fixture(scope="module")
def token_ids(gguf_path: Path) -> list[int]:
    """The text of the licence, which nobody edits, cut to a fixed length by transformers' own tokenizer."""
    tokenizer = transformers_tokenizer(gguf_path)
    text = (ROOT / "LICENSE").read_text()
    ids: list[int] = tokenizer(text)["input_ids"][:NUM_TOKENS]
    assert len(ids) == NUM_TOKENS
    return ids


@pytest.fixture(scope="module")
def expected(gguf_path: Path, token_ids: list[int], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Log-probability of each token but the first, by transformers. Of all workers that run tests, one computes it."""
    folder = tmp_path_factory.getbasetemp()
    kept = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "smollm2-logprobs.pt"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            torch.save(_by_transformers(gguf_path, token_ids), kept)
    found: torch.Tensor = torch.load(kept)
    return found


def _by_transformers(gguf_path: Path, token_ids: list[int]) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
    )
    ids = torch.tensor([token_ids])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
    picked = logprobs.gather(1, ids[0, 1:, None])[:, 0].clone()
    del model, logprobs
    gc.collect()
    return picked


@pytest.fixture(scope="module", params=["reference_torch", "cpu_sdpa", "cpu_native"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    """Weights dequantized: what is computed in float32 from end to end agrees with transformers to five digits."""
    with LLM(
        "smollm2",
        dtype="float32",
        linear_backend="dense",
        attention_backend=request.param,
        kv_cache_dtype="float32",
        max_model_len=4096,
        max_num_batched_tokens=768,
        kv_cache_memory="512MiB",
    ) as engine:
        yield engine


def test_logprobs_agree_with_transformers(llm: LLM, token_ids: list[int], expected: torch.Tensor) -> None:
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    (answer,) = llm.generate([token_ids], params)
    assert answer.prompt_logprobs is not None
    ours = torch.tensor([entry.chosen.logprob for entry in answer.prompt_logprobs])
    assert ours.shape == expected.shape
    differences = (ours - expected).abs()
    # Five times what three attention backends give on AVX-512, AVX2 and SSE4: at most 3.2e-6 on average on each of
    # them; the largest of 2,100 differences depends on the order of sums, and is 2.6e-5 to 9.4e-5.
    assert differences.mean().item() < 1.6e-5
    assert differences.max().item() < 5e-4


def test_capital_of_france(llm: LLM) -> None:
    (answer,) = llm.chat(
        [{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0.0, max_tokens=32)
    )
    assert "Paris" in answer.text


@pytest.fixture(scope="module")
def start_native() -> Iterator[Callable[..., LLM]]:
    """The model as it starts without a flag: quantized kernels, recorded decode steps, keys and values in bfloat16."""
    if missing := probe_platform().extension_missing:
        pytest.skip(missing)
    open_engines: list[LLM] = []

    def start(**options: Any) -> LLM:
        engine = LLM("smollm2", max_model_len=4096, kv_cache_memory="256MiB", **options)
        open_engines.append(engine)
        return engine

    yield start
    for engine in open_engines:
        engine.close()


def test_native_logprobs_stay_near_transformers(
    start_native: Callable[..., LLM], token_ids: list[int], expected: torch.Tensor
) -> None:
    """int8 activations and bfloat16 keys and values move a token's log-probability by 0.041 nats on average, and the
    perplexity of the whole by nothing. Wrong codes, zeros or minima move both by far more."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    (answer,) = start_native(max_num_batched_tokens=768).generate([token_ids], params)
    assert answer.prompt_logprobs is not None
    ours = torch.tensor([entry.chosen.logprob for entry in answer.prompt_logprobs])
    differences = ours - expected
    assert differences.abs().mean().item() < 0.055
    assert differences.mean().abs().item() < 0.01, "perplexity is kept"


def test_native_answers_do_not_depend_on_company(start_native: Callable[..., LLM], token_ids: list[int]) -> None:
    """Tokens and log-probabilities, to the bit: alone, all at once, with prompts cut into chunks of other sizes, and
    with a prefix that is found in the cache."""
    cuts = ((0, 7), (3, 130), (200, 500), (900, 917), (1000, 1300))
    prompts = [token_ids[begin:end] for begin, end in cuts]
    params = SamplingParams(max_tokens=24, temperature=0.0, logprobs=5)

    def answers(engine: LLM, batch: list[list[int]]) -> list[Any]:
        return [answer.outputs[0] for answer in engine.generate(batch, params)]

    plain = start_native(enable_prefix_caching=False)
    alone = [answers(plain, [prompt])[0] for prompt in prompts]
    assert answers(plain, prompts) == alone
    chunked = start_native(enable_prefix_caching=True, max_num_batched_tokens=50, max_num_seqs=8)
    assert answers(chunked, prompts) == alone
    assert answers(chunked, list(reversed(prompts))) == list(reversed(alone)), "prefixes are found now"


def test_native_capital_of_france(start_native: Callable[..., LLM]) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = start_native().chat(question, SamplingParams(temperature=0.0, max_tokens=32))
    assert "Paris" in answer.text
