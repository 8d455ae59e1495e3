"""What runs once before readiness: a few small plans, so that no request pays for lazy initialisation.

Knows no scheduler; the plans are its own, use two seats and the first blocks, and leave them free.
"""

from __future__ import annotations

from penstock.executor.answer import RowMasks
from penstock.executor.device_runner import DeviceRunner
from penstock.executor.runner import Runner, RunnerLimits
from penstock.types.kv import KvCapacity
from penstock.types.plan import Admission, StepPlan
from penstock.types.request import SamplingParams
from penstock.types.result import StepTimings

PROMPT_TOKENS = 16
LONG_PROMPT_TOKENS = 80  # longer than what kernels of few queries take
DECODE_STEPS = 2


def warm_up(runner: Runner | DeviceRunner, capacity: KvCapacity, limits: RunnerLimits) -> tuple[StepTimings, ...]:
    """Prefill a short prompt and decode behind it, with a sampling that takes the random path, then once more beside a
    longer prompt; answers the timings.

    Step ids are negative: those of the core begin behind them. What the steps leave in blocks is never read, because
    a block is written before a request reads it; so all rows have the same blocks.
    """
    most = min(limits.max_model_len, limits.max_num_batched_tokens - 1, _held_tokens(capacity)) - DECODE_STEPS - 1
    short, long = min(PROMPT_TOKENS, most), min(LONG_PROMPT_TOKENS, most)
    if short < 1:
        return ()
    rows = [[(0, short)], *[[(0, 1)]] * DECODE_STEPS]
    if limits.max_num_seqs > 1 and long > short:
        rows.append([(0, 1), (1, long)])
    admitted = {0: _admission(0, short, capacity), len(rows) - 1: _admission(1, long, capacity)}
    timings = []
    for step, members in enumerate(rows):
        newcomers = [admitted[step]] if step in admitted and admitted[step].seat in dict(members) else []
        plan = StepPlan(
            step_id=step - 1 - len(rows),
            admitted=tuple(newcomers),
            row_seats=tuple(seat for seat, _ in members),
            row_num_tokens=tuple(count for _, count in members),
            row_samples=(True,) * len(members),
        )
        timings.append(runner.run(plan, _no_masks).timings)
    runner.run(StepPlan(step_id=-1, dropped=tuple(seat for seat, _ in rows[-1])), _no_masks)
    return tuple(timings)


def _held_tokens(capacity: KvCapacity) -> int:
    """Tokens of a request that has a block for every one of them in every group."""
    return min(capacity.num_blocks[group.pool] * group.tokens_per_block for group in capacity.groups)


def _admission(seat: int, length: int, capacity: KvCapacity) -> Admission:
    counts = [-(-(length + DECODE_STEPS + 1) // group.tokens_per_block) for group in capacity.groups]
    return Admission(
        seat=seat,
        request_id=seat,
        token_ids=tuple(range(length)),
        num_prompt_tokens=length,
        num_computed=0,
        sampling=SamplingParams(seed=0, temperature=0.5, top_p=0.9),
        block_ids=tuple(tuple(range(count)) for count in counts),
        first_block=(0,) * len(counts),
    )


def _no_masks() -> RowMasks:
    return {}
