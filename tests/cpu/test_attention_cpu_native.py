"""Native attention gives a query the same bits whatever is computed beside it, before it and on how many threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from attention_scenes import CPU, Work, empty_pool, make_step

from penstock.attention.backends.cpu_native import ISAS, CpuNative
from penstock.attention.contract import GroupStep
from penstock.kernels.implementation import OpSpec
from penstock.kernels.native.extension import extension
from penstock.kernels.native.memory import Arena, results_in

USABLE = [each for each in ISAS if each.can_run(OpSpec(dtype="float32", platform=CPU)).ok]
LENGTH = 139  # of the row that is looked at: chunks of 64 and a rest
BESIDE = 22  # rows that may be computed with it, of other lengths

# Steps of (row, first position, end). Every schedule computes all of row 0.
Schedule = Sequence[Sequence[tuple[int, int, int]]]


def in_chunks(begin: int, size: int) -> Schedule:
    return [[(0, p, min(p + size, LENGTH))] for p in range(begin, LENGTH, size)]


WHOLE: Schedule = [[(0, 0, LENGTH)]]
SCHEDULES: dict[str, Schedule] = {
    "one by one": in_chunks(0, 1),
    "chunks of 7": in_chunks(0, 7),
    "chunks of 33": in_chunks(0, 33),
    "behind a prefix of 1": [[(0, 0, 1)], *in_chunks(1, LENGTH)],
    "behind a prefix of 130": [[(0, 0, 130)], *in_chunks(130, LENGTH)],
    "behind others": [[(3, 0, 41)], [(3, 41, 42), (0, 0, 50), (1, 0, 3)], [(1, 3, 90), (3, 42, 43), (0, 50, LENGTH)]],
    "decoded in a large batch": [
        [(row, 0, 120 + row) for row in range(BESIDE)],
        *([(row, 120 + row + i, 121 + row + i) for row in range(BESIDE)] for i in range(LENGTH - 120)),
    ],
    "with rows without tokens": [[(1, 0, 0), (0, 0, 99), (2, 0, 0)], [(1, 0, 0), (0, 99, LENGTH)]],
}
WORK = Work((), heads=9, kv_heads=3, head_dim=64, block_tokens=16, layers=1)
WORKS = {
    "full": WORK,
    "window": replace(WORK, window=70),
    "narrow window": replace(WORK, window=5),
    "soft cap": replace(WORK, soft_cap=4.0),
    "cache in float32": replace(WORK, kv_dtype="float32"),
    "cache in int8": replace(WORK, kv_dtype="int8", window=100),
    "larger blocks": replace(WORK, block_tokens=64),
    "small heads": replace(WORK, heads=8, kv_heads=1, head_dim=8),
    "sinks": replace(WORK, sinks=True),
    "sinks and window": replace(WORK, sinks=True, window=70, kv_dtype="int8"),
    "heads of 80": replace(WORK, heads=4, kv_heads=4, head_dim=80),
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = extension().num_threads()
    yield
    extension().set_num_threads(before)


@dataclass
class Rows:
    """Queries, keys and values of some rows, and an empty pool for them."""

    work: Work
    seed: int = 0  # of the places in the pool

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        longest, width = LENGTH + BESIDE, self.work.heads + self.work.kv_heads
        self.qk = torch.randn(BESIDE, longest, width, self.work.head_dim)
        self.v = torch.randn(BESIDE, longest, self.work.kv_heads, self.work.head_dim)
        angles = torch.rand(longest, 1, self.work.head_dim // 2) * 6
        self.cos, self.sin = (torch.cat((f(angles), f(angles)), -1) for f in (torch.cos, torch.sin))
        self.sinks = torch.randn(self.work.heads) * 3 if self.work.sinks else None
        torch.manual_seed(self.seed)
        per_row = -(-longest // self.work.block_tokens)
        self.blocks = torch.randperm(BESIDE * per_row).view(BESIDE, per_row).tolist()
        layout = CpuNative().kv_layout(self.work.spec, self.work.block_tokens)
        self.kv = empty_pool(layout, BESIDE * per_row, 1)[:, 0]

    def step(self, ranges: Sequence[tuple[int, int, int]]) -> tuple[GroupStep, tuple[torch.Tensor, ...]]:
        tables = [self.blocks[row] for row, _, _ in ranges]
        step = make_step([(first, end) for _, first, end in ranges], tables, self.work.block_tokens)
        qk, v = (torch.cat([each[row, first:end] for row, first, end in ranges]) for each in (self.qk, self.v))
        return step, (qk, v, self.cos[step.positions], self.sin[step.positions])

    def run(self, ranges: Sequence[tuple[int, int, int]], isa: int = 0) -> torch.Tensor:
        step, (qk, v, cos, sin) = self.step(ranges)
        metadata = replace(CpuNative().plan(self.work.spec, step), function=USABLE[isa].function)
        return CpuNative().run(qk, v, (cos, sin), self.kv, self.work.scale, metadata, sinks=self.sinks)

    def results_of_row_0(self, schedule: Schedule, isa: int = 0) -> torch.Tensor:
        found = torch.zeros(LENGTH, self.work.heads, self.work.head_dim)
        for ranges in schedule:
            counts = [end - first for _, first, end in ranges]
            for (row, first, end), out in zip(ranges, self.run(ranges, isa).split(counts), strict=True):
                if row == 0:
                    found[first:end] = out[: LENGTH - first]
        return found


def assert_same_bits(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.isfinite().all()
    different = (found.view(torch.int32) != wanted.view(torch.int32)).flatten(1).any(1)
    assert not different.any(), f"tokens {different.nonzero().flatten().tolist()} differ"


CASES = [(name, 0) for name in WORKS]
CASES += [(name, isa) for isa in range(1, len(USABLE)) for name in ("window", "cache in int8")]


@pytest.mark.parametrize(("name", "isa"), CASES, ids=[f"{name}-{USABLE[isa].name}" for name, isa in CASES])
def test_bits_do_not_depend_on_the_schedule(name: str, isa: int) -> None:
    extension().set_num_threads(1)
    wanted = Rows(WORKS[name]).results_of_row_0(WHOLE, isa)
    extension().set_num_threads(2)
    for number, (schedule, steps) in enumerate({"whole": WHOLE, **SCHEDULES}.items()):
        found = Rows(WORKS[name], seed=number).results_of_row_0(steps, isa)
        try:
            assert_same_bits(found, wanted)
        except AssertionError as error:
            raise AssertionError(f"{schedule}: {error}") from error


def test_a_recorded_step_follows_values_that_change() -> None:
    """Recorded once for two rows, run for every length: positions, lengths, slots and tables are read at run time."""
    extension().set_num_threads(2)
    wanted = Rows(WORK).results_of_row_0(WHOLE)
    rows = Rows(WORK)
    rows.run([(0, 0, 60), (1, 0, 3)])
    step, tensors = rows.step([(0, 60, 61), (1, 3, 4)])
    backend, program = CpuNative(), extension().Program()
    qk, v, cos, sin = tensors
    with results_in(Arena(torch.empty(1 << 22, dtype=torch.uint8))):
        program.record()
        out = backend.run(qk, v, (cos, sin), rows.kv, WORK.scale, backend.plan(WORK.spec, step))
        extension().Program.stop_recording()
        for position in range(60, LENGTH):
            new_step, new_tensors = rows.step([(0, position, position + 1), (1, position - 57, position - 56)])
            for old, new in zip(tensors, new_tensors, strict=True):
                old.copy_(new)
            for name in ("query_start", "kv_lens", "block_table", "slots"):
                getattr(step, name).copy_(getattr(new_step, name))
            program.run()
            assert_same_bits(out[:1], wanted[position : position + 1])
    assert len(program) == 2


def test_bits_of_int8_follow_a_value_that_is_not_finite() -> None:
    """A NaN among the keys is not lost in their codes."""
    rows = Rows(replace(WORK, kv_dtype="int8"))
    rows.qk[0, 20, 9] = float("nan")
    rows.v[0, 30, 1, 5] = float("inf")
    found = rows.run([(0, 0, 40)])
    assert found[:20].isfinite().all()
    assert found[20:, :3].isnan().all()
    assert found[30:, 3:6].isnan().all()
    assert found[:, 6:].isfinite().all()
