"""The engine core, one behaviour at a time, on a mock device whose time stands still."""

from __future__ import annotations

import threading
import time

import pytest
from core_fixtures import Rig, group

from penstock.core.engine import CoreLimits
from penstock.core.loop import CoreLoop
from penstock.core.requests import LEGAL_TRANSITIONS, RequestStatus
from penstock.errors import EngineDeadError, IntegrityError
from penstock.mock.clock import RealClock
from penstock.mock.executor import MockExecutor
from penstock.mock.faults import MockFaults
from penstock.mock.rig import RecordingChannel, full_group, make_core, make_request, run_until_idle
from penstock.mock.tier import MockTier
from penstock.types.control import CheckIntegrity, ResetPrefixCache
from penstock.types.kv import Visibility
from penstock.types.output import FailureKind, FinishReason

FULL = (group("full", Visibility.ALL, 4),)
PROMPT = tuple(range(30, 50))


def make_rig(num_blocks=100, *, groups=FULL, depth=2, tier=None, faults=None, vocab=0, drafts=False, **limits) -> Rig:
    fields = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 200, "check_integrity": True}
    fields |= {"num_draft_tokens": 3 if drafts else 0} | limits
    blocks = (num_blocks,) * (1 + max(spec.pool for spec in groups))
    return Rig(
        groups,
        blocks,
        CoreLimits(**fields),
        depth=depth,
        tier=tier,
        faults=faults or MockFaults(),
        vocab=vocab,
        drafts=drafts,
    )


def finish(rig: Rig) -> None:
    run_until_idle(rig.core, max_turns=5000)
    rig.check_idle()


# -- ends --------------------------------------------------------------------------------------------------------


def test_a_request_ends_at_max_tokens_with_its_counts_and_times():
    rig = make_rig()
    rig.add(make_request(1, PROMPT, max_tokens=5, arrival_time=0.0))
    finish(rig)
    terminal = rig.channel.terminal(1)
    assert (terminal.reason, terminal.failure) == (FinishReason.LENGTH, None)
    assert (terminal.num_prompt_tokens, terminal.num_output_tokens) == (20, 5)
    assert 0 <= terminal.arrived <= terminal.admitted < terminal.first_token < terminal.ended


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("min_tokens", [0, 9])
def test_a_stop_token_ends_a_request_after_min_tokens(min_tokens, drafts):
    rig = make_rig(vocab=4, drafts=drafts)
    request = make_request(1, PROMPT, max_tokens=100, min_tokens=min_tokens, stop_token_ids=(2,))
    rig.add(request)
    finish(rig)
    tokens = rig.channel.tokens(1)
    assert rig.channel.terminal(1).reason is FinishReason.STOP
    assert rig.channel.terminal(1).stop_token_id == tokens[-1] == 2
    assert len(tokens) > min_tokens
    assert 2 not in tokens[min_tokens:-1]


def test_the_context_length_ends_a_request():
    rig = make_rig(max_model_len=32)
    rig.add(make_request(1, PROMPT, max_tokens=None))
    finish(rig)
    assert rig.channel.terminal(1).num_output_tokens == 12


@pytest.mark.parametrize("prompt_logprobs", [None, 0])
def test_a_request_for_no_tokens_gets_none(prompt_logprobs):
    rig = make_rig()
    rig.add(make_request(1, PROMPT, max_tokens=0, prompt_logprobs=prompt_logprobs))
    finish(rig)
    assert rig.channel.terminal(1).reason is FinishReason.LENGTH
    assert rig.core.stats().num_steps == (0 if prompt_logprobs is None else 1)


def test_unfit_requests_fail_at_once():
    rig = make_rig(10, max_model_len=100)
    rig.add(make_request(1, range(100), max_tokens=5))
    rig.add(make_request(2, range(60), max_tokens=5))
    rig.add(make_request(3, ()))
    assert not rig.core.has_work
    assert rig.channel.terminal(1).failure is FailureKind.TOO_LONG
    assert "100 tokens" in rig.channel.terminal(1).message
    assert rig.channel.terminal(2).failure is FailureKind.TOO_LONG
    assert "--kv-cache-memory" in rig.channel.terminal(2).message
    assert rig.channel.terminal(3).failure is FailureKind.INTERNAL


def test_an_id_in_use_is_refused():
    rig = make_rig()
    rig.add(make_request(1, PROMPT))
    with pytest.raises(ValueError, match="in use"):
        rig.core.add(make_request(1, PROMPT))
    finish(rig)


def test_abort_frees_blocks_at_once_and_discards_rows_in_flight():
    rig = make_rig()
    rig.add(make_request(1, PROMPT, max_tokens=100))
    for _ in range(4):
        rig.core.step(block=True)
    rig.core.abort([1, 1, 77])
    assert rig.core.stats().kv_usage == 0
    assert rig.channel.terminal(1).reason is FinishReason.ABORT
    finish(rig)


def test_a_deadline_ends_a_request_waiting_or_running():
    rig = make_rig(max_num_seqs=1)
    rig.add(make_request(1, PROMPT, max_tokens=100, deadline=10.0))
    rig.add(make_request(2, PROMPT, max_tokens=100, deadline=5.0))
    finish(rig)
    assert rig.channel.terminal(1).failure is rig.channel.terminal(2).failure is FailureKind.DEADLINE
    assert 0 < rig.channel.terminal(1).num_output_tokens < 11
    assert rig.channel.terminal(2).num_output_tokens == 0


def test_a_failed_row_fails_its_request_only():
    rig = make_rig(faults=MockFaults(failed_requests={1: "The logits are not finite."}))
    rig.add(make_request(1, PROMPT))
    rig.add(make_request(2, PROMPT))
    finish(rig)
    assert rig.channel.terminal(1).message == "The logits are not finite."
    assert rig.channel.terminal(2).reason is FinishReason.LENGTH


# -- scheduling --------------------------------------------------------------------------------------------------


def test_decodes_go_before_prompts_and_prompts_are_cut_to_the_budget():
    rig = make_rig(max_num_batched_tokens=8, depth=1)
    rig.add(make_request(1, PROMPT[:8], max_tokens=50))
    rig.core.step(block=True)
    rig.add(make_request(2, range(100, 130), max_tokens=50))
    before = rig.core.stats().generation_tokens
    for _ in range(2):
        rig.core.step(block=True)
    stats = rig.core.stats()
    assert stats.generation_tokens == before + 2
    assert stats.prompt_tokens == 8 + 2 * 7
    finish(rig)


@pytest.mark.parametrize(("policy", "first"), [("fcfs", 1), ("priority", 2)])
def test_the_policy_says_who_is_seated_first(policy, first):
    rig = make_rig(max_num_seqs=1, policy=policy)
    rig.add(make_request(1, PROMPT, priority=5))
    rig.add(make_request(2, PROMPT, priority=-5))
    finish(rig)
    ends = {request_id: rig.channel.terminal(request_id).ended for request_id in (1, 2)}
    assert min(ends, key=ends.__getitem__) == first


def test_nothing_is_planned_beyond_a_certain_end():
    rig = make_rig(depth=3)
    rig.add(make_request(1, PROMPT, max_tokens=4))
    finish(rig)
    assert rig.core.stats().num_steps == 4


def test_the_youngest_yields_and_comes_back_with_the_same_answer():
    rig = make_rig(16, prefix_caching=False)
    rig.add(make_request(1, PROMPT, max_tokens=30))
    rig.add(make_request(2, PROMPT, max_tokens=30))
    finish(rig)
    assert rig.channel.terminal(1).num_preemptions == 0
    assert rig.channel.terminal(2).num_preemptions >= 1
    assert rig.core.stats().num_preemptions == rig.channel.terminal(2).num_preemptions


def test_admission_waits_for_room_rather_than_preempt():
    rig = make_rig(13)
    rig.add(make_request(1, PROMPT, max_tokens=10))
    rig.add(make_request(2, range(70, 98), max_tokens=10))
    rig.core.step(block=True)
    assert (rig.core.stats().num_running, rig.core.stats().num_waiting) == (1, 1)
    finish(rig)
    assert rig.core.stats().num_preemptions == 0


def test_prompt_logprobs_survive_preemption_once():
    rig = make_rig(24, prefix_caching=True, max_num_batched_tokens=6)
    rig.add(make_request(1, PROMPT, max_tokens=60))
    rig.add(make_request(2, PROMPT, max_tokens=40, prompt_logprobs=1))
    finish(rig)  # compares the described tokens with the prompt
    assert rig.channel.terminal(2).num_preemptions >= 1
    assert rig.channel.terminal(2).num_cached_tokens == 0


# -- caches and tiers --------------------------------------------------------------------------------------------


def test_hits_are_counted_in_tokens():
    rig = make_rig()
    for request_id in (1, 2):
        rig.add(make_request(request_id, PROMPT, max_tokens=3))
        finish(rig)
    assert rig.channel.terminal(2).num_cached_tokens == 16  # the last token is always computed, so not all 20
    stats = rig.core.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (40, 16)
    assert stats.prompt_tokens == 24
    assert rig.core.control(ResetPrefixCache()).ok
    rig.add(make_request(3, PROMPT, max_tokens=3))
    finish(rig)
    assert rig.channel.terminal(3).num_cached_tokens == 0


def test_a_salt_keeps_prefixes_apart():
    rig = make_rig()
    for request_id, salt in enumerate(("", "a", "b", "a")):
        rig.add(make_request(request_id, PROMPT, max_tokens=3, cache_salt=salt))
        finish(rig)
    assert [rig.channel.terminal(i).num_cached_tokens for i in range(4)] == [0, 0, 0, 16]


def test_blocks_come_back_from_a_tier():
    tier = MockTier()
    rig = make_rig(tier=tier, faults=MockFaults(transfer_steps=2))
    rig.add(make_request(1, PROMPT, max_tokens=3))
    finish(rig)
    assert rig.core.control(ResetPrefixCache()).ok
    rig.add(make_request(2, PROMPT, max_tokens=3))
    rig.core.step(block=True)
    assert rig.core.stats().num_held == 1  # waits for its KV
    finish(rig)
    assert rig.channel.terminal(2).num_cached_tokens == 16


def test_a_failed_load_is_computed():
    rig = make_rig(tier=MockTier(), faults=MockFaults(transfer_ok=lambda job: job < 5))
    rig.add(make_request(1, PROMPT, max_tokens=3))
    finish(rig)
    stored = rig.core._transfers._next_job
    rig.executor._faults = MockFaults(transfer_ok=lambda job: job < stored)
    assert rig.core.control(ResetPrefixCache()).ok
    rig.add(make_request(2, PROMPT, max_tokens=3))
    finish(rig)
    assert rig.channel.terminal(2).num_cached_tokens == 0


def test_a_finished_request_is_held_until_its_stores_are_done():
    tier = MockTier()
    rig = make_rig(tier=tier, faults=MockFaults(transfer_steps=6))
    rig.add(make_request(1, PROMPT, max_tokens=2))
    while not rig.channel.terminals:
        rig.core.step(block=True)
    assert rig.core.has_work
    assert rig.core.stats().num_held == 1
    assert rig.core.stats().kv_usage > 0
    assert tier.num_prepared > 0
    finish(rig)


def test_an_abort_during_a_load_completes_it():
    tier = MockTier()
    rig = make_rig(tier=tier, faults=MockFaults(transfer_steps=4))
    rig.add(make_request(1, PROMPT, max_tokens=3))
    finish(rig)
    rig.core.control(ResetPrefixCache())
    rig.add(make_request(2, PROMPT, max_tokens=3))
    rig.core.step(block=True)
    assert tier.num_prepared == 5 - 1
    rig.core.abort([2])
    assert rig.channel.terminal(2).reason is FinishReason.ABORT
    assert rig.core.stats().kv_usage > 0
    finish(rig)


def test_a_tier_that_never_decides_starves_nobody():
    rig = make_rig(tier=MockTier(late=lambda: True), max_tier_asks=7)
    rig.add(make_request(1, PROMPT, max_tokens=3))
    finish(rig)
    assert rig.channel.terminal(1).reason is FinishReason.LENGTH


def test_tiers_need_prefix_caching():
    with pytest.raises(ValueError, match="prefix caching"):
        make_rig(tier=MockTier(), prefix_caching=False)


# -- states, integrity, death ------------------------------------------------------------------------------------


def test_every_state_can_end_and_the_end_is_final():
    assert LEGAL_TRANSITIONS.keys() == set(RequestStatus)
    assert not LEGAL_TRANSITIONS[RequestStatus.FINISHED]
    for status in set(RequestStatus) - {RequestStatus.FINISHED}:
        assert RequestStatus.FINISHED in LEGAL_TRANSITIONS[status]


def test_an_illegal_transition_is_an_integrity_error():
    rig = make_rig()
    rig.add(make_request(1, PROMPT))
    with pytest.raises(IntegrityError, match="waiting to preempted"):
        rig.core._requests[1].move_to(RequestStatus.PREEMPTED)
    finish(rig)


def test_integrity_names_a_leaked_block():
    rig = make_rig()
    rig.core._kv.pools[0].allocate(1)
    with pytest.raises(IntegrityError, match="1 references, tables and transfers make 0"):
        rig.core.check_integrity()
    assert "references" in rig.core.control(CheckIntegrity()).message


def test_death_at_submission_answers_everybody_and_later_ones_too():
    rig = make_rig()
    rig.add(make_request(1, PROMPT))
    rig.executor.stop()
    rig.core.step(block=True)
    rig.add(make_request(2, PROMPT))
    assert {rig.channel.terminal(i).failure for i in (1, 2)} == {FailureKind.ENGINE_DEAD}
    assert "stopped" in rig.core.health()
    assert not rig.core.control(ResetPrefixCache()).ok
    assert not rig.core.has_work


# -- the loop ----------------------------------------------------------------------------------------------------


def make_loop(faults: MockFaults | None = None) -> tuple[CoreLoop, RecordingChannel]:
    channel, clock = RecordingChannel(), RealClock()
    executor = MockExecutor((full_group(),), (200,), clock=clock, faults=faults or MockFaults())
    limits = CoreLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=4000)
    return CoreLoop(make_core(executor, limits, channel, clock=clock)), channel


def wait_for(condition) -> None:
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("nothing happened")


def test_the_loop_sleeps_until_a_message_comes():
    loop, channel = make_loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        for request_id in range(3):
            loop.submit(make_request(request_id, PROMPT, max_tokens=5))
            wait_for(lambda wanted=request_id: wanted in channel.terminals)
        assert loop.control(ResetPrefixCache()).result(timeout=5).ok
        loop.submit(make_request(9, PROMPT, max_tokens=3000))
        wait_for(lambda: channel.tokens(9))
        loop.abort([9])
        wait_for(lambda: 9 in channel.terminals)
        assert channel.terminal(9).reason is FinishReason.ABORT
    finally:
        loop.stop()
        thread.join(timeout=5)
    assert not thread.is_alive()
    loop.submit(make_request(10, PROMPT))
    assert channel.terminal(10).failure is FailureKind.ENGINE_DEAD
    assert not loop.control(ResetPrefixCache()).result(timeout=0).ok


class Restless(MockExecutor):
    """Has ``left`` things to do while there is no work."""

    left = 3
    during_work = 0

    def idle(self) -> bool:
        self.during_work += self._in_flight
        self.left -= 1
        return self.left >= 0


def test_an_executor_without_work_does_one_thing_at_a_time_and_requests_go_first():
    channel, clock = RecordingChannel(), RealClock()
    executor = Restless((full_group(),), (200,), clock=clock)
    limits = CoreLimits(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=4000)
    loop = CoreLoop(make_core(executor, limits, channel, clock=clock))
    loop.turn()
    assert executor.left == 2
    loop.submit(make_request(1, PROMPT, max_tokens=5))
    while 1 not in channel.terminals:
        loop.turn()
    assert executor.left == 2
    for left in (1, 0):
        while executor.left != left:
            loop.turn()
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        wait_for(lambda: executor.left == -1)
        loop.submit(make_request(2, PROMPT, max_tokens=5))  # it sleeps, and wakes
        wait_for(lambda: 2 in channel.terminals)
        wait_for(lambda: executor.left == -2)  # asked again, once
    finally:
        loop.stop()
        thread.join(timeout=5)
    assert executor.left == -2
    assert executor.during_work == 0


def test_a_dead_executor_leaves_the_loop_answering():
    loop, channel = make_loop(MockFaults(die_at_step=2))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        for request_id in (1, 2):
            loop.submit(make_request(request_id, PROMPT, max_tokens=50))
            wait_for(lambda wanted=request_id: wanted in channel.terminals)
            assert channel.terminal(request_id).failure is FailureKind.ENGINE_DEAD
    finally:
        loop.stop()
        thread.join(timeout=5)
    assert not thread.is_alive()


def test_a_bug_answers_everybody_and_is_raised():
    loop, channel = make_loop()
    loop.submit(make_request(1, PROMPT))
    loop.submit(make_request(2, PROMPT))
    loop.core._kv.seal = lambda blocks, tokens, computed: 1 // 0
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert {channel.terminal(i).failure for i in (1, 2)} == {FailureKind.ENGINE_DEAD}
    assert "division" in channel.terminal(1).message


def test_a_refused_start_is_an_engine_dead_error():
    executor = MockExecutor((full_group(),), (4,), faults=MockFaults(start_error="No device."))
    with pytest.raises(EngineDeadError, match="No device"):
        executor.start()
