"""Strategies and a bench for driving the core at random. Everything is drawn; nothing depends on time."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from penstock.core.engine import CoreLimits, EngineCore
from penstock.mock.clock import VirtualClock
from penstock.mock.executor import MockExecutor, mix, mock_token
from penstock.mock.faults import MockFaults
from penstock.mock.performance import FixedDelay
from penstock.mock.rig import RecordingChannel, make_core
from penstock.mock.tier import MockTier
from penstock.types.kv import KvGroupSpec, Visibility
from penstock.types.output import FailureKind, FinishReason
from penstock.types.request import GenerateRequest

SEED = 5


def group(
    name: str, visibility: Visibility, entries: int, per_entry: int = 1, *, window: int | None = None, pool: int = 0
) -> KvGroupSpec:
    return KvGroupSpec(
        name=name,
        visibility=visibility,
        entries_per_block=entries,
        tokens_per_entry=per_entry,
        window=window,
        pool=pool,
        bytes_per_block=64,
    )


# The mixture of a compressed-attention model: a small window, compressed entries of 128 tokens, a running state.
MIXED = (
    group("window", Visibility.WINDOW, 16, window=64),
    group("compressed", Visibility.ALL, 2, 128),
    group("state", Visibility.STATE, 1, 64, pool=1),
)


@st.composite
def group_specs(draw: st.DrawFn) -> tuple[KvGroupSpec, ...]:
    if draw(st.booleans()):
        return MIXED
    specs = []
    for index in range(draw(st.integers(1, 3))):
        visibility = draw(st.sampled_from(Visibility))
        window = draw(st.sampled_from((1, 2, 5, 16, 64))) if visibility is Visibility.WINDOW else None
        entries, per_entry = draw(st.sampled_from(((4, 1), (16, 1), (1, 8), (2, 4), (3, 5))))
        specs.append(group(f"g{index}", visibility, entries, per_entry, window=window, pool=draw(st.integers(0, 1))))
    return tuple(specs)


class HashDrafter:
    """Proposes anything: the mock accepts as it likes."""

    def propose(self, request_id, token_ids, num_unknown, max_drafts):
        return tuple(range(mix(request_id, len(token_ids), num_unknown) % (max_drafts + 1)))


def peak_alone(specs, num_pools, num_tokens) -> list[int]:
    """Blocks per pool that surely hold a request of this many tokens, alone and computed token by token."""
    needs = [0] * num_pools
    for spec in specs:
        total = -(-num_tokens // spec.tokens_per_block)
        if spec.visibility is not Visibility.ALL:
            total = min(total, -(-(spec.window or 2) // spec.tokens_per_block) + 1)
        needs[spec.pool] += total
    return needs


@dataclass
class Rig:
    """A core on a verifying mock, and what every request must get."""

    specs: tuple[KvGroupSpec, ...]
    num_blocks: tuple[int, ...]
    limits: CoreLimits
    depth: int = 2
    tier: MockTier | None = None
    drafts: bool = False
    faults: MockFaults = field(default_factory=MockFaults)
    vocab: int = 0  # 0: the mock's own tokens, else tokens below this, so that stop tokens occur

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.channel = RecordingChannel()
        self.requests: dict[int, GenerateRequest] = {}
        self.num_accepts = 0
        self.executor = MockExecutor(
            self.specs,
            self.num_blocks,
            depth=self.depth,
            seed=SEED,
            performance=FixedDelay(1.0),
            faults=self.faults,
            clock=self.clock,
            token_of=self.token_of,
            accept=self._accept,
            num_seats=self.limits.max_num_seqs,
            verify=True,
        )
        self.core: EngineCore = make_core(
            self.executor,
            self.limits,
            self.channel,
            clock=self.clock,
            tiers=(self.tier,) if self.tier else (),
            drafter=HashDrafter() if self.drafts else None,
        )

    def token_of(self, seed, request_id, position):
        return mix(seed, request_id, position) % self.vocab if self.vocab else mock_token(seed, request_id, position)

    def _accept(self, request_id, position, num_drafts):
        self.num_accepts += 1
        return mix(1, self.num_accepts, position) % (num_drafts + 2) if self.drafts else 1

    def add(self, request: GenerateRequest) -> None:
        self.requests[request.request_id] = request
        self.core.add(request)

    def whole_answer(self, request: GenerateRequest) -> tuple[int, ...]:
        """What the request gets when nothing ends it early."""
        sampling, num_prompt = request.sampling, len(request.prompt_token_ids)
        room = self.limits.max_model_len - num_prompt
        room = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        tokens: list[int] = []
        while len(tokens) < room:
            tokens.append(self.token_of(SEED, request.request_id, num_prompt + len(tokens)))
            if tokens[-1] in sampling.stop_token_ids and len(tokens) > sampling.min_tokens:
                break
        return tuple(tokens)

    def check_ended(self, request: GenerateRequest) -> None:
        terminal = self.channel.terminal(request.request_id)
        tokens, whole = self.channel.tokens(request.request_id), self.whole_answer(request)
        assert terminal.num_output_tokens == len(tokens)
        assert tokens == whole[: len(tokens)]
        if terminal.reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert tokens == whole
            stopped = bool(whole) and whole[-1] in request.sampling.stop_token_ids
            stopped = stopped and len(whole) > request.sampling.min_tokens
            assert (terminal.reason is FinishReason.STOP) == stopped
            assert terminal.stop_token_id == (whole[-1] if stopped else None)
        elif terminal.failure is FailureKind.TOO_LONG:
            length = len(request.prompt_token_ids) + len(tokens)
            too_long = len(request.prompt_token_ids) >= self.limits.max_model_len
            needs = peak_alone(self.specs, len(self.num_blocks), length)
            assert too_long or any(need > have for need, have in zip(needs, self.num_blocks, strict=True))
        if request.sampling.prompt_logprobs is not None and terminal.reason is not FinishReason.ABORT:
            updates = self.channel.updates.get(request.request_id, ())
            described = [entry.token_ids[0] for update in updates for entry in update.prompt_logprobs]
            expected = list(request.prompt_token_ids[1:])
            assert described == expected[: len(described)]
            if terminal.failure is None:
                assert described == expected

    def check_idle(self) -> None:
        self.core.check_integrity()
        assert not self.core.has_work
        assert self.core.stats().kv_usage == 0
        assert self.channel.late_updates == 0
        assert self.channel.terminals.keys() == self.requests.keys()
        if self.tier:
            assert self.tier.num_prepared == 0
        for request in self.requests.values():
            self.check_ended(request)
