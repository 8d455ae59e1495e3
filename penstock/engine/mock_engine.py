"""The engine without weights: mock executor, byte tokenizer, and facts to go with them. No torch anywhere."""

from __future__ import annotations

import hashlib

from penstock.config.resolve import KvFacts, resolve
from penstock.config.sections import EngineConfig
from penstock.core.ports import OutputChannel
from penstock.engine.constraining import decide_structured, make_constraints
from penstock.engine.engine import Engine, make_info
from penstock.engine.seed import start_seed
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.text.load import TextAssets
from penstock.mock.executor import MockExecutor
from penstock.mock.faults import NO_FAULTS, MockFaults
from penstock.mock.performance import FixedDelay, Performance
from penstock.mock.tokenizer import ByteTokenizer
from penstock.platforms.probe import choose_platform, probe_platform
from penstock.types.facts import ModelFacts
from penstock.types.kv import KvGroupSpec, Visibility

MOCK_NAME = "mock"
_STEP_S = 0.002
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_MAX_BLOCKS = 1 << 16
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_mock_engine(
    config: EngineConfig,
    channel: OutputChannel,
    *,
    performance: Performance | None = None,
    faults: MockFaults = NO_FAULTS,
) -> Engine:
    """The real core over the mock executor. ``performance`` gives a step's seconds, 2 ms by default.

    ``kv_cache_memory`` counts one byte per token. Raises ConfigError as a real engine would.
    """
    platform, _ = choose_platform(probe_platform(), config.backend.platform)
    model = mock_facts()
    memory = config.cache.kv_cache_memory
    kv = KvFacts(
        block_tokens=_BLOCK_SIZES,
        kv_dtypes=("uint8",),
        longest_request=lambda wanted: min(wanted.max_model_len, memory or wanted.max_model_len),
    )
    resolved, decisions = resolve(config, model, platform, kv)
    size = resolved.block_size
    wanted = memory or resolved.max_num_seqs * resolved.max_model_len
    one_request = -(-resolved.max_model_len // size)
    executor = MockExecutor(
        (KvGroupSpec(name="full", visibility=Visibility.ALL, entries_per_block=size, bytes_per_block=size),),
        (max(one_request, min(wanted // size, _MAX_BLOCKS)),),
        depth=resolved.async_depth,
        seed=start_seed(resolved.seed),
        performance=performance or FixedDelay(_STEP_S),
        faults=faults,
        num_seats=resolved.max_num_seqs,
        verify=resolved.check_integrity,
    )
    capacity = executor.start()
    structured = decide_structured(config.backend.structured_backend)
    info = make_info(model, platform, resolved, capacity, (*decisions, structured))
    constraints = make_constraints(structured, mock_assets, model.vocab_size, platform)
    return Engine(executor, capacity, resolved, channel, info, constraints)


def mock_facts() -> ModelFacts:
    return ModelFacts(
        name=MOCK_NAME,
        source="",
        format="mock",
        architecture="",
        family="",
        identity=hashlib.sha256(b"penstock mock").hexdigest(),
        num_parameters=0,
        weight_bytes=0,
        vocab_size=ByteTokenizer().vocab_size,
        max_position=1 << 17,
    )


def mock_assets() -> TextAssets:
    """Text of the mock model: bytes, and a chat template of the usual shape."""
    tokenizer = ByteTokenizer()
    return TextAssets(
        tokenizer=tokenizer,
        chat_template=ChatTemplate(_CHAT_TEMPLATE, {}),
        stop_token_ids=frozenset({tokenizer.eos_token_id}),
    )
