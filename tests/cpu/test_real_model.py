"""The embedded default model against transformers, on the same GGUF file dequantized to float32."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from penstock import LLM, SamplingParams
from penstock.loader.sources import resolve_source

ROOT = Path(__file__).resolve().parents[2]
NUM_TOKENS = 2100
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf_path() -> Path:
    return resolve_source("smollm2").path


@pytest.fixture(scope="module")
def token_ids(gguf_path: Path) -> list[int]:
    """Technical prose and licence text of this repository, cut to a fixed length by transformers' own tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    text = (ROOT / "docs" / "structure.md").read_text() + (ROOT / "LICENSE").read_text()
    ids: list[int] = tokenizer(text)["input_ids"][:NUM_TOKENS]
    assert len(ids) == NUM_TOKENS
    return ids


@pytest.fixture(scope="module")
def expected(gguf_path: Path, token_ids: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first, by transformers."""
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


@pytest.fixture(params=["reference_torch", "cpu_sdpa", "cpu_native"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(
        "smollm2",
        dtype="float32",
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
    assert differences.mean().item() < 1e-3
    assert differences.max().item() < 1e-2


def test_capital_of_france(llm: LLM) -> None:
    (answer,) = llm.chat(
        [{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0.0, max_tokens=32)
    )
    assert "Paris" in answer.text
