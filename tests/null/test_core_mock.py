"""The mock stack: clocks, tokenizer, performance models, and a ledger that refuses wrong plans."""

from __future__ import annotations

import dataclasses

import pytest
from core_fixtures import MIXED
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import IntegrityError
from penstock.mock.clock import VirtualClock
from penstock.mock.executor import MockExecutor, mock_token
from penstock.mock.performance import FixedDelay, LinearDelay, MeasuredDelay, StepShape
from penstock.mock.rig import full_group
from penstock.mock.specs import parse_faults
from penstock.mock.tier import MockTier
from penstock.mock.tokenizer import SPECIAL_TOKENS, ByteTokenizer
from penstock.types.plan import Admission, StepPlan
from penstock.types.request import SamplingParams


@given(st.text())
def test_every_text_round_trips_through_bytes(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_specials_are_one_id_each_and_can_be_skipped():
    tokenizer = ByteTokenizer(add_bos=True)
    ids = tokenizer.encode("a<|im_end|>b</s>")
    assert ids == [256, 97, 260, 98, 257]
    assert tokenizer.encode("a", add_special_tokens=False) == [97]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.special_token_ids == set(range(256, 256 + len(SPECIAL_TOKENS)))
    assert tokenizer.token_bytes(9999) == b""
    assert tokenizer.decode([97, 9999, 98], skip_special_tokens=False) == "ab"


def test_mock_tokens_are_a_recorded_function():
    """Recorded: predicted texts in tests of other packages rest on it."""
    assert bytes(mock_token(0, 1, position) for position in range(8)) == b" w.k.f.m"
    assert mock_token(0, 1, 5) == mock_token(0, 1, 5)
    texts = {bytes(mock_token(seed, request, p) for p in range(20)) for seed in range(5) for request in range(5)}
    assert len(texts) == 25


def test_virtual_time_passes_only_when_waited_for():
    clock = VirtualClock(5.0)
    clock.sleep_until(3.0)
    assert clock.now() == 5.0
    clock.sleep_until(7.0)
    clock.advance(1.0)
    assert clock.now() == 8.0
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1.0)


def test_performance_models():
    shape = StepShape(num_rows=2, num_tokens=30, num_sampled=2, context_tokens=100)
    assert FixedDelay(0.5)(shape) == 0.5
    assert LinearDelay(1.0, 0.1, 0.5, 0.01)(shape) == pytest.approx(1 + 3 + 1 + 1)
    assert LinearDelay(1.0)(dataclasses.replace(shape, num_rows=0)) == 0
    table = MeasuredDelay([(40, 4.0), (20, 2.0)])
    assert [table(dataclasses.replace(shape, num_tokens=n)) for n in (0, 10, 30, 80)] == [0.0, 2.0, 3.0, 8.0]


def test_steps_take_their_time_one_after_the_other():
    clock = VirtualClock()
    executor = MockExecutor((full_group(),), (4,), performance=FixedDelay(2.0), clock=clock)
    first, second = (executor.step(StepPlan(step_id=i)) for i in range(2))
    assert not first.done()
    second.result()
    assert clock.now() == 4.0
    assert first.done()


def test_a_stalled_step_holds_up_itself_and_those_behind_it():
    clock = VirtualClock()
    executor = MockExecutor(
        (full_group(),), (4,), depth=3, performance=FixedDelay(2.0), faults=parse_faults(["stall=1:0.25"]), clock=clock
    )
    handles = [executor.step(StepPlan(step_id=i)) for i in range(3)]
    ends = []
    for handle in handles:
        handle.result()
        ends.append(clock.now())
    assert ends == [2.0, 4.25, 6.25]
    assert [handle.timings.forward_s for handle in handles] == [2.0, 2.25, 2.0]


def admission(**changes) -> Admission:
    fields = {
        "seat": 0,
        "request_id": 1,
        "token_ids": tuple(range(20)),
        "num_prompt_tokens": 20,
        "num_computed": 0,
        "sampling": SamplingParams(),
        "block_ids": ((0, 1),),
        "first_block": (0,),
    }
    return Admission(**(fields | changes))


def row(step_id=0, seat=0, num_tokens=20, samples=True, **changes) -> StepPlan:
    fields = {"row_seats": (seat,), "row_num_tokens": (num_tokens,), "row_samples": (samples,)}
    return StepPlan(step_id=step_id, **(fields | changes))


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (row(step_id=1), "step 1 came when 0"),
        (row(), "seat 0, which is empty"),
        (row(dropped=(0,)), "dropped but empty"),
        (row(admitted=(admission(), admission(request_id=2))), "filled twice"),
        (row(admitted=(admission(seat=9),)), "seat 9 does not exist"),
        (row(admitted=(admission(num_computed=20),)), "nothing to compute"),
        (row(admitted=(admission(num_computed=16),), num_tokens=4), "does not hold it"),
        (row(admitted=(admission(block_ids=((0,),)),)), "has blocks for 16"),
        (row(admitted=(admission(block_ids=((0, 99),)),)), "block 99 is not in pool 0"),
        (row(admitted=(admission(),), num_tokens=19), "computes 19 of 20 known tokens"),
        (row(admitted=(admission(), admission(seat=1, request_id=2))), "share block"),
        (row(admitted=(admission(),), row_drafts=((1,), (2,))), "row_drafts"),
    ],
)
def test_the_ledger_refuses_wrong_plans(plan, reason):
    executor = MockExecutor((full_group(),), (4,), verify=True, num_seats=2)
    with pytest.raises(IntegrityError, match=reason):
        executor.step(plan)


def test_the_ledger_takes_a_right_plan():
    executor = MockExecutor((full_group(),), (4,), verify=True, num_seats=2)
    assert len(executor.step(row(admitted=(admission(),))).result().row_tokens[0]) == 1


def test_too_many_plans_in_flight_are_refused():
    executor = MockExecutor(MIXED, (4, 4), depth=1)
    executor.step(StepPlan(step_id=0))
    with pytest.raises(IntegrityError, match="2 plans are in flight"):
        executor.step(StepPlan(step_id=1))


def test_a_tier_counts_what_is_prepared_and_evicts_what_is_not():
    tier = MockTier(capacity=2)
    assert tier.prepare_store(0, (b"a", b"b", b"c")) == (b"a", b"b")
    tier.complete_store(0, (b"a", b"b"), True)
    assert tier.prepare_store(0, (b"a",)) == ()
    assert tier.prepare_load(0, (b"a",))
    assert not tier.prepare_load(0, (b"a", b"zzz"))
    assert tier.prepare_store(0, (b"c",)) == (b"c",)  # in the place of b: a is pinned
    assert tier.num_prepared == 2
    tier.complete_load(0, (b"a",))
    tier.complete_store(0, (b"c",), False)
    assert tier.num_prepared == 0
    with pytest.raises(IntegrityError, match="not prepared"):
        tier.complete_load(0, (b"a",))
