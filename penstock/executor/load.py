"""From a spec to a runner: build the model, choose what computes it, plan its memory, load its weights.

``plan_executor`` goes as far as one can without reading a weight, for `penstock explain`; ``load_executor`` goes all
the way. Knows no family and no backend by name.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import torch

from penstock.attention.contract import AttentionBackend, AttentionSpec, KvLayout
from penstock.attention.select import choose_attention
from penstock.errors import ConfigError
from penstock.executor.device_edits import DeviceEdits, EditOps, edit_bytes
from penstock.executor.device_inputs import input_bytes, table_bytes
from penstock.executor.device_logprobs import described_bytes
from penstock.executor.device_masks import DeviceMasks, MaskOp, mask_bytes
from penstock.executor.device_memory import RESERVE_BYTES, claim_device, measure_step
from penstock.executor.device_runner import DeviceParts, DeviceRunner, padded_row_counts
from penstock.executor.device_warmup import compile_kernels
from penstock.executor.forward import Forward, GroupAttention
from penstock.executor.graphs import StepGraphs, Variant, graphs_decision
from penstock.executor.kv_storage import KvStorage, block_bytes
from penstock.executor.memory_plan import MemoryNeed, MemoryPlan, plan_memory
from penstock.executor.native_recorder import NativeRecorder
from penstock.executor.runner import Runner, RunnerLimits
from penstock.executor.sampler.fused import SampleOp, choose_sample_op
from penstock.executor.sampler.sampler import Sampler
from penstock.executor.seats import max_seat_tokens
from penstock.executor.spec import ExecutorSpec
from penstock.executor.warmup import warm_up
from penstock.executor.weight_plan import WeightPlan, plan_weights
from penstock.kernels.device import CPU, device_of, prepare_device
from penstock.kernels.device_rate import with_measured_rate
from penstock.kernels.implementation import OpSpec
from penstock.kernels.native.attention import most_partial_bytes
from penstock.kernels.ops import choose_op
from penstock.layers.parameter import Parameter
from penstock.loader.checkpoint import Checkpoint, open_checkpoint
from penstock.loader.weights import load_parameters
from penstock.models.family import CausalModel, KvGeometry, ModelParts, attention_spec
from penstock.models.table import family_of
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.quantization.select import check_used, choose_linear
from penstock.types.decision import Decision
from penstock.types.facts import ModelFacts, PlatformFacts
from penstock.types.kv import KvCapacity, KvGroupSpec

# Steps of other shapes leave pieces between what they allocate.
STEP_MARGIN = 1.25

# (what is being made: "weights", "kernels" or "graphs", how many are done, how many there are)
Progress = Callable[[str, int, int], None]


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
        key = (spec.scheme.name, spec.out_features, spec.in_features, spec.dtype, spec.batch_invariant)
        method: LinearMethod = self._ask(key, lambda: choose_linear(spec, self._linear_backend))
        self._linear_names[method.name] = None
        return method

    @property
    def linear_names(self) -> tuple[str, ...]:
        """The linear methods chosen so far, once each."""
        return tuple(self._linear_names)

    def attention(self, spec: AttentionSpec) -> AttentionBackend:
        shape = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.window, spec.soft_cap, spec.sinks)
        key = (*shape, spec.dtype, spec.kv_dtype, spec.batch_invariant)
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
    batch_invariant: bool = False,
    device: torch.device = CPU,
) -> BuiltModel:
    """Build the module tree of a checkpoint's family and choose its attention backends; reads no weight. Small
    parameters lie on ``device``, which is the CPU where nothing is to be loaded.

    Raises UnsupportedModelError for an architecture or a configuration that no family takes, NoBackendError when a
    named backend refuses.
    """
    facts = checkpoint.facts()
    family = family_of(facts.architecture)
    config = family.read_config(checkpoint.config)
    choices = Choices(attention_backend, linear_backend)
    geometries: tuple[KvGeometry, ...] = family.kv_groups(config)
    specs = [attention_spec(geometry, dtype, platform, kv_cache_dtype, batch_invariant) for geometry in geometries]
    attention = tuple(GroupAttention(spec, choices.attention(spec)) for spec in specs)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    parts = ModelParts(
        dtype=torch_dtype,
        platform=platform,
        linear_method=choices.linear,
        attention_backend=choices.attention,
        kv_dtype=kv_cache_dtype,
        batch_invariant=batch_invariant,
        device=device,
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


def plan_executor(spec: ExecutorSpec, checkpoint: Checkpoint, device: torch.device = CPU) -> ExecutorPlan:
    """Choose everything and plan the memory; reads headers only. Raises ConfigError when the memory does not do.
    ``device`` as ``build_model`` has it."""
    built = build_model(
        checkpoint,
        dtype=spec.dtype,
        platform=spec.platform,
        attention_backend=spec.attention_backend,
        linear_backend=spec.linear_backend,
        kv_cache_dtype=spec.kv_cache_dtype,
        batch_invariant=spec.deterministic,
        device=device,
    )
    weights = plan_weights(
        built.family.WEIGHTS, built.facts, checkpoint, built.model.parameters(), built.choices.linear
    )
    check_used(spec.linear_backend, built.choices.linear_names)
    memory = plan_memory(memory_need(built, weights, spec))
    _, sampling = choose_sample_op(spec.platform)
    return ExecutorPlan(
        built=built, weights=weights, memory=memory, sampling=sampling, graphs=graphs_decision(_no_graphs(built, spec))
    )


def memory_need(built: BuiltModel, weights: WeightPlan, spec: ExecutorSpec) -> MemoryNeed:
    return MemoryNeed(
        groups=group_specs(built, spec.block_size),
        weight_bytes=weights.prepared_bytes,
        activation_bytes=activation_bytes(built, spec) + graph_bytes(built, spec),
        memory_available=_memory_available(spec.platform),
        owned=on_device(spec.platform),
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

    runner: Runner | DeviceRunner
    capacity: KvCapacity
    decisions: tuple[Decision, ...] = ()
    lines: tuple[str, ...] = ()


def load_executor(
    spec: ExecutorSpec, *, progress: Progress | None = None, launches: bool | None = None
) -> LoadedExecutor:
    """Build, plan, load, allocate and warm up. The checkpoint is closed at the end: nothing of it is kept but what the
    prepared weights refer to. ``progress`` hears of the parts that take long, on this thread. ``launches``: with a
    DeviceRunner, as on every device; on a CPU, for tests of it."""
    tell = progress or (lambda _part, _done, _total: None)
    device = device_of(spec.platform)
    if device != CPU:
        prepare_device(spec.platform)
        claim_device(device)
        with_measured_rate(spec.platform)
    checkpoint = open_checkpoint(spec.source, load_format=spec.load_format, seed=spec.dummy_seed)
    try:
        plan = plan_executor(spec, checkpoint, device)
        built = plan.built
        with torch.inference_mode():
            load_parameters(
                built.family.WEIGHTS,
                built.facts.num_layers,
                checkpoint,
                built.model.parameters(),
                progress=partial(tell, "weights"),
                device=device,
            )
    finally:
        checkpoint.close()
    limits = RunnerLimits(
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=spec.max_model_len,
    )
    if not (on_device(spec.platform) if launches is None else launches):
        return _loaded_on_cpu(spec, plan, limits)
    with torch.inference_mode():
        return _loaded_on_device(spec, plan, limits, device, tell)


def _loaded_on_cpu(spec: ExecutorSpec, plan: ExecutorPlan, limits: RunnerLimits) -> LoadedExecutor:
    built, capacity = plan.built, plan.memory.capacity
    sample_op, sampling = choose_sample_op(spec.platform)
    storage = KvStorage(built.geometries, capacity.groups, capacity.num_blocks, kv_layouts(built, spec.block_size))
    runner = Runner(
        Forward(built.model, capacity.groups, built.attention, storage),
        capacity.groups,
        Sampler(built.facts.vocab_size, spec.seed, sample_op),
        limits,
        make_graphs(built, spec),
    )
    warm_up(runner, capacity, limits)
    decisions = (*built.choices.decisions, sampling, runner.graphs.decision())
    return LoadedExecutor(runner=runner, capacity=capacity, decisions=decisions, lines=plan.lines)


def _loaded_on_device(
    spec: ExecutorSpec, plan: ExecutorPlan, limits: RunnerLimits, device: torch.device, tell: Progress
) -> LoadedExecutor:
    """The memory is planned a second time, with what the largest step was seen to take."""
    built, layouts = plan.built, kv_layouts(plan.built, spec.block_size)
    sample_op, sampling = choose_sample_op(spec.platform)
    host_op, _ = choose_sample_op(replace(spec.platform, name="cpu"))  # of rows that the host samples

    def forward_over(groups: tuple[KvGroupSpec, ...], num_blocks: Sequence[int]) -> tuple[Forward, KvStorage]:
        storage = KvStorage(built.geometries, groups, num_blocks, layouts, device, scratch=True)
        return Forward(built.model, groups, built.attention, storage), storage

    resolve, keep = (
        choose_op(name, OpSpec(dtype=spec.dtype, platform=spec.platform))[0]
        for name in ("resolve_tokens", "keep_tokens")
    )

    def pass_tokens() -> None:
        """From step to step."""
        one = torch.zeros(1, dtype=torch.int64, device=device)
        keep(one, one, resolve(one, one))

    memory = plan.memory
    if device.type == "cuda":
        memory = _measured_plan(spec, plan, forward_over, sample_op, pass_tokens, device, tell)
    capacity = memory.capacity
    forward, storage = forward_over(capacity.groups, capacity.num_blocks)
    parts = DeviceParts(
        forward=forward,
        groups=capacity.groups,
        sampler=Sampler(built.facts.vocab_size, spec.seed, host_op),
        sample_op=sample_op,
        edit_ops=_edit_ops(spec),
        mask_op=_mask_op(spec),
        resolve=resolve,
        keep=keep,
        scratch_slots=storage.scratch_slots,
        device=device,
        depth=spec.depth,
    )
    runner = DeviceRunner(parts, limits, make_graphs(built, spec))
    runner.record_all(partial(tell, "graphs"))
    warm_up(runner, capacity, limits)
    decisions = (*built.choices.decisions, sampling, runner.graphs.decision())
    lines = (*plan.weights.lines, *memory.lines)
    return LoadedExecutor(runner=runner, capacity=capacity, decisions=decisions, lines=lines)


def _edit_ops(spec: ExecutorSpec) -> EditOps:
    asked = OpSpec(dtype="float32", platform=spec.platform)
    return EditOps(choose_op("edit_logits", asked)[0], choose_op("count_tokens", asked)[0])


def _mask_op(spec: ExecutorSpec) -> MaskOp:
    return choose_op("mask_logits", OpSpec(dtype="float32", platform=spec.platform))[0]


def _measured_plan(
    spec: ExecutorSpec,
    plan: ExecutorPlan,
    forward_over: Callable[[tuple[KvGroupSpec, ...], Sequence[int]], tuple[Forward, KvStorage]],
    sample_op: SampleOp | None,
    pass_tokens: Callable[[], object],
    device: torch.device,
    tell: Progress,
) -> MemoryPlan:
    """Steps of both kinds are covered: the largest prefill, and logits of every row with a draw."""
    forward, _ = forward_over(plan.memory.groups, [1] * len(plan.memory.num_blocks))

    def sample(logits: torch.Tensor) -> object:
        rows = logits.shape[0]
        whole, halves = torch.full((rows,), 8, device=device), torch.full((rows,), 0.5, device=device)
        if sample_op is None:
            return None
        everything = b"\xff" * (logits.shape[1] // 8 + 1)
        edits = DeviceEdits(1, logits.shape[1], _edit_ops(spec), device)
        seats = torch.zeros(rows, dtype=torch.int64, device=device)
        edits.edit(logits, seats)
        DeviceMasks(1, logits.shape[1], _mask_op(spec), 1, device).apply(logits, {0: everything})
        drawn = sample_op(logits, halves, halves, whole, halves.double(), halves.double())
        edits.count(seats, drawn[0])
        return drawn

    compile_kernels(
        forward,
        plan.memory.groups,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        sample=sample,
        pass_tokens=pass_tokens,
        device=device,
        num_threads=max(1, spec.platform.num_cores),
        progress=partial(tell, "kernels"),
    )
    measured = measure_step(
        forward,
        plan.memory.groups,
        num_tokens=spec.max_num_batched_tokens,
        num_rows=spec.max_num_seqs,
        sample=sample,
        device=device,
    )
    # A recorded decode step of all rows keeps what an eager one would take for a moment.
    share = 0 if _no_graphs(plan.built, spec) else min(1, spec.max_num_seqs / spec.max_num_batched_tokens)
    recorded = int(measured.step * share)
    need = memory_need(plan.built, plan.weights, spec)
    return plan_memory(
        replace(
            need,
            activation_bytes=int(measured.step * STEP_MARGIN)
            + recorded
            + graph_bytes(plan.built, spec)
            + lasting_bytes(plan.built, spec)
            + RESERVE_BYTES,
            graph_bytes=recorded + graph_bytes(plan.built, spec),
            memory_available=measured.free + need.weight_bytes,
        )
    )


def lasting_bytes(built: BuiltModel, spec: ExecutorSpec) -> int:
    """What a device takes beside the forward, whether steps are recorded or not: for inputs and block tables, with what
    an eager step gathers of those; and, from the first such request on, for edited logits, masks, log-probabilities."""
    rows, vocab, groups = spec.max_num_seqs, built.facts.vocab_size, group_specs(built, spec.block_size)
    inputs = input_bytes(rows, spec.max_num_batched_tokens, spec.max_model_len, groups)
    gathered = table_bytes(rows, spec.max_model_len, groups)
    return inputs + gathered + edit_bytes(rows, vocab) + mask_bytes(rows, vocab) + described_bytes(rows, vocab)


def on_device(platform: PlatformFacts) -> bool:
    """Steps are computed elsewhere than on the host."""
    return platform.name != "cpu"


def _memory_available(platform: PlatformFacts) -> int:
    """What weights, activations and KV may take, before anything is loaded."""
    reserve = RESERVE_BYTES if on_device(platform) else 0
    return max(0, platform.compute_memory_free_bytes - reserve)


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
    every token that the rows of a step can see; on a device ``lasting_bytes``.
    """
    hidden = built.facts.hidden_size
    per_token = (6 * hidden + 3 * _widest_layer(built)) * built.dtype.itemsize
    per_row = built.facts.vocab_size * (2 * 4 + 8)
    seen = min(spec.max_num_seqs * spec.max_model_len, 2 * spec.max_model_len)
    gathered = max(2 * g.num_kv_heads * g.head_dim for g in built.geometries) * built.dtype.itemsize * seen
    more = lasting_bytes(built, spec) if on_device(spec.platform) else 0
    return spec.max_num_batched_tokens * per_token + spec.max_num_seqs * per_row + gathered + more


def graph_bytes(built: BuiltModel, spec: ExecutorSpec) -> int:
    """Room for the results of the largest recorded step, which all others share; 0 when none is recorded.

    Alive at once, in float32: some hidden states and the widest layer's inputs and outputs for every token, or, in
    small steps over long contexts, the partial results of attention; then the logits. What does not find room runs
    eagerly. On a device, what recorded steps hold in a pool of their own besides the forward: the logits of all rows as
    computed and in float32, what log-probabilities take, and the block tables that a step gathers.
    """
    if _no_graphs(built, spec):
        return 0
    if on_device(spec.platform):
        rows, vocab, groups = spec.max_num_seqs, built.facts.vocab_size, group_specs(built, spec.block_size)
        logits = rows * vocab * (built.dtype.itemsize + 4)
        return logits + described_bytes(rows, vocab) + table_bytes(rows, spec.max_model_len, groups)
    layers = spec.max_num_batched_tokens * 4 * (6 * built.facts.hidden_size + 2 * _widest_layer(built))
    longest = max_seat_tokens(spec.max_model_len)
    partial = max(most_partial_bytes(g.num_heads, g.num_kv_heads, g.head_dim, longest) for g in built.geometries)
    return max(layers, partial) + spec.max_num_seqs * 4 * built.facts.vocab_size + (1 << 20)


def make_graphs(built: BuiltModel, spec: ExecutorSpec) -> StepGraphs:
    off = _no_graphs(built, spec)
    if off:
        return StepGraphs(None, off)
    if not on_device(spec.platform):
        return StepGraphs(NativeRecorder(graph_bytes(built, spec)))
    from penstock.executor.cuda_recorder import CudaRecorder

    every = len(Variant) * len(padded_row_counts(spec.max_num_seqs))
    return StepGraphs(CudaRecorder(), max_graphs=every)


def _no_graphs(built: BuiltModel, spec: ExecutorSpec) -> str:
    """Why no step is recorded, or an empty string."""
    if not spec.graphs:
        return "turned off by --no-graphs"
    if eager := next(filter(None, (attention.backend.eager_because for attention in built.attention)), ""):
        return eager
    return "" if on_device(spec.platform) else spec.platform.extension_missing


def _widest_layer(built: BuiltModel) -> int:
    shapes: Sequence[tuple[int, ...]] = [p.shape for p in built.model.parameters().values() if len(p.shape) == 2]
    return max((rows for rows, _ in shapes if rows != built.facts.vocab_size), default=built.facts.hidden_size)
