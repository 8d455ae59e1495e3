"""From a spec to a runner: build the model, choose what computes it, plan its memory, load its weights.

``plan_executor`` goes as far as one can without reading a weight, for `penstock explain`; ``load_executor`` goes all
the way. Knows no family and no backend by name.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol

import torch

from penstock.attention.contract import AttentionBackend, AttentionSpec, KvLayout
from penstock.attention.select import choose_attention
from penstock.errors import ConfigError
from penstock.executor.graphs import StepGraphs, graphs_decision
from penstock.executor.kv_storage import KvStorage, block_bytes
from penstock.executor.memory_plan import MemoryNeed, MemoryPlan, plan_memory
from penstock.executor.native_recorder import NativeRecorder
from penstock.executor.runner import GroupAttention, Runner, RunnerLimits
from penstock.executor.sampler.fused import choose_sample_op
from penstock.executor.sampler.sampler import Sampler
from penstock.executor.seats import SPARE_TOKENS
from penstock.executor.spec import ExecutorSpec
from penstock.executor.warmup import warm_up
from penstock.executor.weight_plan import WeightPlan, plan_weights
from penstock.kernels.native.attention import most_partial_bytes
from penstock.layers.parameter import Parameter
from penstock.loader.checkpoint import Checkpoint, open_checkpoint
from penstock.loader.weights import load_parameters
from penstock.models.family import CausalModel, KvGeometry, ModelParts, attention_spec
from penstock.models.table import family_of
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.quantization.select import choose_linear
from penstock.types.decision import Decision
from penstock.types.facts import ModelFacts, PlatformFacts
from penstock.types.kv import KvCapacity, KvGroupSpec

# (weights done, weights in all)
Progress = Callable[[int, int], None]


class Choices:
    """Asks the oracle once per distinct need and keeps its Decisions in the order of asking."""

    def __init__(self, attention_backend: str | None = None, linear_backend: str | None = None) -> None:
        self._attention_backend = attention_backend
        self._linear_backend = linear_backend
        self._chosen: dict[Hashable, Any] = {}
        self._decisions: list[Decision] = []
        self._linear_names: dict[str, None] = {}

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(self._decisions)

    def linear(self, spec: LinearSpec) -> LinearMethod:
        key = (spec.scheme.name, spec.out_features, spec.in_features, spec.dtype)
        method: LinearMethod = self._ask(key, lambda: choose_linear(spec, self._linear_backend))
        self._linear_names[method.name] = None
        return method

    @property
    def linear_names(self) -> tuple[str, ...]:
        """The linear methods chosen so far, once each."""
        return tuple(self._linear_names)

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        key = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.dtype, spec.window, spec.soft_cap, spec.kv_dtype)
        backend: AttentionBackend = self._ask(key, lambda: choose_attention(spec, self._attention_backend))
        return backend

    def _ask(self, key: Hashable, ask: Callable[[], tuple[Any, Decision]]) -> Any:
        if key not in self._chosen:
            self._chosen[key], decision = ask()
            self._decisions.append(decision)
        return self._chosen[key]


class LoadableModel(CausalModel, Protocol):
    """What every family builds: a model whose parameters can be filled."""

    def parameters(self) -> Mapping[str, Parameter]:
        """By the targets of the family's WEIGHTS table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A model without weights: its modules exist, its parameters are empty."""

    model: LoadableModel
    family: ModuleType
    facts: ModelFacts
    dtype: torch.dtype
    geometries: tuple[KvGeometry, ...]
    attention: tuple[GroupAttention, ...]  # one per geometry
    choices: Choices


def build_model(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    platform: PlatformFacts,
    attention_backend: str | None = None,
    linear_backend: str | None = None,
    kv_cache_dtype: str = "auto",
) -> BuiltModel:
    """Build the module tree of a checkpoint's family and choose its attention backends; reads no weight.

    Raises UnsupportedModelError for an architecture or a configuration that no family takes, NoBackendError when a
    named backend refuses.
    """
    facts = checkpoint.facts()
    family = family_of(facts.architecture)
    config = family.read_config(checkpoint.config)
    choices = Choices(attention_backend, linear_backend)
    geometries: tuple[KvGeometry, ...] = family.kv_groups(config)
    specs = [attention_spec(geometry, dtype, platform, kv_cache_dtype) for geometry in geometries]
    attention = tuple(GroupAttention(spec, choices.attention(spec)) for spec in specs)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    parts = ModelParts(
        dtype=torch_dtype,
        platform=platform,
        linear_method=choices.linear,
        attention_backend=choices.attention,
        kv_dtype=kv_cache_dtype,
    )
    return BuiltModel(
        model=family.build(config, parts),
        family=family,
        facts=facts,
        dtype=torch_dtype,
        geometries=geometries,
        attention=attention,
        choices=choices,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorPlan:
    """All that is known before a weight is read."""

    built: BuiltModel
    weights: WeightPlan
    memory: MemoryPlan
    sampling: Decision  # the op that draws, or why the steps do
    graphs: Decision  # whether steps are to be recorded; loading finds out whether they can be

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return (*self.built.choices.decisions, self.sampling, self.graphs)

    @property
    def lines(self) -> tuple[str, ...]:
        return (*self.weights.lines, *self.memory.lines)


def plan_executor(spec: ExecutorSpec, checkpoint: Checkpoint) -> ExecutorPlan:
    """Choose everything and plan the memory; reads headers only. Raises ConfigError when the memory does not do."""
    built = build_model(
        checkpoint,
        dtype=spec.dtype,
        platform=spec.platform,
        attention_backend=spec.attention_backend,
        linear_backend=spec.linear_backend,
        kv_cache_dtype=spec.kv_cache_dtype,
    )
    weights = plan_weights(
        built.family.WEIGHTS, built.facts, checkpoint, built.model.parameters(), built.choices.linear
    )
    memory = plan_memory(memory_need(built, weights, spec))
    _, sampling = choose_sample_op(spec.platform)
    return ExecutorPlan(
        built=built, weights=weights, memory=memory, sampling=sampling, graphs=graphs_decision(_no_graphs(spec))
    )


def memory_need(built: BuiltModel, weights: WeightPlan, spec: ExecutorSpec) -> MemoryNeed:
    return MemoryNeed(
        groups=group_specs(built, spec.block_size),
        weight_bytes=weights.prepared_bytes,
        activation_bytes=activation_bytes(built, spec) + graph_bytes(built, spec),
        memory_available=spec.platform.memory_available_bytes or spec.platform.memory_bytes,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=spec.max_model_len,
        kv_cache_memory=spec.kv_cache_memory,
        depth=spec.depth,
        graph_bytes=graph_bytes(built, spec),
    )


def longest_request(built: BuiltModel, weights: WeightPlan, spec: ExecutorSpec) -> int:
    """The largest max_model_len, up to the spec's, that ``plan_memory`` accepts; 0 when it accepts none."""

    def fits(length: int) -> bool:
        try:
            plan_memory(memory_need(built, weights, replace(spec, max_model_len=length)))
        except ConfigError:
            return False
        return True

    if fits(spec.max_model_len):  # nearly always
        return spec.max_model_len
    return bisect.bisect_left(range(1, spec.max_model_len), True, key=lambda length: not fits(length))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedExecutor:
    """A runner that is ready, and what there is to say about it."""

    runner: Runner
    capacity: KvCapacity
    decisions: tuple[Decision, ...] = ()
    lines: tuple[str, ...] = ()


def load_executor(spec: ExecutorSpec, *, progress: Progress | None = None) -> LoadedExecutor:
    """Build, plan, load, allocate and warm up. The checkpoint is closed at the end: nothing of it is kept but what the
    prepared weights refer to."""
    checkpoint = open_checkpoint(spec.source, load_format=spec.load_format, seed=spec.dummy_seed)
    try:
        plan = plan_executor(spec, checkpoint)
        built = plan.built
        with torch.inference_mode():
            load_parameters(
                built.family.WEIGHTS, built.facts.num_layers, checkpoint, built.model.parameters(), progress=progress
            )
    finally:
        checkpoint.close()
    capacity = plan.memory.capacity
    limits = RunnerLimits(
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=spec.max_model_len,
    )
    sample_op, sampling = choose_sample_op(spec.platform)
    runner = Runner(
        built.model,
        capacity.groups,
        built.attention,
        KvStorage(built.geometries, capacity.groups, capacity.num_blocks, kv_layouts(built, spec.block_size)),
        Sampler(built.facts.vocab_size, spec.seed, sample_op),
        limits,
        make_graphs(built, spec),
    )
    warm_up(runner, capacity, limits)
    decisions = (*built.choices.decisions, sampling, runner.graphs.decision())
    return LoadedExecutor(runner=runner, capacity=capacity, decisions=decisions, lines=plan.lines)


def group_specs(built: BuiltModel, block_size: int | None) -> tuple[KvGroupSpec, ...]:
    """The KV groups with the block size that the user named, or that each group's backend prefers."""
    return tuple(
        KvGroupSpec(
            name=geometry.name,
            visibility=geometry.visibility,
            entries_per_block=block_tokens(attention.backend, block_size),
            bytes_per_block=block_bytes(geometry, layout),
            window=geometry.window,
        )
        for geometry, attention, layout in zip(
            built.geometries, built.attention, kv_layouts(built, block_size), strict=True
        )
    )


def kv_layouts(built: BuiltModel, block_size: int | None) -> tuple[KvLayout, ...]:
    """What a layer of each group keeps in a block."""
    return tuple(
        attention.backend.kv_layout(attention.spec, block_tokens(attention.backend, block_size))
        for attention in built.attention
    )


def block_tokens(backend: AttentionBackend, asked: int | None) -> int:
    if asked is None:
        return backend.block_tokens[0]
    if asked not in backend.block_tokens:
        accepted = ", ".join(map(str, sorted(backend.block_tokens)))
        raise ConfigError(f"--block-size is {asked}, but {backend.name} takes blocks of {accepted} tokens.")
    return asked


def activation_bytes(built: BuiltModel, spec: ExecutorSpec) -> int:
    """The most that one step allocates beside weights and KV, from the shapes of the largest step.

    Alive at once: some hidden states and the inputs and outputs of the widest layer for every token; the logits of
    every row with the sampler's copies (float32 twice, cumulated float64); keys and values of one layer gathered for
    every token that the rows of a step can see.
    """
    hidden = built.facts.hidden_size
    per_token = (6 * hidden + 3 * _widest_layer(built)) * built.dtype.itemsize
    per_row = built.facts.vocab_size * (2 * 4 + 8)
    seen = min(spec.max_num_seqs * spec.max_model_len, 2 * spec.max_model_len)
    gathered = max(2 * g.num_kv_heads * g.head_dim for g in built.geometries) * built.dtype.itemsize * seen
    return spec.max_num_batched_tokens * per_token + spec.max_num_seqs * per_row + gathered


def graph_bytes(built: BuiltModel, spec: ExecutorSpec) -> int:
    """Room for the results of the largest recorded step, which all others share; 0 when none is recorded.

    Alive at once, in float32: some hidden states and the widest layer's inputs and outputs for every token, or, in
    small steps over long contexts, the partial results of attention; then the logits. What does not find room runs
    eagerly.
    """
    if _no_graphs(spec):
        return 0
    layers = spec.max_num_batched_tokens * 4 * (6 * built.facts.hidden_size + 2 * _widest_layer(built))
    longest = spec.max_model_len + SPARE_TOKENS
    partial = max(most_partial_bytes(g.num_heads, g.num_kv_heads, g.head_dim, longest) for g in built.geometries)
    return max(layers, partial) + spec.max_num_seqs * 4 * built.facts.vocab_size + (1 << 20)


def make_graphs(built: BuiltModel, spec: ExecutorSpec) -> StepGraphs:
    off = _no_graphs(spec)
    return StepGraphs(None, off) if off else StepGraphs(NativeRecorder(graph_bytes(built, spec)))


def _no_graphs(spec: ExecutorSpec) -> str:
    """Why no step is recorded, or an empty string."""
    return spec.platform.extension_missing if spec.graphs else "turned off by --no-graphs"


def _widest_layer(built: BuiltModel) -> int:
    shapes: Sequence[tuple[int, ...]] = [p.shape for p in built.model.parameters().values() if len(p.shape) == 2]
    return max((rows for rows, _ in shapes if rows != built.facts.vocab_size), default=built.facts.hidden_size)
