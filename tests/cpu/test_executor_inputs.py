"""Seats and step inputs against a plain per-token computation, over random plans."""

from __future__ import annotations

import random

import numpy as np
import pytest

from penstock.errors import IntegrityError
from penstock.executor.inputs import InputBuilder
from penstock.executor.seats import SPARE_TOKENS, SeatState
from penstock.types.kv import KvGroupSpec, Visibility
from penstock.types.plan import Admission, StepPlan
from penstock.types.request import SamplingParams

GROUPS = (
    KvGroupSpec(name="full", visibility=Visibility.ALL, entries_per_block=16, bytes_per_block=1),
    KvGroupSpec(name="window", visibility=Visibility.WINDOW, entries_per_block=8, bytes_per_block=1, window=20),
)


def admission(seat: int, tokens: list[int], blocks: tuple[tuple[int, ...], ...], **more) -> Admission:
    values = {"num_computed": 0, "first_block": (0, 0), "num_prompt_tokens": len(tokens)}
    return Admission(
        seat=seat,
        request_id=seat,
        token_ids=tuple(tokens),
        sampling=SamplingParams(),
        block_ids=blocks,
        **{**values, **more},
    )


def test_random_plans_give_what_a_plain_loop_gives() -> None:
    """Eight seats, mixed chunks and decodes with drafts, drops and new admissions, 200 steps."""
    dice = random.Random(4)
    state = SeatState(8, 600, GROUPS)
    builder = InputBuilder(state, 8, 64)
    next_block = iter(range(1, 10**9))
    mirror: dict[int, dict] = {}
    for step in range(200):
        dropped = [seat for seat in mirror if dice.random() < 0.05 or len(mirror[seat]["tokens"]) > 400]
        for seat in dropped:
            del mirror[seat]
        admitted = []
        for seat in range(8):
            if seat not in mirror and dice.random() < 0.3:
                tokens = [dice.randrange(1000) for _ in range(dice.randrange(1, 120))]
                done = dice.randrange(len(tokens)) if dice.random() < 0.3 else 0
                first = (0, max(0, done - 20) // 8)
                tables = [{}, {}]
                for group, spec in enumerate(GROUPS):
                    for entry in range(first[group], -(-done // spec.tokens_per_block)):
                        tables[group][entry] = next(next_block)
                mirror[seat] = {"tokens": tokens, "computed": done, "tables": tables, "first": first}
                blocks = tuple(tuple(table.values()) for table in tables)
                admitted.append(admission(seat, tokens, blocks, num_computed=done, first_block=first))
        rows, appended = [], []
        for seat, one in mirror.items():
            left = len(one["tokens"]) - one["computed"]
            if left == 0 or dice.random() < 0.2:
                continue
            count = dice.randrange(1, left + 1)
            samples = count == left and dice.random() < 0.9
            drafts = tuple(dice.randrange(1000) for _ in range(dice.choice([0, 0, 1, 3]))) if samples else ()
            rows.append((seat, count, samples, drafts))
            for group, spec in enumerate(GROUPS):
                table = one["tables"][group]
                end = max(table, default=one["first"][group] - 1) + 1
                new = [
                    next(next_block)
                    for _ in range(end, -(-(one["computed"] + count + len(drafts)) // spec.tokens_per_block))
                ]
                table.update(enumerate(new, end))
                if new:
                    appended.append((seat, group, tuple(new)))
        plan = StepPlan(
            step_id=step,
            dropped=tuple(dropped),
            admitted=tuple(admitted),
            appended=tuple(appended),
            row_seats=tuple(row[0] for row in rows),
            row_num_tokens=tuple(row[1] for row in rows),
            row_samples=tuple(row[2] for row in rows),
            row_drafts=tuple(row[3] for row in rows),
        )
        state.apply(plan)
        if not rows:
            continue
        inputs = builder.build(plan)
        assert_inputs(inputs, rows, mirror)
        answers = []
        for seat, count, samples, drafts in rows:
            given = [dice.randrange(1000) for _ in range(dice.randrange(len(drafts) + 2))] if samples else []
            one = mirror[seat]
            one["tokens"] += given
            one["computed"] += count + (len(given) - 1 if samples else 0)
            answers.append(tuple(given))
        state.advance(inputs.seats, inputs.num_tokens, answers, plan.row_samples)
        for seat, one in mirror.items():
            assert state.num_known[seat] == len(one["tokens"])
            assert state.num_computed[seat] == one["computed"]
            assert state.tokens[seat, : len(one["tokens"])].tolist() == one["tokens"]


def assert_inputs(inputs, rows, mirror) -> None:
    token_ids, positions, query_start = [], [], [0]
    slots: list[list[int]] = [[], []]
    for seat, count, _, drafts in rows:
        one = mirror[seat]
        begin = one["computed"]
        token_ids += [*one["tokens"][begin : begin + count], *drafts]
        for position in range(begin, begin + count + len(drafts)):
            positions.append(position)
            for group, spec in enumerate(GROUPS):
                size = spec.tokens_per_block
                slots[group].append(one["tables"][group][position // size] * size + position % size)
        query_start.append(len(positions))
    forward = inputs.forward
    assert forward.token_ids.tolist() == token_ids
    assert forward.positions.tolist() == positions
    asked = [
        (row, place, query_start[row] + count - 1 + place)
        for row, (_, count, samples, drafts) in enumerate(rows)
        for place in range(samples * (1 + len(drafts)))
    ]
    assert list(zip(inputs.asked_rows.tolist(), inputs.asked_places.tolist(), strict=True)) == [a[:2] for a in asked]
    assert (list(range(len(positions))) if forward.asked is None else forward.asked.tolist()) == [a[2] for a in asked]
    ends = [positions[end - 1] + 1 for end in query_start[1:]]
    for group, (spec, step) in enumerate(zip(GROUPS, forward.groups, strict=True)):
        assert step.positions.tolist() == positions
        assert step.query_start.tolist() == query_start
        assert step.kv_lens.tolist() == ends
        assert step.slots.tolist() == slots[group]
        assert step.max_kv_len == max(ends)
        assert step.max_query_len == max(np.diff(query_start))
        assert step.block_tokens == spec.tokens_per_block
        for row, (seat, *_) in enumerate(rows):
            entries = step.block_table[row].tolist()
            table = mirror[seat]["tables"][group]
            used = -(-ends[row] // spec.tokens_per_block)
            assert entries[:used] == [table.get(entry, 0) for entry in range(used)]


def test_dropping_and_admitting_a_seat_in_one_plan_leaves_nothing_behind() -> None:
    state = SeatState(1, 100, GROUPS)
    state.apply(
        StepPlan(step_id=1, admitted=(admission(0, list(range(90)), (tuple(range(1, 7)), tuple(range(1, 13)))),))
    )
    again = admission(0, list(range(40)), ((50, 51), (60,)), num_computed=33, first_block=(0, 4))
    state.apply(StepPlan(step_id=2, dropped=(0,), admitted=(again,)))
    assert state.tables[0][0].tolist() == [50, 51] + [0] * (len(state.tables[0][0]) - 2)
    assert state.tables[1][0, :6].tolist() == [0, 0, 0, 0, 60, 0]
    assert (state.num_known[0], state.num_computed[0]) == (40, 33)


@pytest.mark.parametrize(("count", "samples"), [(11, False), (9, True)])
def test_rows_beyond_the_known_tokens_are_refused(count: int, samples: bool) -> None:
    state = SeatState(2, 100, GROUPS)
    rows = {"row_seats": (1,), "row_num_tokens": (count,), "row_samples": (samples,)}
    plan = StepPlan(step_id=7, admitted=(admission(1, list(range(10)), ((1,), (1, 2))),), **rows)
    state.apply(plan)
    with pytest.raises(IntegrityError, match="step 7, row 0"):
        InputBuilder(state, 2, 64).build(plan)


def test_a_seat_refuses_what_it_cannot_hold() -> None:
    state = SeatState(1, 100, GROUPS)
    with pytest.raises(ValueError, match="a seat holds 164"):
        state.apply(StepPlan(step_id=1, admitted=(admission(0, [0] * (101 + SPARE_TOKENS), ((), ())),)))
    state.apply(StepPlan(step_id=1, admitted=(admission(0, [0] * 10, ((), ())),)))
    with pytest.raises(ValueError, match="group full cannot hold 99 blocks"):
        state.apply(StepPlan(step_id=1, appended=((0, 0, tuple(range(99))),)))
