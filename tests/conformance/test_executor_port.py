"""The executor port: what every executor must do with plans, whatever computes behind it.

A row of the table is a factory; the suite asks nothing of token values, only of their number, their order, the
advance of seats, and that the same work in another shape gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from local_executors import local_executor, local_executor_that_launches, local_executor_with_window

from penstock.core.ports import Executor
from penstock.mock.clock import VirtualClock
from penstock.mock.executor import MockExecutor
from penstock.mock.faults import MockFaults
from penstock.mock.rig import full_group, window_group
from penstock.types.control import CheckIntegrity, ResetPrefixCache, TimeKernels
from penstock.types.kv import KvCapacity, Visibility
from penstock.types.plan import Admission, StepPlan
from penstock.types.request import SamplingParams
from penstock.types.result import StepResult


def mock_executor() -> Executor:
    groups = (full_group(tokens_per_block=4), window_group(6, tokens_per_block=4))
    return MockExecutor(groups, (64,), clock=VirtualClock(), verify=True, num_seats=4)


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "mock": mock_executor,
    "local": local_executor,
    "local_with_window": local_executor_with_window,
    "local_that_launches": local_executor_that_launches,
}

PROMPT = (5, 9, 3, 7, 1, 8, 2, 6, 4, 5, 5)
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)


class Driver:
    """The least that a core does: seats, tables and step ids, without sharing or freeing."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.capacity: KvCapacity = executor.start()
        self.next_step = 0
        self.next_block = [0] * len(self.capacity.num_blocks)
        self.covered: dict[int, list[int]] = {}

    def take(self, group: int, count: int) -> tuple[int, ...]:
        pool = self.capacity.groups[group].pool
        start = self.next_block[pool]
        self.next_block[pool] += count
        assert self.next_block[pool] <= self.capacity.num_blocks[pool], "the suite needs more blocks"
        return tuple(range(start, start + count))

    def admit(self, seat: int, tokens=PROMPT, *, request_id=None, cover=None, sampling=GREEDY, num_prompt=None):
        cover = cover or len(tokens)
        counts = [-(-cover // spec.tokens_per_block) for spec in self.capacity.groups]
        self.covered[seat] = counts
        return Admission(
            seat=seat,
            request_id=seat if request_id is None else request_id,
            token_ids=tuple(tokens),
            num_prompt_tokens=num_prompt or len(tokens),
            num_computed=0,
            sampling=sampling,
            block_ids=tuple(self.take(group, count) for group, count in enumerate(counts)),
            first_block=(0,) * len(counts),
        )

    def grow(self, seat: int, cover: int):
        appended = []
        for group, spec in enumerate(self.capacity.groups):
            count = -(-cover // spec.tokens_per_block) - self.covered[seat][group]
            if count > 0:
                appended.append((seat, group, self.take(group, count)))
                self.covered[seat][group] += count
        return appended

    def step(self, rows=(), *, admitted=(), appended=(), dropped=(), masked=()):
        """``rows`` are (seat, num_tokens, samples)."""
        plan = StepPlan(
            step_id=self.next_step,
            dropped=tuple(dropped),
            admitted=tuple(admitted),
            appended=tuple(appended),
            row_seats=tuple(row[0] for row in rows),
            row_num_tokens=tuple(row[1] for row in rows),
            row_samples=tuple(row[2] for row in rows),
            masked_rows=tuple(masked),
        )
        self.next_step += 1
        return self.executor.step(plan)

    def run(self, rows=(), **changes) -> StepResult:
        result = self.step(rows, **changes).result()
        assert result.step_id == self.next_step - 1
        assert len(result.row_tokens) == len(rows)
        assert not result.failed_rows
        return result

    def generate(self, seat: int, count: int, *, chunk: int = 64, tokens=PROMPT, **admission) -> tuple[int, ...]:
        """Prefill in chunks, then decode one by one."""
        admitted = [self.admit(seat, tokens, **admission)]
        done, output = 0, []
        while done < len(tokens):
            size = min(chunk, len(tokens) - done)
            done += size
            result = self.run([(seat, size, done == len(tokens))], admitted=admitted)
            admitted = []
            output += result.row_tokens[0]
        while len(output) < count:
            appended = self.grow(seat, len(tokens) + len(output))
            output += self.run([(seat, 1, True)], appended=appended).row_tokens[0]
        return tuple(output)


def mask_of(*tokens: int) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(16, "little")


@pytest.fixture(params=sorted(EXECUTORS))
def driver(request) -> Iterator[Driver]:
    executor = EXECUTORS[request.param]()
    try:
        yield Driver(executor)
    finally:
        executor.stop()


def test_capacity_is_usable(driver):
    groups, num_blocks = driver.capacity.groups, driver.capacity.num_blocks
    assert groups
    assert len({spec.name for spec in groups}) == len(groups)
    assert all(0 <= spec.pool < len(num_blocks) for spec in groups)
    assert all(num > 0 for num in num_blocks)
    assert driver.executor.depth >= 1
    assert driver.executor.health() == ""


def test_what_is_done_without_work_comes_to_an_end_and_changes_no_answer(driver):
    sampled = {"sampling": SamplingParams(temperature=0.8, seed=5, max_tokens=64), "request_id": 7, "cover": 20}
    before = driver.generate(0, 6, **sampled)
    driver.run(dropped=(0,))
    turns = 0
    while driver.executor.idle():
        turns += 1
        assert turns < 1000
    assert not driver.executor.idle()
    assert driver.executor.health() == ""
    assert driver.generate(1, 6, **sampled) == before
    driver.executor.stop()
    assert not driver.executor.idle()


def test_an_empty_plan_is_answered(driver):
    result = driver.run()
    assert result.row_tokens == ()
    assert result.finished_transfers == ()


def test_rows_that_do_not_sample_answer_nothing(driver):
    result = driver.run([(0, 4, False)], admitted=[driver.admit(0)])
    assert result.row_tokens == ((),)
    assert len(driver.run([(0, len(PROMPT) - 4, True)]).row_tokens[0]) == 1


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_chunked_prefill_gives_the_tokens_of_a_whole_one(driver, chunk):
    whole = driver.generate(0, 6, request_id=7)
    driver.run(dropped=[0])
    assert driver.generate(0, 6, chunk=chunk, request_id=7) == whole


def test_a_batch_gives_the_tokens_of_single_requests(driver):
    prompts = {seat: PROMPT[seat:] for seat in range(3)}
    alone = {}
    for seat, prompt in prompts.items():
        alone[seat] = driver.generate(seat, 4, tokens=prompt, request_id=20 + seat)
        driver.run(dropped=[seat])
    admitted = [driver.admit(seat, prompt, request_id=20 + seat, cover=20) for seat, prompt in prompts.items()]
    result = driver.run([(seat, len(prompt), True) for seat, prompt in prompts.items()], admitted=admitted)
    together = {seat: list(result.row_tokens[seat]) for seat in prompts}
    for _ in range(3):
        order = (2, 0, 1)
        result = driver.run([(seat, 1, True) for seat in order])
        for row, seat in enumerate(order):
            together[seat] += result.row_tokens[row]
    assert {seat: tuple(tokens) for seat, tokens in together.items()} == alone


def test_rows_for_tokens_that_the_planner_does_not_know_yet(driver):
    """Depth plans in flight: each decodes the token that the one before it samples."""
    expected = driver.generate(0, 6, request_id=3)
    handles = [driver.step([(1, len(PROMPT), True)], admitted=[driver.admit(1, request_id=3, cover=30)], dropped=[0])]
    output = []
    while len(output) < 6:
        while len(handles) < driver.executor.depth:
            handles.append(driver.step([(1, 1, True)]))
        output += handles.pop(0).result().row_tokens[0]
    for handle in handles:
        handle.result()
    assert tuple(output[:6]) == expected


def test_masks_that_come_late_hold_their_rows_alone(driver):
    """A row answers one of the tokens that its mask leaves; others, and those of masks that allow everything, go on as
    without."""
    free = [driver.generate(seat, 3, request_id=30 + seat) for seat in (0, 1)]
    driver.run(dropped=[0, 1])
    admitted = [driver.admit(seat, request_id=30 + seat, cover=20) for seat in (0, 1)]
    admitted.append(driver.admit(2, request_id=32, cover=20, sampling=SamplingParams(seed=2, max_tokens=9)))
    output = []
    for step, tokens in enumerate([(7, 8), (3, 9), (5,)]):
        rows = [(seat, 1 if step else len(PROMPT), True) for seat in (2, 0, 1)]
        handle = driver.step(rows, admitted=[] if step else admitted, masked=(0, 1))
        handle.masks([1, 0], lambda tokens=tokens: [b"\xff" * 16, mask_of(*tokens)])
        result = handle.result()
        assert not result.failed_rows
        assert result.row_tokens[0][0] in tokens
        output.append(result.row_tokens[1:])
    assert [tuple(row) for row in zip(*[(a[0], b[0]) for a, b in output], strict=True)] == free


def test_plans_behind_masks_that_are_still_to_come(driver):
    """As many as may be in flight: each follows the token that the mask leaves."""
    expected = driver.generate(0, 3, tokens=(*PROMPT, 7), request_id=3, num_prompt=len(PROMPT))
    masked = driver.step(
        [(1, len(PROMPT), True)], admitted=[driver.admit(1, request_id=3, cover=30)], dropped=[0], masked=(0,)
    )
    behind = [driver.step([(1, 1, True)]) for _ in range(driver.executor.depth - 1)]
    masked.masks([0], [mask_of(7)])
    assert masked.result().row_tokens == ((7,),)
    while len(behind) < 3:
        behind.append(driver.step([(1, 1, True)]))
        behind[-1].result()
    assert tuple(handle.result().row_tokens[0][0] for handle in behind) == expected


def test_a_mask_that_allows_nothing_fails_its_row(driver):
    """Which computes its last token again."""
    expected = driver.generate(0, 1, request_id=1)
    admitted = [driver.admit(seat, request_id=seat) for seat in (0, 1)]
    rows = [(seat, len(PROMPT), True) for seat in (0, 1)]
    handle = driver.step(rows, admitted=admitted, dropped=[0], masked=(1,))
    handle.masks([1], [bytes(16)])
    result = handle.result()
    assert list(result.failed_rows) == [1]
    assert not result.failed_rows[1].by_request
    assert list(map(len, result.row_tokens)) == [1, 0]
    assert driver.run([(1, 1, True)]).row_tokens[0] == expected


def test_done_handles_answer_without_blocking_and_in_order(driver):
    handle = driver.step([(0, len(PROMPT), True)], admitted=[driver.admit(0)])
    result = handle.result()
    assert handle.done()
    assert result.step_id == 0
    assert result.timings.ended >= result.timings.started


def test_a_resumed_request_continues_as_if_never_interrupted(driver):
    expected = driver.generate(0, 8, request_id=5)
    driver.run(dropped=[0])
    first = driver.generate(1, 3, request_id=5)
    driver.run(dropped=[1])
    rest = driver.generate(2, 5, tokens=PROMPT + first, request_id=5, num_prompt=len(PROMPT))
    assert first + rest == expected


def test_a_seat_is_dropped_and_filled_by_one_plan(driver):
    driver.generate(0, 2, request_id=1)
    other = driver.run([(0, 3, True)], dropped=[0], admitted=[driver.admit(0, PROMPT[:3], request_id=2)])
    assert len(other.row_tokens[0]) == 1


def test_blocks_of_a_dropped_seat_serve_another(driver):
    expected = driver.generate(0, 5, request_id=1)
    driver.run(dropped=[0])
    driver.next_block = [0] * len(driver.next_block)
    assert driver.generate(1, 5, request_id=1) == expected


def test_a_cached_prefix_gives_the_tokens_of_a_computed_one(driver):
    """A second request takes over the full blocks of the first for a prefix that is a hit in every group."""
    groups = driver.capacity.groups
    if any(spec.visibility is Visibility.STATE for spec in groups):
        pytest.skip("states are taken over from checkpoints; the core's property tests cover them")
    size = max(spec.tokens_per_block for spec in groups)
    assert all(size % spec.tokens_per_block == 0 for spec in groups), "the suite needs nested block sizes"
    prompt = tuple(3 + i * 7 % 11 for i in range(2 * size + 3))
    first = driver.admit(0, prompt, request_id=9, cover=len(prompt) + 4)
    expected = list(driver.run([(0, len(prompt), True)], admitted=[first]).row_tokens[0])
    expected += driver.run([(0, 1, True)]).row_tokens[0]
    fresh = driver.admit(1, prompt, request_id=9, cover=len(prompt) + 4)
    hit = 2 * size
    shared = tuple(
        ours[: hit // spec.tokens_per_block] + new[hit // spec.tokens_per_block :]
        for spec, ours, new in zip(groups, first.block_ids, fresh.block_ids, strict=True)
    )
    second = Admission(
        seat=1,
        request_id=9,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        num_computed=hit,
        sampling=GREEDY,
        block_ids=shared,
        first_block=fresh.first_block,
    )
    output = list(driver.run([(1, 3, True)], dropped=[0], admitted=[second]).row_tokens[0])
    output += driver.run([(1, 1, True)]).row_tokens[0]
    assert output == expected


def test_log_probabilities_match_tokens_and_positions(driver):
    sampling = SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    result = driver.run([(0, 4, False)], admitted=[driver.admit(0, sampling=sampling, cover=20)])
    assert 0 not in result.logprobs
    described = list(result.prompt_logprobs[0])
    result = driver.run([(0, len(PROMPT) - 4, True)])
    described += result.prompt_logprobs[0]
    assert [entry.token_ids[0] for entry in described] == list(PROMPT[1:])
    for tokens, entries in zip(result.row_tokens, result.logprobs.values(), strict=True):
        assert [entry.token_ids[0] for entry in entries] == list(tokens)
        assert all(len(entry.token_ids) == len(entry.logprobs) for entry in entries)
        assert all(value <= 0 for entry in entries for value in entry.logprobs)
        assert all(entry.rank >= 1 for entry in entries)
    result = driver.run([(0, 1, True)])
    assert 0 not in result.prompt_logprobs
    assert len(result.logprobs[0]) == 1


@pytest.mark.parametrize("command", [ResetPrefixCache(), CheckIntegrity(), TimeKernels(True), TimeKernels(False)])
def test_commands_are_answered_between_steps(driver, command):
    driver.generate(0, 2)
    assert driver.executor.control(command).ok


def test_stop_is_idempotent(driver):
    driver.executor.stop()
    driver.executor.stop()


def test_every_executor_of_the_table_is_a_factory():
    for factory in EXECUTORS.values():
        assert factory() is not factory()


def test_faults_of_the_mock_reach_the_caller():
    from penstock.errors import EngineDeadError

    executor = MockExecutor((full_group(),), (8,), clock=VirtualClock(), faults=MockFaults(die_at_step=1), depth=3)
    driver = Driver(executor)
    handles = [driver.step() for _ in range(3)]
    handles[0].result()
    for handle in handles[1:]:
        with pytest.raises(EngineDeadError, match="died at step 1"):
            handle.result()
    assert "died" in executor.health()
