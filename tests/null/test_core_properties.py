"""Random lives of an engine core: whatever happens in whatever order, nothing leaks and everybody is answered.

The mock device verifies every plan and the content of every block that a row reads; the core's own invariants are
checked after every turn.
"""

from __future__ import annotations

from random import Random

import pytest
from core_fixtures import MIXED, Rig, group_specs, peak_alone
from drawn_examples import num_examples
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.core.engine import CoreLimits
from penstock.mock.executor import mix
from penstock.mock.faults import MockFaults
from penstock.mock.rig import make_request, run_until_idle
from penstock.mock.tier import MockTier
from penstock.types.control import CheckIntegrity, ResetPrefixCache
from penstock.types.output import FailureKind, FinishReason

# Few distinct prompts with long common beginnings, so that prefixes are shared, evicted and hit again.
PROMPTS = tuple(tuple(40 + (i * (1 + f // 2)) % 7 + (f if i > 150 else 0) for i in range(700)) for f in range(4))


@st.composite
def core_limits(draw, seqs=(1, 5), budgets=(1, 7, 64, 300), lengths=(60, 700)):
    return CoreLimits(
        max_num_seqs=draw(st.integers(*seqs)),
        max_num_batched_tokens=draw(st.sampled_from(budgets)),
        max_model_len=draw(st.sampled_from(lengths)),
        policy=draw(st.sampled_from(("fcfs", "priority"))),
        prefix_caching=draw(st.booleans()),
        check_integrity=True,
        num_draft_tokens=draw(st.integers(0, 3)),
        max_tier_asks=20,
    )


class CoreLife(RuleBasedStateMachine):
    @initialize(
        specs=group_specs(),
        limits=core_limits(),
        depth=st.integers(1, 3),
        blocks=st.tuples(st.integers(2, 30), st.integers(2, 30)),
        tier=st.sampled_from((None, 3, 1000)),
        late=st.sampled_from((0, 3)),
        transfer_steps=st.integers(0, 3),
        broken_transfers=st.booleans(),
        vocab=st.sampled_from((0, 30)),
    )
    def begin(self, specs, limits, depth, blocks, tier, late, transfer_steps, broken_transfers, vocab):
        if tier is not None and limits.prefix_caching:
            counter = iter(range(10**9))
            tier_object = MockTier(capacity=tier, late=lambda: late > 0 and mix(2, next(counter), 0) % 4 < late - 1)
        else:
            tier_object = None
        faults = MockFaults(
            transfer_steps=transfer_steps, transfer_ok=lambda job: not broken_transfers or mix(3, job, 0) % 3 > 0
        )
        self.rig = Rig(
            specs,
            blocks,
            limits,
            depth=depth,
            tier=tier_object,
            drafts=limits.num_draft_tokens > 0,
            faults=faults,
            vocab=vocab,
        )
        note(f"{specs=} {blocks=} {limits=} {depth=}")

    @rule(
        family=st.integers(0, 3),
        count=st.integers(1, 4),
        length=st.one_of(st.integers(0, 60), st.sampled_from((16, 32, 33, 64, 65)), st.integers(100, 600)),
        max_tokens=st.one_of(st.none(), st.integers(0, 3), st.integers(4, 120)),
        min_tokens=st.sampled_from((0, 0, 3)),
        priority=st.integers(0, 2),
        salt=st.sampled_from(("", "", "other")),
        deadline=st.sampled_from((None,) * 6 + (2.0, 30.0)),
        prompt_logprobs=st.sampled_from((None, None, None, 0)),
        logprobs=st.sampled_from((None, None, 2)),
    )
    def add(self, family, count, length, max_tokens, min_tokens, priority, salt, deadline, prompt_logprobs, logprobs):
        if max_tokens is None and self.rig.limits.max_model_len > 100:
            max_tokens = 25
        for _ in range(count):
            request = make_request(
                len(self.rig.requests),
                PROMPTS[family][:length],
                max_tokens=max_tokens,
                min_tokens=min_tokens if max_tokens is None or max_tokens >= min_tokens else 0,
                stop_token_ids=(3, 4),
                priority=priority,
                cache_salt=salt,
                deadline=None if deadline is None else self.rig.clock.now() + deadline,
                prompt_logprobs=prompt_logprobs,
                logprobs=logprobs,
            )
            self.rig.add(request)

    @rule(turns=st.integers(1, 12), block=st.booleans())
    def turn(self, turns, block):
        for _ in range(turns):
            self.rig.core.step(block)

    @rule(seconds=st.sampled_from((0.5, 1.0, 5.0)))
    def time_passes(self, seconds):
        self.rig.clock.advance(seconds)

    @precondition(lambda self: self.rig.requests)
    @rule(data=st.data())
    def abort(self, data):
        self.rig.core.abort(data.draw(st.lists(st.sampled_from(sorted(self.rig.requests)[-8:]), max_size=2)))

    @rule(command=st.sampled_from((ResetPrefixCache(), CheckIntegrity())))
    def control(self, command):
        assert self.rig.core.control(command).ok

    @invariant()
    def holds(self):
        if hasattr(self, "rig"):
            self.rig.core.check_integrity()

    def teardown(self):
        if hasattr(self, "rig"):
            run_until_idle(self.rig.core, max_turns=8_000)
            self.rig.check_idle()


CoreLife.TestCase.settings = settings(
    max_examples=num_examples(20),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)
TestCoreLife = CoreLife.TestCase


@settings(max_examples=num_examples(25), deadline=None)
@given(
    specs=group_specs(),
    limits=core_limits(seqs=(2, 6), budgets=(7, 64, 300), lengths=(700,)),
    seed=st.integers(0, 2**32),
    depth=st.integers(1, 3),
    room=st.sampled_from((0.7, 1.0, 1.2, 1.5)),
    tier=st.sampled_from((None, 4, 1000)),
    transfer_steps=st.integers(0, 3),
)
def test_storms_in_a_tight_cache(specs, limits, seed, depth, room, tier, transfer_steps):
    """Longer lives than the state machine's, in caches that hold about one or two requests: much is preempted."""
    random = Random(seed)
    blocks = tuple(max(1, int(room * need)) for need in peak_alone(specs, 2, 160))
    rig = Rig(
        specs,
        blocks,
        limits,
        depth=depth,
        tier=MockTier(capacity=tier) if tier and limits.prefix_caching else None,
        drafts=limits.num_draft_tokens > 0,
        faults=MockFaults(transfer_steps=transfer_steps, transfer_ok=lambda job: mix(3, job, 0) % 4 > 0),
    )
    while len(rig.requests) < 10:
        for _ in range(random.randint(1, 3)):
            request = make_request(
                len(rig.requests),
                PROMPTS[random.randrange(3)][: random.choice((1, 5, 20, 33, 64))],
                max_tokens=random.randint(1, 95),
                cache_salt=random.choice(("", "salt")),
                priority=random.randrange(3),
                prompt_logprobs=random.choice((None, None, 0)),
            )
            rig.add(request)
        for _ in range(random.randrange(40)):
            rig.core.step(random.random() < 0.9)
        if random.random() < 0.2:
            rig.core.abort([random.randrange(len(rig.requests))])
    run_until_idle(rig.core, max_turns=20_000)
    rig.check_idle()
    event(f"preempted: {min(3, rig.core.stats().num_preemptions)}")


@settings(max_examples=num_examples(15), deadline=None)
@given(
    depth=st.integers(1, 3),
    budget=st.sampled_from((1, 5, 32, 500)),
    seqs=st.integers(1, 6),
    caching=st.booleans(),
    drafts=st.integers(0, 3),
    blocks=st.integers(0, 8),
    lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 300)), min_size=1, max_size=6),
    max_tokens=st.integers(1, 99),
)
def test_answers_do_not_depend_on_the_schedule(depth, budget, seqs, caching, drafts, blocks, lengths, max_tokens):
    """Tiny caches, preemption, caching, drafts, depth and budget change when, never what."""
    limits = CoreLimits(
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_model_len=400,
        prefix_caching=caching,
        check_integrity=True,
        num_draft_tokens=drafts,
    )
    # The least that holds one request of 400 tokens: 5 window blocks and 1 spare, 2 compressed; 2 states and 1 spare.
    rig = Rig(MIXED, (8 + blocks, 3 + blocks), limits, depth=depth, drafts=drafts > 0)
    for request_id, length in enumerate(lengths):
        rig.add(make_request(request_id, PROMPTS[request_id % 2][:length], max_tokens=max_tokens))
    run_until_idle(rig.core, max_turns=8_000)
    rig.check_idle()
    assert all(rig.channel.terminal(i).reason is FinishReason.LENGTH for i in rig.requests)


@settings(max_examples=num_examples(25), deadline=None)
@given(
    die_at=st.integers(0, 12),
    depth=st.integers(1, 3),
    transfer_steps=st.integers(0, 4),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
def test_executor_death_answers_everybody_once(die_at, depth, transfer_steps, lengths):
    limits = CoreLimits(max_num_seqs=3, max_num_batched_tokens=64, max_model_len=400, check_integrity=True)
    tier = MockTier()
    faults = MockFaults(die_at_step=die_at, transfer_steps=transfer_steps)
    rig = Rig(MIXED, (20, 10), limits, depth=depth, tier=tier, faults=faults)
    for request_id, length in enumerate(lengths):
        rig.add(make_request(request_id, PROMPTS[0][:length], max_tokens=20))
    run_until_idle(rig.core, max_turns=1000)
    rig.check_idle()
    for request_id in rig.requests:
        terminal = rig.channel.terminal(request_id)
        assert terminal.reason is FinishReason.LENGTH or terminal.failure is FailureKind.ENGINE_DEAD
    if rig.core.health():
        rig.add(make_request(99, (1, 2), max_tokens=3))
        assert rig.channel.terminal(99).failure is FailureKind.ENGINE_DEAD


@pytest.mark.parametrize("blocks", range(1, 12))
def test_a_request_that_outgrows_the_cache_ends_with_a_typed_failure(blocks):
    limits = CoreLimits(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=2000, check_integrity=True)
    rig = Rig(MIXED, (blocks, 2), limits)
    rig.add(make_request(0, PROMPTS[0][:20], max_tokens=None))
    run_until_idle(rig.core)
    rig.check_idle()
    terminal = rig.channel.terminal(0)
    assert (terminal.failure is FailureKind.TOO_LONG) or terminal.reason is FinishReason.LENGTH
    assert "--kv-cache-memory" in terminal.message or terminal.num_output_tokens == 1980
