"""What a recorded decode step is filled up with touches nothing that lives: all of the device's memory gets a pattern
before such a step, and only what its rows write has changed behind it.

The model has two groups, one with a window. tests/gpu repeats this with graphs of a card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import PlanMaker, describe_alone, random_prompt, save_tiny_model, tiny_spec
from test_device_edits import EDITS, HERE
from test_device_runner import runner_of
from test_device_traffic import Replays

from penstock.executor.device_runner import DeviceRunner
from penstock.executor.graphs import GraphKey, StepGraphs, Variant
from penstock.executor.inputs import StepShape
from penstock.executor.load import load_executor
from penstock.executor.local import LocalExecutor
from penstock.types.request import SamplingParams

VOCAB_BYTES = b"\xff" * 28  # a mask that allows everything
BLOCK_TOKENS = 16
PATTERN = 0x3D  # of bytes: as a float of any width, a small number
SEATS = (4, 1, 3, 0, 5)  # the first of them compute
LENGTHS = (9, 21, 18, 3, 33)  # no step below begins a block
OPTIONS: dict[str, Any] = {"block_size": BLOCK_TOKENS, "max_num_seqs": 6}
KINDS: dict[str, tuple[Variant, SamplingParams]] = {
    "greedy": (Variant.GREEDY, SamplingParams(temperature=0.0)),
    "drawn": (Variant.DRAWN, SamplingParams(seed=1, temperature=0.9)),
    "edited": (Variant.EDITED, SamplingParams(seed=1, temperature=0.9, **EDITS["repetition"])),
    "described": (Variant.DESCRIBED, SamplingParams(temperature=0.0, logprobs=2, **EDITS["presence"])),
    "masked": (Variant.LOGITS, SamplingParams(seed=1, temperature=0.9, **EDITS["frequency"])),
}

Started = tuple[LocalExecutor, PlanMaker]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    if HERE.extension_missing:
        pytest.skip(HERE.extension_missing)
    path = tmp_path_factory.mktemp("gemma3")
    save_tiny_model("gemma3", path)
    return path


@pytest.fixture
def recorded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.setattr("penstock.executor.load.make_graphs", lambda built, spec: StepGraphs(Replays()))
    spec = tiny_spec(directory, platform=HERE, attention_backend="reference_torch", **OPTIONS)
    executor = LocalExecutor(spec, load=partial(load_executor, launches=True), launches=True)
    yield executor, PlanMaker(executor.start())
    executor.stop()


@pytest.fixture(scope="module")
def plainly(directory: Path) -> Iterator[Callable[..., list[int]]]:
    executor = LocalExecutor(tiny_spec(directory, platform=HERE))
    maker = PlanMaker(executor.start())
    yield lambda *request, **more: describe_alone(executor, maker, 0, *request, **more)[0]
    executor.stop()


@pytest.mark.parametrize("num_rows", [3, 5])  # filled up to 4 and to all 6
@pytest.mark.parametrize("kind", KINDS)
def test_filling_touches_nothing_that_lives(
    recorded: Started, plainly: Callable[..., list[int]], kind: str, num_rows: int
) -> None:
    executor, maker = recorded
    runner, (variant, sampling) = runner_of(executor), KINDS[kind]
    seats = SEATS[:num_rows]
    prompts = {seat: random_prompt(length, seed=seat) for seat, length in zip(seats, LENGTHS, strict=False)}
    for seat, prompt in prompts.items():
        maker.admit(seat, prompt, sampling)
    tokens: dict[int, list[int]] = {seat: [] for seat in seats}

    def step(counts: dict[int, int], *, masked: bool) -> None:
        more = {"masked_rows": tuple(range(num_rows))} if masked else {}
        handle = executor.step(maker.plan([(seat, count, True) for seat, count in counts.items()], **more))
        if masked:
            handle.masks(range(num_rows), [VOCAB_BYTES] * num_rows)
        for seat, new in zip(counts, handle.result().row_tokens, strict=True):
            tokens[seat] += new

    ones = dict.fromkeys(seats, 1)
    step({seat: len(prompt) for seat, prompt in prompts.items()}, masked=False)
    step(ones, masked=variant is Variant.LOGITS)
    padded = 4 if num_rows == 3 else 6
    assert GraphKey(StepShape(padded, padded, padded), variant) in runner.graphs._graphs
    fill_others(runner, maker, seats)
    before = everything(runner)
    positions = runner._seats.num_computed[list(seats)].tolist()
    step(ones, masked=variant is Variant.LOGITS)
    check_kv(runner, before, dict(zip(seats, positions, strict=True)))
    counted = variant not in (Variant.GREEDY, Variant.DRAWN)
    check_seats(runner, before, seats, {seat: tokens[seat][-1] for seat in seats} if counted else {})
    step(ones, masked=variant is Variant.LOGITS)
    for seat, prompt in prompts.items():
        assert tokens[seat] == plainly(prompt, 4, sampling=sampling)


def layers_of(runner: DeviceRunner) -> dict[int, torch.Tensor]:
    return dict(runner._forward._storage.layers)


@torch.inference_mode()
def fill_others(runner: DeviceRunner, maker: PlanMaker, seats: tuple[int, ...]) -> None:
    """All blocks that no seat has, and the state of all seats that are not in the step."""
    assert len({group.pool for group in runner._forward._groups}) == 2
    for index in range(2):
        taken = {block for resident in maker.residents.values() for block in resident.blocks[index]}
        for layer in layers_of_group(runner, index).values():
            for block in set(range(len(layer))) - taken:
                layer[block].view(torch.uint8).fill_(PATTERN)
    others = [seat for seat in range(6) if seat not in seats]
    runner._last_tokens[others] = 77
    tables = runner._edits._tables()
    for seat in others:
        tables.rules[seat] = torch.tensor([seat, 3, 1, 1])
        tables.penalties[seat], tables.words[seat], tables.shifts[seat] = 1.5, 5, 0.5
        for table in runner._inputs._tables:
            table[seat] = 2


def layers_of_group(runner: DeviceRunner, index: int) -> dict[int, torch.Tensor]:
    """Gemma's tiny model has its windows in layers 0 and 2."""
    windowed = runner._forward._groups[index].window is not None
    return {layer: kv for layer, kv in layers_of(runner).items() if (layer != 1) == windowed}


def everything(runner: DeviceRunner) -> dict[str, torch.Tensor]:
    tables = runner._edits._tables()
    host = ("tokens", "num_known", "num_computed", "num_prompt")
    found = {f"kv{layer}": kv for layer, kv in layers_of(runner).items()}
    found |= {f"table{group}": table for group, table in enumerate(runner._inputs._tables)}
    found |= {name: getattr(tables, name) for name in ("rules", "penalties", "words", "shifts")}
    found |= {name: torch.from_numpy(getattr(runner._seats, name)) for name in host}
    return {name: kept.clone() for name, kept in (found | {"last": runner._last_tokens}).items()}


def check_kv(runner: DeviceRunner, before: dict[str, torch.Tensor], positions: dict[int, int]) -> None:
    """Every row has written its slot and nothing else; filling has written into the scratch block."""
    after = everything(runner)
    for index in range(2):
        table = runner._seats.tables[index]
        written = {(int(table[seat, at // BLOCK_TOKENS]), at % BLOCK_TOKENS) for seat, at in positions.items()}
        for layer in layers_of_group(runner, index):
            one, other = before[f"kv{layer}"], after[f"kv{layer}"]
            scratch = len(one) - 1
            bits = (one.view(torch.uint8) != other.view(torch.uint8)).view(*one.shape, -1)
            # The tokens of a block are the first dimension of their number, with every backend used here.
            slots = bits.movedim(list(one.shape).index(BLOCK_TOKENS, 1), 1).flatten(2).any(dim=2)
            changed = {(block, offset) for block, offset in slots.nonzero().tolist()}
            assert {slot for slot in changed if slot[0] != scratch} == written
            assert any(slot[0] == scratch for slot in changed), "the pattern shows what filling writes"


def check_seats(
    runner: DeviceRunner, before: dict[str, torch.Tensor], seats: tuple[int, ...], counted: dict[int, int]
) -> None:
    """Every seat in the step has its token, counted once where its edits count; the scratch seat may have one."""
    after = everything(runner)
    others = [seat for seat in range(6) if seat not in seats]
    for name in ("tokens", "num_known", "num_computed", "num_prompt", "last"):
        assert torch.equal(before[name][others], after[name][others]), name
    for name in ("table0", "table1", "penalties", "shifts", "rules"):
        assert torch.equal(before[name], after[name]), name
    words = before["words"].clone()
    for seat, token in counted.items():
        words[seat, token] += 1
    assert torch.equal(words, after["words"])
