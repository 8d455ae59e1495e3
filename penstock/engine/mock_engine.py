"""The engine without weights: mock executor, byte tokenizer, and facts to go with them. No torch anywhere."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from penstock.config.resolve import KvFacts, ResolvedConfig, resolve
from penstock.config.sections import EngineConfig, MockConfig
from penstock.core.ports import OutputChannel
from penstock.engine.constraining import decide_structured, make_constraints
from penstock.engine.engine import Engine, make_info
from penstock.engine.seed import start_seed
from penstock.errors import ConfigError
from penstock.mock.ceiling import CeilingEngine, Emit
from penstock.mock.executor import MockExecutor, any_token, mock_token
from penstock.mock.faults import NO_FAULTS, MockFaults
from penstock.mock.performance import FixedDelay, Performance
from penstock.mock.specs import MOCK_NAME, MockOrder, parse_faults, parse_performance
from penstock.mock.tokenizer import ByteTokenizer
from penstock.platforms.probe import choose_platform, probe_platform
from penstock.types.decision import Decision
from penstock.types.facts import EngineInfo, ModelFacts, PlatformFacts
from penstock.types.kv import KvCapacity, KvGroupSpec, Visibility

if TYPE_CHECKING:
    from penstock.frontend.text.load import TextAssets

_STEP_S = 0.002
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_MAX_BLOCKS = 1 << 16


def build_ordered_mock(config: EngineConfig, order: MockOrder, channel: OutputChannel) -> Engine:
    """A mock engine with the step times, faults and texts of an order. Raises ConfigError."""
    order.check()
    return build_mock_engine(
        config,
        channel,
        performance=parse_performance(order.config.mock_time),
        faults=parse_faults(order.config.mock_fault),
        order=order,
    )


def build_ceiling_engine(config: EngineConfig, order: MockOrder, emit: Emit) -> CeilingEngine:
    """The engine that answers in the core's place. Its limits are those that a mock engine would have.

    ``--mock-time`` counts only when it was given: without a word about it steps take no time. Raises ConfigError for a
    named backend of constrained output, which it has no use for.
    """
    order.check()
    if config.backend.structured_backend is not None:
        raise ConfigError("Leave out --structured-backend or --mock-ceiling: the ceiling mode constrains no answers.")
    info = mock_info(config, order)
    fixed = order.config.mock_time != MockConfig().mock_time
    return CeilingEngine(
        info,
        emit,
        vocab_size=info.model.vocab_size,
        seed=start_seed(config.model.seed),
        performance=parse_performance(order.config.mock_time) if fixed else None,
    )


def mock_info(config: EngineConfig, order: MockOrder) -> EngineInfo:
    """The facts of a mock engine that constrains no answers, without building one."""
    platform, _, resolved, decisions, capacity = _settle(config, order)
    return make_info(mock_facts(order.vocab_size), platform, resolved, capacity, decisions)


def build_mock_engine(
    config: EngineConfig,
    channel: OutputChannel,
    *,
    performance: Performance | None = None,
    faults: MockFaults = NO_FAULTS,
    order: MockOrder | None = None,
) -> Engine:
    """The real core over the mock executor. ``performance`` gives a step's seconds, 2 ms by default.

    ``kv_cache_memory`` counts one byte per token. Raises ConfigError as a real engine would.
    """
    order = order or MockOrder()
    platform, model, resolved, decisions, capacity = _settle(config, order)
    executor = MockExecutor(
        capacity.groups,
        capacity.num_blocks,
        depth=resolved.async_depth,
        seed=start_seed(resolved.seed),
        performance=performance or FixedDelay(_STEP_S),
        faults=faults,
        token_of=any_token(order.vocab_size) if order.vocab_size else mock_token,
        scripts=order.scripts,
        end_id=order.end_id,
        num_seats=resolved.max_num_seqs,
        verify=resolved.check_integrity,
    )
    capacity = executor.start()
    structured = decide_structured(config.backend.structured_backend)
    info = make_info(model, platform, resolved, capacity, (*decisions, structured))
    spoken = config if order.vocab_size else None  # without an order, text is bytes, whatever the configuration says

    def assets() -> TextAssets:  # whoever asks for constrained output first waits for these imports
        from penstock.engine.mock_text import mock_assets

        return mock_assets(spoken)

    constraints = make_constraints(structured, assets, model.vocab_size, platform)
    return Engine(executor, capacity, resolved, channel, info, constraints)


def _settle(
    config: EngineConfig, order: MockOrder
) -> tuple[PlatformFacts, ModelFacts, ResolvedConfig, tuple[Decision, ...], KvCapacity]:
    platform, _ = choose_platform(probe_platform(), config.backend.platform)
    model = mock_facts(order.vocab_size)
    memory = config.cache.kv_cache_memory
    kv = KvFacts(
        block_tokens=_BLOCK_SIZES,
        kv_dtypes=("uint8",),
        longest_request=lambda wanted: min(wanted.max_model_len, memory or wanted.max_model_len),
    )
    resolved, decisions = resolve(config, model, platform, kv, is_mock=True)
    size = resolved.block_size
    wanted = memory or resolved.max_num_seqs * resolved.max_model_len
    one_request = -(-resolved.max_model_len // size)
    capacity = KvCapacity(
        groups=(KvGroupSpec(name="full", visibility=Visibility.ALL, entries_per_block=size, bytes_per_block=size),),
        num_blocks=(max(one_request, min(wanted // size, _MAX_BLOCKS)),),
    )
    return platform, model, resolved, decisions, capacity


def mock_facts(vocab_size: int = 0) -> ModelFacts:
    """``vocab_size`` of another tokenizer than bytes, or 0."""
    return ModelFacts(
        name=MOCK_NAME,
        source="",
        format="mock",
        architecture="",
        family="",
        identity=hashlib.sha256(b"penstock mock").hexdigest(),
        num_parameters=0,
        weight_bytes=0,
        vocab_size=vocab_size or ByteTokenizer().vocab_size,
        max_position=1 << 17,
    )
