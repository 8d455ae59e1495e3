"""``tests/cpu/test_device_padding.py`` with graphs of a card; and recorded steps against eager ones of the same padded
size, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import PlanMaker, random_prompt, save_tiny_model, tiny_spec
from test_device_padding import *  # noqa: F403
from test_device_padding import KINDS, OPTIONS, Started
from test_device_runner import runner_of
from test_device_traffic import Replays

from penstock.executor.cuda_recorder import CudaRecorder
from penstock.executor.graphs import GraphKey, StepGraphs, Variant
from penstock.executor.local import LocalExecutor
from penstock.platforms.probe import probe_platform
from penstock.types.request import SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NUM_SEATS, VOCAB = 40, 1000
COUNTS = (1, 3, 5, 13, 33, 40, 37, 8, 2)  # of rows; most are filled up
Seen = list[tuple[GraphKey, tuple[torch.Tensor, ...]]]


@pytest.fixture
def recorded(directory: Path) -> Iterator[Started]:
    executor = LocalExecutor(tiny_spec(directory, platform=probe_platform(), **OPTIONS))
    yield executor, PlanMaker(executor.start())
    executor.stop()


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sizes that 16-bit kernels take."""
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": VOCAB}
    save_tiny_model("llama", path, **sizes)
    return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_have_the_bits_of_eager_ones(
    larger: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    """In any mode, not only the deterministic one: the same kernels over the same rows. What a step answers is
    compared: tokens, log-probabilities, and logits where masks are to come."""
    found = []
    for recorder in (CudaRecorder, Replays):
        monkeypatch.setattr("penstock.executor.load.make_graphs", lambda built, spec, r=recorder: StepGraphs(r()))
        spec = tiny_spec(
            larger,
            platform=probe_platform(),
            dtype=dtype,
            max_num_seqs=NUM_SEATS,
            kv_cache_memory=64 << 20,
        )
        executor = LocalExecutor(spec)
        try:
            found.append(decode(executor, PlanMaker(executor.start()), *KINDS[kind]))
        finally:
            executor.stop()
    (tokens, answers), (eager_tokens, eager_answers) = found
    assert tokens == eager_tokens
    assert [key for key, _ in answers] == [key for key, _ in eager_answers]
    assert {key.variant for key, _ in answers} == {KINDS[kind][0]}
    for (key, answer), (_, eager), num_rows in zip(answers, eager_answers, COUNTS, strict=True):
        assert key.shape.num_rows >= num_rows
        assert len(answer) == len(eager) > 0
        for one, other in zip(answer, eager, strict=True):
            assert torch.equal(one[:num_rows], other[:num_rows]), key


def decode(
    executor: LocalExecutor, maker: PlanMaker, variant: Variant, sampling: SamplingParams
) -> tuple[list[list[tuple[int, ...]]], Seen]:
    """Decode steps of all counts of rows; what each answered, on the host and on the device."""
    runner, dice, seen = runner_of(executor), random.Random(5), []
    run = runner.graphs.run

    def watch(key: GraphKey, record: Any, eager: Any) -> Any:
        answer = run(key, record, eager)
        seen.append((key, tuple(tensor.clone() for tensor in answer)))
        return answer

    for seat in range(NUM_SEATS):
        prompt = random_prompt(dice.randrange(2, 100), seed=seat)
        maker.admit(seat, prompt, sampling)
        executor.step(maker.plan([(seat, len(prompt), True)])).result()
    runner.graphs.run = watch  # type: ignore[method-assign]
    tokens = []
    for num_rows in COUNTS:
        seats = dice.sample(range(NUM_SEATS), num_rows)
        masked = variant is Variant.LOGITS
        more = {"masked_rows": tuple(range(num_rows))} if masked else {}
        handle = executor.step(maker.plan([(seat, 1, True) for seat in seats], **more))
        if masked:
            masks = [dice.randbytes(4 * (VOCAB // 32 + 1)) for _ in range(num_rows)]
            handle.masks(range(num_rows), masks)
        tokens.append(list(handle.result().row_tokens))
    assert runner.graphs.refusals == ()
    return tokens, seen
