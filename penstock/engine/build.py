"""The composition root: the only place where concrete classes meet. Knows what exists, and how nothing works.

Order: probe the machine, read the model's headers, select backends, resolve the configuration with what they declare,
plan the memory; only then load and allocate. torch is imported by the functions that need it, not by this module, so
that a mock engine and ``penstock --help`` never do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.config.flags import engine_config_from
from penstock.config.resolve import KvFacts, ResolvedConfig, resolve, resolve_dtype, resolve_kv_dtype
from penstock.config.sections import EngineConfig
from penstock.core.ports import OutputChannel
from penstock.engine.constraining import decide_structured, make_constraints
from penstock.engine.engine import Engine, make_info
from penstock.engine.mock_engine import build_mock_engine
from penstock.engine.mock_text import mock_assets
from penstock.engine.progress import StartProgress
from penstock.engine.seed import start_seed
from penstock.engine.threads import prefer_short_spins
from penstock.errors import NoBackendError
from penstock.frontend.text.load import TextAssets
from penstock.mock.tokenizer import ByteTokenizer
from penstock.platforms.rates import with_known_rates
from penstock.types.decision import Decision
from penstock.types.facts import ModelFacts, PlatformFacts
from penstock.types.kv import KvCapacity

if TYPE_CHECKING:
    from penstock.engine.inproc import InProcessClient
    from penstock.executor.load import BuiltModel
    from penstock.executor.spec import ExecutorSpec
    from penstock.loader.sources import ModelSource

__all__ = [
    "Engine",
    "Explanation",
    "build_engine",
    "build_for_llm",
    "build_mock_engine",
    "explain",
    "find_model",
    "load_assets",
    "mock_assets",
]

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that is known about an engine before a weight is read. ``memory_lines`` is the sum for people.

    ``resolved`` leaves nothing open: backends and the KV cache's bytes are those that were decided.
    """

    model: ModelFacts
    platform: PlatformFacts
    resolved: ResolvedConfig
    capacity: KvCapacity
    decisions: tuple[Decision, ...]
    memory_lines: tuple[str, ...]

    @property
    def settings(self) -> dict[str, str]:
        """The resolved configuration as text."""
        return self.resolved.settings()


def explain(config: EngineConfig, platform: PlatformFacts | None = None) -> Explanation:
    """What would be built, and why, for this machine or a recorded one. Reads headers; loads no weight.

    Raises every UserError that a start would raise before it loads.
    """
    from penstock.executor.load import plan_executor
    from penstock.kernels.device_rate import with_measured_rate
    from penstock.loader.checkpoint import open_checkpoint

    source = find_model(config)
    with closing(
        open_checkpoint(source, load_format=config.model.load_format, seed=config.model.seed or 0)
    ) as checkpoint:
        survey = _survey(config, source, platform)
        plan = plan_executor(survey.spec, checkpoint)
    selected = load_assets(config, source).dialect
    spoken = (selected.decision,) if selected is not None else ()
    return Explanation(
        model=survey.model,
        platform=with_measured_rate(survey.spec.platform) if platform is None else survey.spec.platform,
        resolved=survey.settled(plan.memory.capacity),
        capacity=plan.memory.capacity,
        decisions=_without_repeats(survey.decisions + plan.decisions + spoken),
        memory_lines=plan.lines,
    )


def build_engine(
    config: EngineConfig,
    channel: OutputChannel,
    *,
    source: ModelSource | None = None,
    progress: Progress | None = None,
    parts: Progress | None = None,
) -> Engine:
    """Load the model that ``config`` names and make it ready. ``source`` is given when it has been found already.
    ``progress`` gets lines for people; ``parts`` those about how far a long part of the start is, in its place.

    Blocks until ready. Raises ConfigError, ModelSourceError, UnsupportedModelError or NoBackendError.
    """
    from penstock.executor.load import load_executor
    from penstock.executor.local import LocalExecutor

    tell = progress or (lambda _text: None)
    source = source or find_model(config, tell)
    survey = _survey(config, source, None)
    tell(_describe(survey))
    executor = LocalExecutor(survey.spec, load=partial(load_executor, progress=StartProgress(parts or tell)))
    began = time.monotonic()
    capacity = executor.start()
    try:
        decisions = _without_repeats(survey.decisions + executor.decisions)
        settled = survey.settled(capacity)
        accelerators = with_known_rates(survey.spec.platform.accelerators)  # a first start has measured one
        platform = replace(survey.spec.platform, accelerators=accelerators)
        info = make_info(survey.model, platform, settled, capacity, decisions)
        for line in executor.report:
            tell(line)
        tell(f"loaded in {time.monotonic() - began:.1f} s")
        constraints = make_constraints(
            survey.structured, lambda: load_assets(config, source), survey.model.vocab_size, survey.spec.platform
        )
        return Engine(executor, capacity, survey.resolved, channel, info, constraints)
    except BaseException:
        executor.stop()
        raise


def find_model(config: EngineConfig, progress: Progress | None = None) -> ModelSource:
    """Where the model's files are; fetches them when they are not on this machine. Raises ModelSourceError."""
    from penstock.loader.sources import resolve_source

    return resolve_source(config.model.model, revision=config.model.revision, progress=progress)


def load_assets(config: EngineConfig, source: ModelSource) -> TextAssets:
    """Tokenizer, chat template, stop ids and sampling defaults. Dummy weights need a configuration and nothing else:
    without tokenizer files, text is bytes."""
    from penstock.frontend.text.load import load_text_assets

    return load_text_assets(
        source,
        tokenizer=config.model.tokenizer,
        chat_template=config.model.chat_template,
        generation_config=config.model.generation_config,
        tool_dialect=config.model.tool_dialect,
        stand_in=ByteTokenizer() if config.model.load_format == "dummy" else None,
    )


def build_for_llm(options: dict[str, Any], *, mock: bool = False) -> tuple[InProcessClient, TextAssets]:
    """Engine and text of ``LLM``, from flat option names. Raises what ``build_engine`` raises."""
    from penstock.engine.inproc import InProcessClient

    config = engine_config_from(**options)
    if mock:
        return InProcessClient(lambda channel: build_mock_engine(config, channel)), mock_assets()
    prefer_short_spins()
    source = find_model(config)
    assets = load_assets(config, source)
    parts = _on_terminal if sys.stderr.isatty() else None
    return InProcessClient(lambda channel: build_engine(config, channel, source=source, parts=parts)), assets


def _on_terminal(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """Everything decided, nothing loaded. ``resolved`` keeps open what the user left to each group and weight, as the
    executor wants it; the names of the chosen backends stand beside it."""

    model: ModelFacts
    resolved: ResolvedConfig
    decisions: tuple[Decision, ...]
    spec: ExecutorSpec
    kv_dtypes: tuple[str, ...]
    attention_backends: tuple[str, ...]
    linear_backends: tuple[str, ...]
    structured: Decision

    def settled(self, capacity: KvCapacity) -> ResolvedConfig:
        """The configuration as it turned out, for people and reports."""
        return replace(
            self.resolved,
            kv_cache_memory=capacity.nbytes,
            kv_cache_dtype=", ".join(self.kv_dtypes),
            attention_backend=", ".join(self.attention_backends),
            linear_backend=", ".join(self.linear_backends),
            structured_backend=self.structured.chosen or "none",
        )


def _survey(config: EngineConfig, source: ModelSource, platform: PlatformFacts | None) -> _Survey:
    from penstock.executor.load import build_model, longest_request
    from penstock.executor.weight_plan import plan_weights
    from penstock.loader.checkpoint import open_checkpoint
    from penstock.models.table import family_name
    from penstock.platforms.probe import choose_platform, probe_platform

    platform, placed = choose_platform(platform or probe_platform(), config.backend.platform)
    with closing(
        open_checkpoint(source, load_format=config.model.load_format, seed=config.model.seed or 0)
    ) as checkpoint:
        facts = checkpoint.facts()
        model = replace(facts, family=family_name(facts.architecture))
        dtype, _ = resolve_dtype(config, model, platform)
        built = build_model(
            checkpoint,
            dtype=dtype,
            platform=platform,
            attention_backend=config.backend.attention_backend,
            linear_backend=config.backend.linear_backend,
            kv_cache_dtype=resolve_kv_dtype(config),
            batch_invariant=config.backend.deterministic,
        )
        weights = plan_weights(built.family.WEIGHTS, facts, checkpoint, built.model.parameters(), built.choices.linear)

    def longest(wanted: ResolvedConfig) -> int:
        return longest_request(built, weights, _executor_spec(wanted, source, platform))

    kv_dtypes = _kv_dtypes(built)
    kv = KvFacts(block_tokens=_common_block_sizes(built), kv_dtypes=kv_dtypes, longest_request=longest)
    resolved, decisions = resolve(config, model, platform, kv)
    structured = decide_structured(config.backend.structured_backend)
    return _Survey(
        model=model,
        resolved=resolved,
        decisions=(placed, *decisions, structured, *_op_decisions(dtype, platform)),
        spec=_executor_spec(resolved, source, platform),
        kv_dtypes=kv_dtypes,
        attention_backends=tuple(dict.fromkeys(attention.backend.name for attention in built.attention)),
        linear_backends=built.choices.linear_names,
        structured=structured,
    )


def _op_decisions(dtype: str, platform: PlatformFacts) -> tuple[Decision, ...]:
    """What layers get when they ask for an op of the list, whether this model's do or not. The sampler asks itself."""
    from penstock.kernels.implementation import OpSpec
    from penstock.kernels.ops import OPS, choose_op

    decisions = []
    for op in OPS.values():
        if op.implementations and op.name != "sample":
            try:
                decisions.append(choose_op(op.name, OpSpec(dtype=dtype, platform=platform))[1])
            except NoBackendError as error:
                decisions.append(error.decision)
    return tuple(decisions)


def _common_block_sizes(built: BuiltModel) -> tuple[int, ...]:
    """Sizes that every group's backend takes, in the order of the first one's preference."""
    first, *others = [attention.backend.block_tokens for attention in built.attention]
    return tuple(size for size in first if all(size in sizes for sizes in others))


def _kv_dtypes(built: BuiltModel) -> tuple[str, ...]:
    from penstock.executor.load import kv_layouts

    return tuple(dict.fromkeys(str(layout.dtype).removeprefix("torch.") for layout in kv_layouts(built, None)))


def _executor_spec(resolved: ResolvedConfig, source: ModelSource, platform: PlatformFacts) -> ExecutorSpec:
    from penstock.executor.spec import ExecutorSpec

    return ExecutorSpec(
        source=source,
        platform=platform,
        dtype=resolved.dtype,
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_model_len=resolved.max_model_len,
        load_format=resolved.load_format,
        kv_cache_memory=resolved.kv_cache_memory,
        kv_cache_dtype=resolved.kv_cache_dtype,
        block_size=resolved.block_size,
        attention_backend=resolved.attention_backend,
        linear_backend=resolved.linear_backend,
        graphs=resolved.graphs,
        deterministic=resolved.deterministic,
        threads=resolved.threads,
        seed=start_seed(resolved.seed),
        dummy_seed=resolved.seed or 0,
        depth=resolved.async_depth,
    )


def _without_repeats(decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    return tuple(dict.fromkeys(decisions))


def _describe(survey: _Survey) -> str:
    model = survey.model
    return (
        f"{model.name}: {model.num_parameters / 1e6:.0f}M parameters, {model.format}, {survey.resolved.dtype}, "
        f"context {survey.resolved.max_model_len}"
    )
