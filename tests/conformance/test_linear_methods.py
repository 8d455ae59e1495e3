"""Every linear method in the table, for every scheme and dtype, against dequantizing and multiplying in float64.

What a method does to activations is part of its definition and done to the truth as well: those of quantized rows are
the values that their codes stand for, those of bfloat16 weights are rounded to bfloat16.

Rows of the table: ``LINEAR_METHODS``. A method may refuse a cell; what it accepts it must get right. Weights are
loaded on the CPU, as from files; activations are where this machine computes.
"""

import importlib
import pkgutil
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from penstock.cli.decisions import decision_lines
from penstock.errors import NoBackendError
from penstock.kernels.device import device_of
from penstock.kernels.reference import quantize_fp8, quantize_rows
from penstock.platforms.probe import probe_platform
from penstock.platforms.recorded import RECORDED
from penstock.quantization import backends
from penstock.quantization.backends import linear_fp8, linear_native
from penstock.quantization.backends.linear_native import NATIVE_METHODS
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.formats.gguf import GGUF_TYPES, convert_gguf
from penstock.quantization.linear import InputFormat, LinearSpec
from penstock.quantization.records import cut_rows
from penstock.quantization.schemes import BF16, SCHEMES, WeightRecord, WeightScheme, dense_record
from penstock.quantization.select import GROUNDS, LINEAR_METHODS, choose_linear

OUT, IN = 96, 512
DENSE_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PLATFORM = probe_platform()
DEVICE = device_of(PLATFORM)
WITHOUT = replace(PLATFORM, extension_missing="the extension was not built")
# Norm of the error over the norm of the result: unit roundoff of the weight's and the result's type. One wrong value
# among the 3,840 of the largest case would be above 1e-2.
TOLERANCE = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 5e-4}


def make_record(scheme: str) -> WeightRecord:
    """A weight of normal size: random bits, with scales that bring values to about 0.02."""
    generator = np.random.default_rng(len(scheme))
    values = generator.normal(0, 0.02, (OUT, IN)).astype(np.float32)
    if SCHEMES[scheme].kind == "dense":
        return dense_record(torch.from_numpy(values).to(DENSE_TYPES[scheme]))
    if SCHEMES[scheme].kind == "float":
        codes, scales = quantize_fp8(torch.from_numpy(values), SCHEMES[scheme].scales[0].group_size)
        return WeightRecord(SCHEMES[scheme], (OUT, IN), {"codes": codes, "scales": scales})
    block = GGUF_TYPES[scheme.upper()].block
    try:
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[scheme.upper()]).reshape(-1).view(np.uint8).copy()
        return convert_gguf(scheme.upper(), data, (OUT, IN))
    except NotImplementedError:
        data = generator.integers(0, 256, OUT * IN // block.columns * block.nbytes, dtype=np.uint8)
        record = convert_gguf(scheme.upper(), data, (OUT, IN))
        size = {"scales": 1e-4, "mins": -1e-4}
        parts = {
            name: torch.full_like(part, size[name]) if name in size else part for name, part in record.parts.items()
        }
        return WeightRecord(record.scheme, record.shape, parts)


def make_spec(scheme: WeightScheme, dtype: str, **changes) -> LinearSpec:
    fields = {"scheme": scheme, "out_features": OUT, "in_features": IN, "dtype": dtype, "platform": PLATFORM}
    return LinearSpec(**(fields | changes))


def as_multiplied(method, spec: LinearSpec, x: torch.Tensor):
    """(x in the format that the method asks for, the values that it multiplies with)."""
    if method.input_format(spec) is InputFormat.QUANTIZED:
        quantized = quantize_rows(x)
        return quantized, quantized.dequantize().double()
    rounds = method in NATIVE_METHODS and spec.scheme == BF16
    return x, (x.bfloat16() if rounds else x).double()


def cells():
    """What each method claims; one that this machine cannot run is one skip with its reasons."""
    for method in LINEAR_METHODS:
        verdicts = {(s, dtype): method.can_run(make_spec(SCHEMES[s], dtype)) for s in SCHEMES for dtype in TOLERANCE}
        for (scheme, dtype), verdict in verdicts.items():
            if verdict.ok:
                yield pytest.param(method, scheme, dtype, id=f"{method.name}-{scheme}-{dtype}")
        if not any(verdict.ok for verdict in verdicts.values()):
            reasons = "; ".join(verdicts["f32", "float32"].reasons)
            yield pytest.param(method, "", "", id=method.name, marks=pytest.mark.skip(reason=reasons))


CELLS = list(cells())


@pytest.mark.parametrize(("method", "scheme", "dtype"), CELLS)
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_apply(method, scheme, dtype, rows):
    record = make_record(scheme)
    spec = make_spec(record.scheme, dtype)
    prepared = method.prepare(record, spec)
    torch_dtype = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, IN, generator=generator).to(DEVICE, torch_dtype)
    bias = torch.randn(OUT, generator=generator).to(DEVICE, torch_dtype)
    weight = reference_dequantize(record).to(DEVICE).double()
    given_x, true_x = as_multiplied(method, spec, x)
    for given in (None, bias):
        found = method.apply(prepared, given_x, given)
        assert found.dtype == torch_dtype
        assert found.shape == (rows, OUT)
        wanted = torch.nn.functional.linear(true_x, weight, None if given is None else given.double())
        assert (found.double() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize(("method", "scheme", "dtype"), CELLS)
def test_argmax_and_columns_of_a_wider_result(method, scheme, dtype):
    """``argmax`` is the first largest of what ``apply`` gives; ``out`` has the bits that a result of its own has; a
    tensor is taken whatever format is asked for."""
    record = make_record(scheme)
    spec = make_spec(record.scheme, dtype)
    prepared = method.prepare(record, spec)
    x = torch.randn(9, IN, generator=torch.Generator().manual_seed(3)).to(DEVICE, getattr(torch, dtype))
    alone = method.apply(prepared, x, None)
    wide = torch.zeros(9, OUT + 7, dtype=alone.dtype, device=DEVICE)
    method.apply(prepared, x, None, wide[:, 3 : 3 + OUT])
    torch.testing.assert_close(wide[:, 3 : 3 + OUT], alone, rtol=0, atol=0)
    assert wide[:, :3].eq(0).all()
    assert wide[:, 3 + OUT :].eq(0).all()
    token_ids, largest = method.argmax(prepared, x)
    assert (token_ids.dtype, largest.dtype) == (torch.int64, torch.float32)
    assert largest.tolist() == alone.float().max(dim=-1).values.tolist()
    assert token_ids.tolist() == [row.index(max(row)) for row in alone.tolist()]
    x[4, 5] = float("nan")
    assert method.argmax(prepared, x)[1].isnan().tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize(("method", "scheme", "dtype"), CELLS)
def test_embed_gives_rows_rounded_once(method, scheme, dtype):
    record = make_record(scheme)
    spec = make_spec(record.scheme, dtype)
    token_ids = torch.tensor([5, 0, 95, 5])
    found = method.embed(method.prepare(record, spec), token_ids.to(DEVICE))
    wanted = reference_dequantize(record, getattr(torch, dtype))[token_ids]
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("method", [m for m in NATIVE_METHODS if m.can_run(make_spec(SCHEMES["q4_k"], "float32")).ok])
def test_repacking_in_slices_is_repacking_at_once(method, monkeypatch):
    """Slices of 16 and 32 outputs, the last one half a tile."""
    record = cut_rows(make_record("q4_k"), 0, 88)
    spec = make_spec(record.scheme, "float32", out_features=88)
    whole = method.prepare(record, spec)
    for values in (16 * IN, 40 * IN):
        monkeypatch.setattr(linear_native, "SLICE_VALUES", values)
        sliced = method.prepare(record, spec)
        assert replace(sliced, data=whole.data) == whole
        assert sliced.data.equal(whole.data)


@pytest.mark.parametrize(("method", "scheme", "dtype"), CELLS)
def test_memory_is_known_before_it_is_taken_and_owned(method, scheme, dtype):
    record = make_record(scheme)
    spec = make_spec(record.scheme, dtype)
    prepared = method.prepare(record, spec)
    assert prepared.nbytes == method.prepared_bytes(spec)
    x = torch.ones(2, IN, dtype=getattr(torch, dtype), device=DEVICE)
    before = method.apply(prepared, x, None).clone()
    for part in record.parts.values():
        part.zero_()  # the file's map may go: what was prepared must not look at it
    torch.testing.assert_close(method.apply(prepared, x, None), before, rtol=0, atol=0)


def test_every_backend_file_has_its_row():
    modules = [m.name for m in pkgutil.iter_modules(backends.__path__)]
    assert all(name.startswith("linear_") for name in modules)
    for name in modules:
        importlib.import_module(f"{backends.__name__}.{name}")
    assert {type(method).__module__.rpartition(".")[2] for method in LINEAR_METHODS} == set(modules)
    assert len({method.name for method in LINEAR_METHODS}) == len(LINEAR_METHODS)


@pytest.mark.parametrize("method", LINEAR_METHODS, ids=lambda method: method.name)
def test_refusals_name_every_reason(method):
    strange = WeightScheme("strange", 4, scales=SCHEMES["q4_k"].scales, activation="int8_per_token")
    reasons = method.can_run(make_spec(strange, "float64", in_features=100)).reasons
    assert len(reasons) >= 3
    assert any("float64" in reason for reason in reasons)
    assert any("int8_per_token" in reason for reason in reasons)
    assert any("100" in reason for reason in reasons)


@pytest.mark.parametrize("scheme", [name for name, scheme in SCHEMES.items() if scheme.kind != "float"])
def test_native_kernels_run_every_scheme_of_integers(scheme):
    if not any(m.can_run(make_spec(SCHEMES[scheme], "float32")).ok for m in NATIVE_METHODS[:-1]):
        pytest.skip("no native kernels but the plain ones run here")
    method, decision = choose_linear(make_spec(SCHEMES[scheme], "float32"))
    assert method is next(m for m in NATIVE_METHODS if m.can_run(make_spec(SCHEMES[scheme], "float32")).ok)
    assert decision.why.endswith(GROUNDS[method.name])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_the_extension_torch_runs_every_scheme(scheme):
    method, decision = choose_linear(make_spec(SCHEMES[scheme], "float32", platform=WITHOUT))
    native = [rejection for rejection in decision.rejected if rejection.name.startswith("native_")]
    assert len(native) == len(NATIVE_METHODS)
    assert all(WITHOUT.extension_missing in rejection.reasons for rejection in native)
    assert decision.chosen == method.name == "dense"
    assert "reference" in decision.also_possible
    assert scheme in decision.subject
    assert decision.why == f"first of 2 that can run: {GROUNDS['dense']}"


@pytest.mark.parametrize("name", RECORDED)
def test_memory_is_known_for_machines_whose_kernels_are_not_here(name):
    """To the tile: whole ones are the same bytes whether the kernels are asked or not."""
    for scheme in SCHEMES.values():
        spec = make_spec(scheme, "float32", out_features=128, platform=RECORDED[name])
        for method in NATIVE_METHODS:
            if method.can_run(spec).ok:
                assert method.prepared_bytes(spec) == linear_native._bytes_unpadded(spec)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cuda_devices_have_a_ladder(dtype):
    spec = make_spec(SCHEMES["bf16"], dtype, platform=RECORDED["h200"])
    method, decision = choose_linear(spec)
    assert decision.chosen == method.name == "cuda_skinny"
    assert [rung.name for rung in decision.rungs] == ["linear_vector", "linear_skinny", "torch"]
    assert decision.rungs[0].max_rows
    assert decision.rungs[-1].max_rows is None
    assert decision.also_possible == ("cuda_invariant", "dense", "reference")
    assert any("up to" in line and "linear_skinny" in line for line in decision_lines([decision]))
    assert method.prepared_bytes(spec) == OUT * IN * 2


# (device, scheme, dtype, what multiplies few rows and many)
FLOAT8_LADDERS = [
    ("h200", "fp8_row", "bfloat16", ["streamed_fp8", "torch"]),
    ("h200", "fp8_row", "float16", ["streamed_fp8", "product_fp8"]),
    ("h200", "fp8_block", "bfloat16", ["streamed_fp8", "product_fp8"]),
    ("rtx4090", "fp8_row", "bfloat16", ["streamed_fp8", "product_fp8"]),
    ("h200", "fp8_row_only", "bfloat16", ["linear_fp8"]),
    ("a100", "fp8_block", "bfloat16", ["linear_fp8"]),
]


@pytest.mark.parametrize(("device", "scheme", "dtype", "rungs"), FLOAT8_LADDERS)
def test_cuda_devices_keep_float8_weights(device, scheme, dtype, rungs):
    spec = make_spec(SCHEMES[scheme], dtype, platform=RECORDED[device])
    method, decision = choose_linear(spec)
    assert decision.chosen == method.name == "cuda_fp8"
    assert [rung.name for rung in decision.rungs] == rungs
    assert decision.rungs[-1].max_rows is None
    assert decision.also_possible == ("cuda_skinny", "cuda_invariant", "dense", "reference")
    scales = IN // (SCHEMES[scheme].scales[0].group_size or IN)
    assert method.prepared_bytes(spec) == OUT * (IN + 4 * scales)


@pytest.mark.parametrize(("device", "scheme", "dtype", "rungs"), FLOAT8_LADDERS)
def test_the_rungs_of_float8_are_what_runs(monkeypatch, device, scheme, dtype, rungs):
    spec = make_spec(SCHEMES[scheme], dtype, platform=RECORDED[device])
    method, decision = choose_linear(spec)
    ran = []

    def dynamic(x, codes, scales, bias, out, streamed_rows):
        ran.append("streamed_fp8" if x.shape[0] <= streamed_rows else "product_fp8")
        return x

    monkeypatch.setattr(linear_fp8, "_linear_fp8", lambda x, *_: ran.append("linear_fp8") or x)
    monkeypatch.setattr(linear_fp8, "_linear_fp8_dynamic", dynamic)
    monkeypatch.setattr(linear_fp8, "_quantize_fp8", lambda x: (x, x))
    monkeypatch.setattr(linear_fp8, "product_by_torch", lambda x, *_: ran.append("torch") or x)
    prepared = linear_fp8.Fp8Weight(make_record(scheme), getattr(torch, dtype), linear_fp8._many(spec))
    ends = [rung.max_rows for rung in decision.rungs[:-1]]
    for rows in (1, *ends, *(end + 1 for end in ends), 300):
        method.apply(prepared, torch.zeros(rows, IN), None)
        rung = next(rung for rung in decision.rungs if rung.max_rows is None or rows <= rung.max_rows)
        assert ran.pop() == rung.name, rows


def test_the_grounds_of_float8_rungs_are_those_of_the_scheme():
    """With a scale for each block more than a few rows are slower than a dense copy, and it is said."""
    few, many = choose_linear(make_spec(SCHEMES["fp8_block"], "bfloat16", platform=RECORDED["h200"]))[1].rungs
    assert "blocks" in few.why
    assert "154" in many.why
    assert "a dense copy 92" in many.why
    for device, dtype in (("h200", "float16"), ("rtx4090", "bfloat16")):
        (few, many) = choose_linear(make_spec(SCHEMES["fp8_row"], dtype, platform=RECORDED[device]))[1].rungs
        assert "one scale a row" in few.why
        assert "not timed" in many.why


@pytest.mark.parametrize("device", ["mi300x", "laptop-avx2"])
def test_other_devices_make_a_dense_copy_of_float8_weights(device):
    method, decision = choose_linear(make_spec(SCHEMES["fp8_block"], "bfloat16", platform=RECORDED[device]))
    assert method.name == "dense"
    native = [rejection for rejection in decision.rejected if rejection.name.startswith("native_")]
    assert all(any("those of fp8_block are floats" in reason for reason in each.reasons) for each in native)


def test_cuda_devices_run_in_float32_what_the_ladder_refuses():
    usual = make_spec(SCHEMES["f32"], "bfloat16", platform=RECORDED["h200"])
    for changes in ({"dtype": "float32"}, {"in_features": 520}, {"platform": without_triton(RECORDED["h200"])}):
        spec = replace(usual, **changes)
        _, decision = choose_linear(spec)
        assert decision.chosen == "dense"
        assert decision.rungs == ()


def test_batch_invariant_results_have_a_method_of_their_own_on_cuda_devices():
    spec = make_spec(SCHEMES["bf16"], "bfloat16", platform=RECORDED["h200"], batch_invariant=True)
    method, decision = choose_linear(spec)
    assert (method.name, decision.also_possible, decision.rungs) == ("cuda_invariant", (), ())
    assert decision.subject.endswith("batch-invariant")
    reasons = {refused.name: refused.reasons for refused in decision.rejected}
    for name in ("cuda_skinny", "dense", "reference"):
        assert reasons[name] == (
            "torch's library orders sums by the number of rows, asked for batch-invariant results",
        )
    with pytest.raises(NoBackendError, match="found float32"):
        choose_linear(replace(spec, dtype="float32"))


def test_native_methods_give_batch_invariant_results():
    spec = make_spec(SCHEMES["q4_k"], "float32", batch_invariant=True)
    method, decision = choose_linear(spec)
    assert method in NATIVE_METHODS
    assert not {"dense", "reference"} & {*decision.also_possible}
    with pytest.raises(NoBackendError, match="batch-invariant"):
        choose_linear(replace(spec, platform=WITHOUT))


def without_triton(platform):
    return replace(platform, libraries={name: v for name, v in platform.libraries.items() if name != "triton"})


def test_every_preference_has_its_ground():
    """All but the last are preferred to somebody."""
    assert list(GROUNDS) == [method.name for method in LINEAR_METHODS[:-1]]


def test_a_named_method_runs_or_is_an_error():
    method, decision = choose_linear(make_spec(SCHEMES["q4_1"], "float32"), forced="reference")
    assert (method.name, decision.chosen) == ("reference", "reference")
    assert "--linear-backend" in decision.why
    with pytest.raises(NoBackendError, match="float64"):
        choose_linear(make_spec(SCHEMES["q4_1"], "float64"), forced="reference")
    with pytest.raises(NoBackendError, match="no candidate named 'fast'"):
        choose_linear(make_spec(SCHEMES["q4_1"], "float32"), forced="fast")
