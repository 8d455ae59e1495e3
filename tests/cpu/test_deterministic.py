"""Deterministic mode on a CPU: tokens depend neither on the batch nor on how prompts are cut nor on prefix hits."""

from __future__ import annotations

from pathlib import Path

import pytest
from deterministic_fixtures import random_prompts, sampling, save_config, start, tokens_of

from penstock.errors import NoBackendError
from penstock.platforms.probe import probe_platform

OPTIONS = {"platform": "cpu", "threads": 1, "kv_cache_memory": 16 << 20, "max_num_seqs": 8}

pytestmark = pytest.mark.skipif(bool(probe_platform().extension_missing), reason="needs the compiled extension")


def test_tokens_of_a_request_are_its_own(tmp_path: Path) -> None:
    save_config(tmp_path, dtype="bfloat16", hidden_size=128, layers=2)
    prompts = random_prompts(12, 60)
    params = sampling(len(prompts), 6)
    with start(tmp_path, **OPTIONS) as llm:
        assert any("batch-invariant" in decision.subject for decision in llm.info.decisions)
        alone = tokens_of(llm, prompts, params, together=False)
        assert tokens_of(llm, prompts, params) == alone
        again = llm.generate(prompts, params)
        assert sum(answer.num_cached_tokens for answer in again) > 0
        assert [answer.outputs[0].token_ids for answer in again] == alone
    with start(tmp_path, **OPTIONS, max_num_batched_tokens=16, graphs=False) as llm:
        assert tokens_of(llm, prompts, params) == alone


def test_what_cannot_be_deterministic_is_an_error(tmp_path: Path) -> None:
    save_config(tmp_path, dtype="bfloat16", hidden_size=128, layers=1)
    with pytest.raises(NoBackendError, match="batch-invariant"):
        start(tmp_path, **OPTIONS, linear_backend="dense")
    with pytest.raises(NoBackendError, match="batch-invariant"):
        start(tmp_path, **OPTIONS, attention_backend="cpu_sdpa")
