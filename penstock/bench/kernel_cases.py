"""What `penstock bench kernels` runs: every op at the shapes of a model, with the arguments to run it on.

A case knows what it reads, where a model would find that, and how many operations it takes; it knows no clock.
Weights and keys are cold: a model touches all of its others between two uses. Activations are warm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from penstock.attention.contract import AttentionBackend, AttentionSpec, GroupStep, KvLayout
from penstock.attention.select import BACKENDS, choose_attention
from penstock.bench.model_shapes import LinearShape, ModelShapes
from penstock.kernels.activations import BLOCK, QuantizedRows
from penstock.kernels.implementation import OpSpec
from penstock.kernels.native import implementations
from penstock.kernels.native.attention import TILE, rotate_and_write
from penstock.kernels.ops import OPS, choose_op
from penstock.kernels.reference import quantize_rows
from penstock.oracle.choose import choose
from penstock.quantization.linear import InputFormat, LinearInput, LinearMethod, LinearSpec
from penstock.quantization.schemes import BF16, WeightRecord, dense_record, part_layout
from penstock.quantization.select import LINEAR_METHODS, choose_linear
from penstock.types.decision import Decision
from penstock.types.facts import PlatformFacts

MOST_LOGITS_ROWS = 64  # a step asks for the logits of its requests' last tokens, not for those of every token
MOST_DECODE_ROWS = 64  # more tokens than these are one request's prefill
_DENSE_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_LOOKUPS = 256  # sets of different tokens that are looked up in each copy of an embedding

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """``make(copies)`` answers calls that use so many copies of the cold data in turn. A copy takes ``copy_bytes``, and
    ``cold_bytes`` of it are read by one call.

    ``operations`` are of the op, whoever does it: products and sums. ``kind`` is the type of the products, as ceilings
    name it.
    """

    make: Callable[[int], Sequence[Call]]
    warm: tuple[Any, ...]  # activations that are read; the result is added by whoever runs it
    operations: int
    kind: str = "float32"
    cold_bytes: int = 0
    copy_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    name: str
    work: Callable[[], Work]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``decision`` is what an engine would take here."""

    op: str
    shape: str
    rows: int
    decision: Decision
    candidates: tuple[Candidate, ...]


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a structure of tuples and quantized rows; of views what they show."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, QuantizedRows):
        return sum(tensor_bytes(part) for part in (value.codes, value.scales, value.zeros, value.sums))
    return sum(tensor_bytes(part) for part in value) if isinstance(value, tuple | list) else 0


def make_cases(shapes: ModelShapes, platform: PlatformFacts, rows: Sequence[int], context: int) -> Iterator[Case]:
    """All cases of a model. One after the other: what belongs to a weight lives until the next one comes."""
    yield from _op_cases(shapes, platform, rows)
    for linear in shapes.linears:
        yield from _linear_cases(linear, rows)
    for spec in shapes.attention:
        for kv_dtype in ("auto", "int8"):
            yield from _write_cases(replace(spec, kv_dtype=kv_dtype), rows)
            yield from _attention_cases(replace(spec, kv_dtype=kv_dtype), rows, context)


# Ops of the list ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pointwise:
    """``operations`` per element of the first argument, an exponential or a root counting as one. The first ``typed``
    arguments have the model's type if they are floats; the others come as they are made. An op that is not ``typed`` at
    all works in float32 whatever that type is."""

    arguments: Callable[[ModelShapes, int], tuple[Any, ...]]
    operations: float
    typed: int = 3
    most_rows: int | None = None


def _hidden(shapes: ModelShapes, rows: int) -> torch.Tensor:
    return torch.randn(rows, shapes.facts.hidden_size)


def _norm_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    return _hidden(shapes, rows), torch.ones(shapes.facts.hidden_size), 1e-5


def _add_norm_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    return _hidden(shapes, rows), *_norm_arguments(shapes, rows)


def _rotary_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    heads = shapes.facts.num_heads + shapes.facts.num_kv_heads
    tables = torch.rand(rows, 1, shapes.facts.head_dim)
    return torch.randn(rows, heads, shapes.facts.head_dim), tables, tables.clone()


def _tables_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    return torch.arange(rows), torch.rand(shapes.facts.head_dim // 2), 1.0


def _gate_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    return (torch.randn(rows, 2 * shapes.intermediate_size),)


def _sample_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    logits = torch.randn(rows, shapes.facts.vocab_size) * 3
    temperature, min_p = torch.full((rows,), 0.8), torch.zeros(rows)
    top_k, top_p = torch.full((rows,), 50), torch.full((rows,), 0.95, dtype=torch.float64)
    return logits, temperature, min_p, top_k, top_p, torch.rand(rows, dtype=torch.float64)


def _argmax_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    return (torch.randn(rows, shapes.facts.vocab_size) * 3,)


def _resolve_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    return -1 - torch.arange(rows), torch.arange(rows + 1)


def _keep_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    return torch.zeros(rows + 1, dtype=torch.int64), torch.arange(rows), torch.arange(rows)


def _seat_state(shapes: ModelShapes, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rules, words) of seats that all have a place, shifts and penalties."""
    rules = torch.tensor([0, 0, 1, 1]).repeat(rows, 1)
    rules[:, 0] = torch.arange(rows)
    return rules, torch.zeros(rows, shapes.facts.vocab_size, dtype=torch.int32)


def _edit_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    logits, finite = torch.randn(rows, shapes.facts.vocab_size) * 3, torch.zeros(rows, dtype=torch.bool)
    rules, words = _seat_state(shapes, rows)
    penalties = torch.tensor([1.1, 0.1, 0.1]).repeat(rows, 1)
    return logits, finite, torch.arange(rows), rules, penalties, words, torch.zeros_like(logits)


def _mask_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    """Masks that allow one token in a thousand, as most of a grammar's do."""
    vocab = shapes.facts.vocab_size
    words = torch.where(torch.rand(rows, -(-vocab // 32)) < 0.03, 1, 0).to(torch.int32)
    return torch.randn(rows, vocab) * 3, torch.arange(rows), words


def _count_arguments(shapes: ModelShapes, rows: int) -> tuple[Any, ...]:
    rules, words = _seat_state(shapes, rows)
    return words, rules, torch.arange(rows), torch.arange(rows)


POINTWISE = {
    "rms_norm": _Pointwise(_norm_arguments, 4),
    "add_rms_norm": _Pointwise(_add_norm_arguments, 5),
    "rms_norm_quantized": _Pointwise(_norm_arguments, 9),
    "add_rms_norm_quantized": _Pointwise(_add_norm_arguments, 10),
    "quantize_rows": _Pointwise(lambda shapes, rows: (_hidden(shapes, rows),), 5),
    "rotary": _Pointwise(_rotary_arguments, 3, typed=1),
    "rotary_tables": _Pointwise(_tables_arguments, 12, typed=0),
    "silu_and_mul": _Pointwise(_gate_arguments, 15),
    "silu_and_mul_quantized": _Pointwise(_gate_arguments, 20),
    "gelu_and_mul": _Pointwise(_gate_arguments, 20),
    "gelu_and_mul_quantized": _Pointwise(_gate_arguments, 25),
    "add": _Pointwise(lambda shapes, rows: (_hidden(shapes, rows), _hidden(shapes, rows)), 1),
    "scale": _Pointwise(lambda shapes, rows: (_hidden(shapes, rows), 0.5), 1),
    "gather_rows": _Pointwise(lambda shapes, rows: (_hidden(shapes, rows), torch.randperm(rows)), 0),
    "argmax": _Pointwise(_argmax_arguments, 1, most_rows=MOST_LOGITS_ROWS),
    "resolve_tokens": _Pointwise(_resolve_arguments, 0, typed=0),
    "keep_tokens": _Pointwise(_keep_arguments, 0, typed=0),
    "edit_logits": _Pointwise(_edit_arguments, 6, typed=0, most_rows=MOST_LOGITS_ROWS),
    "mask_logits": _Pointwise(_mask_arguments, 1, typed=0, most_rows=MOST_LOGITS_ROWS),
    "count_tokens": _Pointwise(_count_arguments, 0, typed=0, most_rows=MOST_LOGITS_ROWS),
    "sample": _Pointwise(_sample_arguments, 4, typed=0, most_rows=MOST_LOGITS_ROWS),
}


def _op_cases(shapes: ModelShapes, platform: PlatformFacts, rows: Sequence[int]) -> Iterator[Case]:
    for name, pointwise in POINTWISE.items():
        spec = OpSpec(dtype=shapes.dtype if pointwise.typed else "float32", platform=platform)
        runnable = [each for each in OPS[name].implementations if each.can_run(spec).ok]
        if not runnable:
            continue
        _, decision = choose_op(name, spec)
        for count in (count for count in rows if count <= (pointwise.most_rows or count)):
            arguments = _typed(pointwise.arguments(shapes, count), pointwise.typed, shapes.dtype)
            if not all(part.numel() for part in arguments if isinstance(part, torch.Tensor)):
                continue  # the model has no such layer
            if "quantize" in name and arguments[0].shape[-1] % BLOCK:
                continue
            candidates = tuple(
                Candidate(name=each.name, work=partial(_pointwise_work, each.function, arguments, pointwise.operations))
                for each in runnable
            )
            shape = "x".join(str(size) for size in arguments[0].shape[1:]) or "-"
            yield Case(op=name, shape=shape, rows=count, decision=decision, candidates=candidates)


def _typed(arguments: tuple[Any, ...], count: int, dtype: str) -> tuple[Any, ...]:
    """The first ``count`` with floats in the model's type."""
    return tuple(
        part.to(getattr(torch, dtype))
        if i < count and isinstance(part, torch.Tensor) and part.is_floating_point()
        else part
        for i, part in enumerate(arguments)
    )


def _pointwise_work(function: Callable[..., Any], arguments: tuple[Any, ...], operations: float) -> Work:
    return Work(
        make=lambda copies: [lambda: function(*arguments)],
        warm=arguments,
        operations=int(arguments[0].numel() * operations),
    )


# Linear layers --------------------------------------------------------------------------------------------------------


def random_record(spec: LinearSpec) -> WeightRecord:
    """A weight of the spec's scheme with codes and scales drawn at random; a float that no scheme defines is small."""
    shape = (spec.out_features, spec.in_features)
    if spec.scheme.kind == "dense":
        return dense_record((torch.randn(*shape) * 0.02).to(getattr(torch, _DENSE_TYPES[spec.scheme.name])))
    bits = {name: level.bits for level in spec.scheme.scales for name in ("subscales", "submins")}
    parts = {}
    for name, (dtype, width) in part_layout(spec.scheme, spec.in_features).items():
        size = (spec.out_features, width)
        if dtype.is_floating_point:
            parts[name] = torch.full(size, 0.01).to(dtype)
        elif name in bits:
            high = 1 << bits[name]
            low = -high // 2 if dtype is torch.int8 else 0
            parts[name] = torch.randint(low, high + low, size, dtype=dtype)
        elif spec.scheme.kind == "float":  # any but the two of NaN
            parts[name] = torch.randint(0, 127, size, dtype=dtype) | (torch.randint(0, 2, size, dtype=dtype) << 7)
        else:
            low = -128 if dtype is torch.int8 else 0
            parts[name] = torch.randint(low, 256 + low, size, dtype=dtype)
    return WeightRecord(spec.scheme, shape, parts)


class _PreparedCopies:
    """A random weight as one method prepares it, and copies of that in other places, made when they are asked for."""

    def __init__(self, method: LinearMethod, linear: LinearShape, record: Callable[[], WeightRecord]) -> None:
        self.method, self.spec = method, linear.spec
        self._record = record
        self._weights: list[Any] = []

    def weights(self, copies: int) -> list[Any]:
        while len(self._weights) < copies:
            first = copy.deepcopy(self._weights[0]) if self._weights else None
            self._weights.append(first or self.method.prepare(self._record(), self.spec))
        return self._weights[:copies]


def _linear_cases(linear: LinearShape, rows: Sequence[int]) -> Iterator[Case]:
    spec = linear.spec
    _, decision = choose_linear(spec)
    record = cache(partial(random_record, spec))
    prepared = [_PreparedCopies(method, linear, record) for method in LINEAR_METHODS if method.can_run(spec).ok]
    shape = f"{linear.role} {spec.scheme.name} {spec.out_features}x{spec.in_features}"
    for op in _linear_ops(linear):
        for count in rows:
            if op == "embedding" or not linear.gives_logits or count <= MOST_LOGITS_ROWS:
                candidates = tuple(
                    Candidate(name=each.method.name, work=partial(_linear_work, each, op, count)) for each in prepared
                )
                yield Case(op=op, shape=shape, rows=count, decision=decision, candidates=candidates)


def _linear_ops(linear: LinearShape) -> Iterator[str]:
    if linear.embedded:
        yield "embedding"
    if not linear.embedded or linear.gives_logits:
        yield "linear"
    if linear.gives_logits:
        yield "linear_argmax"


def _linear_work(prepared: _PreparedCopies, op: str, rows: int) -> Work:
    if op == "embedding":
        return _embedding_work(prepared, rows)
    method, spec = prepared.method, prepared.spec
    nbytes = prepared.weights(1)[0].nbytes
    values = torch.randn(rows, spec.in_features)
    x: LinearInput = values.to(getattr(torch, spec.dtype))
    kind = "bfloat16" if spec.scheme is BF16 else spec.dtype
    if method.input_format(spec) is InputFormat.QUANTIZED:
        x, kind = quantize_rows(values), "int8"

    def make(copies: int) -> Sequence[Call]:
        if op == "linear_argmax":
            return [partial(method.argmax, weight, x) for weight in prepared.weights(copies)]
        return [partial(method.apply, weight, x, None) for weight in prepared.weights(copies)]

    return Work(
        make=make,
        warm=(x,),
        operations=2 * rows * spec.out_features * spec.in_features,
        kind=kind,
        cold_bytes=nbytes,
        copy_bytes=nbytes,
    )


def _embedding_work(prepared: _PreparedCopies, rows: int) -> Work:
    outs, nbytes = prepared.spec.out_features, prepared.weights(1)[0].nbytes

    def make(copies: int) -> Sequence[Call]:
        weights = prepared.weights(copies) * _LOOKUPS
        return [partial(prepared.method.embed, weight, torch.randint(0, outs, (rows,))) for weight in weights]

    return Work(make=make, warm=(), operations=0, cold_bytes=rows * nbytes // outs, copy_bytes=nbytes)


# Attention ------------------------------------------------------------------------------------------------------------


def _attention_cases(spec: AttentionSpec, rows: Sequence[int], context: int) -> Iterator[Case]:
    backends = [backend for backend in BACKENDS.values() if backend.can_run(spec).ok]
    if not backends:  # none stores keys so
        return
    _, decision = choose_attention(spec)
    window = f", window {spec.window}" if spec.window is not None else ""
    for count in rows:
        step = _Step.of(count, context)
        candidates = tuple(Candidate(name=b.name, work=partial(_attention_work, b, spec, step)) for b in backends)
        shape = f"{step.text}, KV {spec.kv_dtype}{window}"
        yield Case(op="paged_attention", shape=shape, rows=count, decision=decision, candidates=candidates)


def _write_cases(spec: AttentionSpec, rows: Sequence[int]) -> Iterator[Case]:
    """The first half of native attention alone: rotation, and keys and values into cold blocks."""
    native = BACKENDS["cpu_native"]
    if not native.can_run(spec).ok:
        return
    asked = OpSpec(dtype=spec.dtype, platform=spec.platform)
    isas = implementations(rotate_and_write)
    runnable = [each for each in isas if each.can_run(asked).ok]
    _, decision = choose(f"op rotate_and_write {spec.dtype}", asked, isas)
    layout = native.kv_layout(spec, native.block_tokens[0])
    shape = f"{spec.num_heads}+{spec.num_kv_heads}x{spec.head_dim}, KV {layout.dtype}".replace("torch.", "")
    for count in rows:
        candidates = tuple(
            Candidate(name=each.name, work=partial(_write_work, each.function, spec, layout, count))
            for each in runnable
        )
        yield Case(op="rotate_and_write", shape=shape, rows=count, decision=decision, candidates=candidates)


def _write_work(function: Callable[..., Any], spec: AttentionSpec, layout: KvLayout, tokens: int) -> Work:
    block = layout.shape[1] * TILE
    qk = torch.randn(tokens, spec.num_heads + spec.num_kv_heads, spec.head_dim)
    v = torch.randn(tokens, spec.num_kv_heads, spec.head_dim)
    tables = torch.rand(tokens, 1, spec.head_dim), torch.rand(tokens, 1, spec.head_dim)
    # A decode step writes one slot of a block for each row, a prefill all of them.
    slots = torch.arange(tokens) * (block if tokens <= MOST_DECODE_ROWS else 1)
    blocks = int(slots[-1]) // block + 1

    def make(copies: int) -> Sequence[Call]:
        pools = [torch.zeros((blocks, *layout.shape), dtype=layout.dtype) for _ in range(copies)]
        return [partial(function, qk, v, tables, kv, slots, block) for kv in pools]

    return Work(
        make=make,
        warm=(qk, v, tables),
        operations=3 * qk.numel(),
        cold_bytes=tokens * (layout.nbytes // block),
        copy_bytes=blocks * layout.nbytes,
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """``requests`` requests, each with ``new`` tokens of this step at the end of ``length``."""

    requests: int
    new: int
    length: int

    @classmethod
    def of(cls, rows: int, context: int) -> _Step:
        return cls(rows, 1, context) if rows <= MOST_DECODE_ROWS else cls(1, rows, rows)

    @property
    def text(self) -> str:
        return f"decode behind {self.length}" if self.new == 1 else f"prefill of {self.new}"

    def pairs(self, window: int | None) -> int:
        """Queries times the keys that they see."""
        seen = range(self.length - self.new + 1, self.length + 1)
        return self.requests * sum(keys if window is None else min(keys, window) for keys in seen)


def _attention_work(backend: AttentionBackend, spec: AttentionSpec, step: _Step) -> Work:
    block = backend.block_tokens[0]
    layout = backend.kv_layout(spec, block)
    blocks_each = -(-step.length // block)
    blocks = step.requests * blocks_each
    order = torch.randperm(blocks).view(step.requests, blocks_each)
    positions = torch.arange(step.length - step.new, step.length)
    slots = order[:, positions // block] * block + positions % block
    metadata = backend.plan(
        spec,
        GroupStep(
            query_start=torch.arange(step.requests + 1) * step.new,
            kv_lens=torch.full((step.requests,), step.length),
            block_table=order,
            slots=slots.flatten(),
            positions=positions.repeat(step.requests),
            max_query_len=step.new,
            max_kv_len=step.length,
            block_tokens=block,
        ),
    )
    tokens, dtype = step.requests * step.new, getattr(torch, spec.dtype)
    qk = torch.randn(tokens, spec.num_heads + spec.num_kv_heads, spec.head_dim).to(dtype)
    v = torch.randn(tokens, spec.num_kv_heads, spec.head_dim).to(dtype)
    tables = torch.rand(tokens, 1, spec.head_dim), torch.rand(tokens, 1, spec.head_dim)
    sinks = torch.randn(spec.num_heads) if spec.sinks else None
    pairs = step.pairs(spec.window)
    seen = step.length if spec.window is None else min(step.length, spec.window + step.new - 1)

    def make(copies: int) -> Sequence[Call]:
        pools = [torch.empty((blocks, *layout.shape), dtype=layout.dtype).fill_(1) for _ in range(copies)]
        scale = 1.0 / math.sqrt(spec.head_dim)
        return [partial(backend.run, qk, v, tables, kv, scale, metadata, sinks=sinks) for kv in pools]

    return Work(
        make=make,
        warm=(qk, v, tables),
        operations=4 * pairs * spec.num_heads * spec.head_dim,
        kind="bfloat16" if layout.dtype is torch.bfloat16 else "float32",
        cold_bytes=step.requests * seen * (layout.nbytes // block),
        copy_bytes=blocks * layout.nbytes,
    )
