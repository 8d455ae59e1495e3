"""Linear layers and parameters: fused parts, mixed schemes, sharing, and refusals that name what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from model_driver import CPU, PlainLinear, PlainWeight

from penstock.errors import UnsupportedModelError
from penstock.layers.embedding import Embedding, LmHead
from penstock.layers.linear import Linear, LinearWeight
from penstock.layers.norm import HeadNorms, RmsNorm
from penstock.layers.parameter import DenseParameter, Layer
from penstock.models.family import ModelParts
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.quantization.schemes import F32, WeightRecord, WeightScheme

HALVED = WeightScheme("halved", 16)


class HalvedLinear(PlainLinear):
    """A second scheme: stored values are twice the weight."""

    name = "halved"

    def prepare(self, record: WeightRecord, spec: LinearSpec) -> PlainWeight:
        return PlainWeight(record.parts["values"] / 2)


@dataclass
class Chooser:
    """Answers like the oracle and remembers what it was asked."""

    asked: list[LinearSpec] = field(default_factory=list)

    def __call__(self, spec: LinearSpec) -> LinearMethod:
        self.asked.append(spec)
        return HalvedLinear() if spec.scheme == HALVED else PlainLinear()


@pytest.fixture
def chooser() -> Chooser:
    return Chooser()


@pytest.fixture
def parts(chooser: Chooser) -> ModelParts:
    def no_attention(spec: object) -> None:
        raise AssertionError("no layer here attends")

    return ModelParts(dtype=torch.float32, platform=CPU, linear_method=chooser, attention_backend=no_attention)  # type: ignore[arg-type]


def record(values: torch.Tensor, scheme: WeightScheme = F32) -> WeightRecord:
    return WeightRecord(scheme, tuple(values.shape), {"values": values})


def test_parts_of_one_scheme_become_one_weight(parts: ModelParts, chooser: Chooser) -> None:
    linear = Linear(6, 9, parts, bias=True)
    weights = [torch.randn(n, 6) for n in (4, 3, 2)]
    linear.weight.load([record(w) for w in weights])
    bias = torch.randn(9)
    linear.parameters()["bias"].load([record(bias[:4]), record(bias[4:])])
    x = torch.randn(5, 6)
    torch.testing.assert_close(linear(x), x @ torch.cat(weights).T + bias)
    assert [(spec.out_features, spec.in_features) for spec in chooser.asked] == [(9, 6)]
    assert linear.weight.nbytes == 9 * 6 * 4


@pytest.mark.parametrize("bias", [False, True])
def test_runs_of_equal_schemes_share_a_weight(parts: ModelParts, chooser: Chooser, bias: bool) -> None:
    """As in mixed GGUF files: q and k in one type, v in another."""
    linear = Linear(6, 9, parts, bias=bias)
    q, k, v = (torch.randn(n, 6) for n in (4, 3, 2))
    stored = [record(q, HALVED), record(k, HALVED), record(v)]
    assert [s.out_features for s in linear.weight.specs(stored)] == [7, 2]
    linear.weight.load(stored)
    assert [(spec.scheme, spec.out_features) for spec in chooser.asked] == [(HALVED, 7), (F32, 2)]
    x, added = torch.randn(5, 6), torch.zeros(9)
    if linear.bias is not None:
        added = torch.randn(9)
        linear.bias.load([record(added)])
    torch.testing.assert_close(linear(x), x @ torch.cat((q / 2, k / 2, v)).T + added)


def test_specs_before_loading_are_those_of_loading(parts: ModelParts, chooser: Chooser) -> None:
    weight = LinearWeight(9, 6, parts)
    stored = [record(torch.randn(4, 6), HALVED), record(torch.randn(3, 6)), record(torch.randn(2, 6))]
    planned = weight.specs(stored)
    weight.load(stored)
    assert list(planned) == chooser.asked


def test_a_tied_head_multiplies_with_the_embedding(parts: ModelParts, chooser: Chooser) -> None:
    embedding = Embedding(11, 6, parts)
    head = LmHead(11, 6, parts, tied_to=embedding)
    values = torch.randn(11, 6)
    embedding.weight.load([record(values)])
    torch.testing.assert_close(embedding(torch.tensor([3, 0, 3])), values[[3, 0, 3]])
    torch.testing.assert_close(head(values[:2]), values[:2] @ values.T)
    assert not head.parameters()
    assert len(chooser.asked) == 1, "the shared weight is prepared once"


def test_an_untied_head_has_its_own_weight_and_answers_in_float32() -> None:
    parts = ModelParts(
        dtype=torch.bfloat16, platform=CPU, linear_method=Chooser(), attention_backend=lambda spec: pytest.fail("asked")
    )
    head = LmHead(11, 6, parts)
    head.parameters()["weight"].load([record(torch.randn(11, 6))])
    assert head(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    "shapes", [[(4, 6)], [(4, 6), (6, 6)], [(9, 5)], []], ids=["too few rows", "too many rows", "columns", "nothing"]
)
def test_shapes_that_do_not_add_up_are_refused(parts: ModelParts, shapes: list[tuple[int, ...]]) -> None:
    weight = LinearWeight(9, 6, parts)
    with pytest.raises(UnsupportedModelError, match=r"shape \(9, 6\) was expected"):
        weight.load([record(torch.zeros(shape)) for shape in shapes])


def test_a_quantized_norm_weight_is_refused_by_its_scheme() -> None:
    with pytest.raises(UnsupportedModelError, match="halved"):
        DenseParameter((4,), torch.float32).load([record(torch.ones(4), HALVED)])


def test_norm_weights_stay_float32_and_results_take_the_inputs_type(parts: ModelParts) -> None:
    norm = RmsNorm(8, 1e-6, parts)
    norm.weight.load([record(torch.full((8,), 1.0 + 2**-12, dtype=torch.float32))])
    assert norm.weight.data[0].item() == 1.0 + 2**-12
    narrow = RmsNorm(8, 1e-6, replace(parts, dtype=torch.bfloat16))
    assert narrow.weight.data.dtype == torch.float32
    assert narrow(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_head_norms_fill_one_table(parts: ModelParts) -> None:
    norms = HeadNorms(3, 2, 4, 1e-6, parts)
    query, key = torch.rand(4), torch.rand(4)
    norms.parameters()["query"].load([record(query)])
    norms.parameters()["key"].load([record(key)])
    x = torch.randn(5, 5, 4)
    wanted = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norms(x), wanted * torch.stack([query] * 3 + [key] * 2))


def test_parameters_are_named_by_their_path(parts: ModelParts) -> None:
    class Tree(Layer):
        def __init__(self) -> None:
            self.layers = [Linear(2, 3, parts, bias=True), Linear(2, 3, parts)]
            self.norm = RmsNorm(2, 1e-6, parts)

    assert set(Tree().parameters()) == {"layers.0.weight", "layers.0.bias", "layers.1.weight", "norm.weight"}
