"""Tiny models of every family on native kernels: recorded without refusal, the same bits in any company, and the logits
that the stated arithmetic gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import PlanMaker, describe_alone, random_prompt, run_alone, tiny_config, tiny_spec
from model_driver import ModelDriver, PlainLinear, PlainWeight, Row
from quantized_fixtures import QuantizedCheckpoint

from penstock.attention.select import choose_attention
from penstock.executor import load
from penstock.executor.local import LocalExecutor
from penstock.kernels.reference import quantize_rows
from penstock.loader.checkpoint import Checkpoint, open_checkpoint
from penstock.loader.sources import ModelSource
from penstock.loader.weights import load_parameters
from penstock.models.family import ModelParts
from penstock.models.table import family_of
from penstock.platforms.probe import probe_platform
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.linear import LinearInput, LinearSpec
from penstock.quantization.schemes import WeightRecord
from penstock.quantization.select import choose_linear
from penstock.types.request import SamplingParams

FAMILIES = ("llama", "mistral", "gemma3", "qwen2", "qwen3")
WEIGHTS = ("bfloat16", "mixed")  # mixed: quantized, with several schemes in one fused projection
DESCRIBED = SamplingParams(temperature=0.0, logprobs=20)
HERE = probe_platform()
pytestmark = pytest.mark.skipif(bool(HERE.extension_missing), reason=HERE.extension_missing)


class NativeLab:
    """One model in one form of weights: checkpoints of it, and executors over them."""

    def __init__(self, family: str, weights: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(11)
        config = tiny_config(family)
        config.hidden_size = 64  # whole blocks of quantized columns
        dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
        self._directory, self._weights = directory, weights
        self._open: list[LocalExecutor] = []
        monkeypatch.setattr(load, "open_checkpoint", lambda *_, **__: self.checkpoint())

    def checkpoint(self) -> Checkpoint:
        opened = open_checkpoint(ModelSource("tiny", "directory", self._directory))
        return QuantizedCheckpoint(opened) if self._weights == "mixed" else opened

    def start(self, **changes: Any) -> tuple[LocalExecutor, PlanMaker]:
        executor = LocalExecutor(tiny_spec(self._directory, platform=HERE, **changes))
        self._open.append(executor)
        return executor, PlanMaker(executor.start())

    def driver(self, linear: Any, platform: Any) -> ModelDriver:
        """The model in torch's attention with float32 keys and values, on the linear methods that ``linear`` gives."""
        checkpoint = self.checkpoint()
        family = family_of(checkpoint.facts().architecture)
        parts = ModelParts(
            dtype=torch.float32,
            platform=platform,
            linear_method=linear,
            attention_backend=lambda spec: choose_attention(spec, "reference_torch")[0],
        )
        driver = ModelDriver(family, family.read_config(checkpoint.config), parts)
        load_parameters(
            family.WEIGHTS, checkpoint.config.int("num_hidden_layers"), checkpoint, driver.model.parameters()
        )
        return driver

    def close(self) -> None:
        for executor in self._open:
            executor.stop()


@pytest.fixture(scope="module", params=[(f, w) for f in FAMILIES for w in WEIGHTS], ids="-".join)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeLab]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        lab = NativeLab(*request.param, tmp_path_factory.mktemp("native"), monkeypatch)
        yield lab
        lab.close()


class StatedLinear(PlainLinear):
    """What native linears say that they compute, in float64: activations as their codes, or rounded to bfloat16."""

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> PlainWeight:
        weight = PlainWeight(reference_dequantize(record))
        weight.values.quantized = record.scheme.kind != "dense"  # type: ignore[attr-defined]
        return weight

    def apply(
        self, prepared: PlainWeight, x: LinearInput, bias: torch.Tensor | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)
        quantized = prepared.values.quantized  # type: ignore[attr-defined]
        rounded = quantize_rows(x).dequantize() if quantized else x.bfloat16()
        result = rounded.double() @ prepared.values.double().T
        result = (result if bias is None else result + bias.double()).float()
        return result if out is None else out.copy_(result)


def test_logits_are_those_of_the_stated_arithmetic(lab: NativeLab) -> None:
    """Equal but for float32's rounding, until an activation in the middle between two codes falls to the other side:
    that moves the logits of its row by about what quantization itself does. Most rows of one token have none."""
    stated = StatedLinear()
    wanted_by = lab.driver(lambda spec: stated, replace(HERE, extension_missing="torch is asked for"))
    found_by = lab.driver(lambda spec: choose_linear(spec)[0], HERE)
    tokens = random_prompt(24)
    found, wanted = (driver.step([(Row(), [token]) for token in tokens]) for driver in (found_by, wanted_by))
    apart = (found - wanted).abs().amax(dim=1) / wanted.std()
    assert (apart < 2e-5).float().mean() > 0.5
    assert apart.max() < 0.2
    whole_found, whole_wanted = (driver.step([(Row(), list(tokens))]) for driver in (found_by, wanted_by))
    assert (whole_found - whole_wanted).abs().mean() < 0.03 * whole_wanted.std()


def test_every_decode_step_is_recorded(lab: NativeLab) -> None:
    """No torch operation computes between the inputs and the answer, whatever is asked."""
    executor, maker = lab.start()
    run_alone(executor, maker, 0, random_prompt(9), 4)
    describe_alone(executor, maker, 1, random_prompt(9), 4, sampling=DESCRIBED)
    graphs = executor._loaded.runner.graphs
    assert graphs.refusals == ()
    assert len(graphs) >= 2
    linear = [decision for decision in executor.decisions if decision.subject.startswith("linear")]
    assert all((decision.chosen or "").startswith("native_") for decision in linear)


def test_bits_do_not_depend_on_company(lab: NativeLab) -> None:
    """A request's log-probabilities alone, with its prompt in chunks, and among others are equal, not close."""
    executor, maker = lab.start()
    prompt = random_prompt(50)
    tokens, entries = describe_alone(executor, maker, 0, prompt, 8, sampling=DESCRIBED)
    for chunk in (1, 7, 33):
        assert in_chunks(executor, maker, prompt, chunk) == (tokens, entries)
    for seat, length in enumerate((5, 64, 17), start=1):
        maker.admit(seat, random_prompt(length, seed=length), sampling=DESCRIBED)
    executor.step(maker.plan([(1, 5, True), (2, 64, True), (3, 17, True)])).result()
    assert in_chunks(executor, maker, prompt, 20, beside=(1, 2, 3)) == (tokens, entries)


def test_a_prefix_hit_changes_no_bit(lab: NativeLab) -> None:
    executor, maker = lab.start()
    prompt = random_prompt(60)
    tokens, entries = describe_alone(executor, maker, 0, prompt, 6, sampling=DESCRIBED)
    maker.admit(1, prompt[:50])
    executor.step(maker.plan([(1, 50, False)])).result()
    cached = 32
    groups = zip(maker.residents[1].blocks, maker.capacity.groups, strict=True)
    blocks = [ids[: cached // group.tokens_per_block] for ids, group in groups]
    found = describe_alone(executor, maker, 2, prompt, 6, sampling=DESCRIBED, num_computed=cached, blocks=blocks)
    assert found == (tokens, entries)


def in_chunks(executor: Any, maker: PlanMaker, prompt: Any, chunk: int, beside: tuple[int, ...] = ()) -> Any:
    """Tokens and log-probabilities of seat 0, its prompt cut up, with one token of each seat of ``beside`` per step."""
    maker.admit(0, prompt, sampling=DESCRIBED)
    tokens: list[int] = []
    entries: list[Any] = []
    left = len(prompt)
    while len(tokens) < 8:
        count = min(left, chunk) or 1
        left = max(0, left - count)
        others = [(seat, 1, True) for seat in beside]
        result = executor.step(maker.plan([*others, (0, count, not left)])).result()
        tokens += result.row_tokens[len(others)]
        entries += result.logprobs.get(len(others), ())
    maker.drop(0)
    return tokens, entries
