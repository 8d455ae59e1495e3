"""What runs once before readiness: a few small plans, so that no request pays for lazy initialisation.

Knows no scheduler; the plans are its own, use one seat and the first blocks, and leave both free.
"""

from __future__ import annotations

from penstock.executor.answer import RowMasks
from penstock.executor.device_runner import DeviceRunner
from penstock.executor.memory_plan import blocks_of
from penstock.executor.runner import Runner, RunnerLimits
from penstock.types.kv import KvCapacity
from penstock.types.plan import Admission, StepPlan
from penstock.types.request import SamplingParams
from penstock.types.result import StepTimings

PROMPT_TOKENS = 16
DECODE_STEPS = 2


def warm_up(runner: Runner | DeviceRunner, capacity: KvCapacity, limits: RunnerLimits) -> tuple[StepTimings, ...]:
    """Prefill a short prompt and decode behind it, with a sampling that takes the random path; answers the timings.

    Step ids are negative: those of the core begin behind them. What the steps leave in blocks is never read, because
    a block is written before a request reads it.
    """
    length = min(PROMPT_TOKENS, limits.max_model_len, limits.max_num_batched_tokens)
    blocks = tuple(blocks_of(group, length + DECODE_STEPS, length + DECODE_STEPS) for group in capacity.groups)
    if any(count > capacity.num_blocks[group.pool] for count, group in zip(blocks, capacity.groups, strict=True)):
        return ()
    admission = Admission(
        seat=0,
        request_id=0,
        token_ids=tuple(range(length)),
        num_prompt_tokens=length,
        num_computed=0,
        sampling=SamplingParams(seed=0, temperature=0.5, top_p=0.9),
        block_ids=tuple(tuple(range(count)) for count in blocks),
        first_block=(0,) * len(blocks),
    )
    timings = []
    for step in range(1 + DECODE_STEPS):
        plan = StepPlan(
            step_id=step - 2 - DECODE_STEPS,
            admitted=(admission,) if step == 0 else (),
            row_seats=(0,),
            row_num_tokens=(length if step == 0 else 1,),
            row_samples=(True,),
        )
        timings.append(runner.run(plan, _no_masks).timings)
    runner.run(StepPlan(step_id=-1, dropped=(0,)), _no_masks)
    return tuple(timings)


def _no_masks() -> RowMasks:
    return {}
